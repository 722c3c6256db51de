"""What ``firstlight watch`` costs a node: idle, beside a busy server, and for the starts it sees.

A busy server is two processes that do nothing but system calls, without a pause. Turns with and
without ``watch`` alternate, and each with it is compared with its neighbours, so that a drift of
the machine meets both. The throughput is counted per second of the server's own CPU time, which
other work on the machine hardly changes, and what ``watch`` takes of the cores is added. A start is
compared by its CPU time: on saturated cores its duration says more of the queue.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from bench.marks import Mark
from firstlight.analysis import stats
from firstlight.model import Interval
from firstlight.native import native

FIRSTLIGHT = Path(sys.executable).parent / "firstlight"
ALONE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
IDLE_SECONDS, TURN_SECONDS, TURNS, FEW_TURNS = 60, 6, 24, 8
FIRST_STARTS = 3
STARTS, WORKERS, PATIENCE = 10_000, 4, 120
_SERVER = """
import os, sys, time
zero = os.open("/dev/zero", os.O_RDONLY)
pread = os.pread
while True:
    for _ in range(20000):
        pread(zero, 1, 0)
    sys.stdout.write(f"{time.monotonic_ns()} {time.process_time_ns()}\\n")
    sys.stdout.flush()
"""
_LOOPS = 20_000


def bundle(directory: Path) -> Path:
    """A bundle whose container runs the payload, with names as in a pod."""
    root = directory / "bundle" / "rootfs"
    for name in ("bin", "proc", "dev", "sys"):
        (root / name).mkdir(parents=True)
    (root / "bin/payload").write_bytes(native("payload").read_bytes())
    (root / "bin/payload").chmod(0o755)
    subprocess.run(["runc", "spec", "--bundle", root.parent], check=True)
    config = root.parent / "config.json"
    document = json.loads(config.read_text())
    document["process"] |= {"args": ["/bin/payload", "once"], "terminal": False}
    document["annotations"] = {"io.kubernetes.cri.sandbox-name": "bench"}
    config.write_text(json.dumps(document))
    return root.parent


def start(directory: Path, name: str) -> tuple[float, float]:
    """Run a container to its end; returns the seconds and the CPU seconds that took."""
    began = time.monotonic()
    process = subprocess.Popen(
        ["runc", "--root", directory / "state", "run", "--bundle", directory / "bundle", name],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return time.monotonic() - began, used.ru_utime + used.ru_stime


@contextmanager
def watching(
    *options: str, alone: bool = False, out: IO[bytes] | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """``firstlight watch --json`` with these options, watching.

    ``alone`` in a PID namespace, where it sees no starts of others on this machine.
    """
    with subprocess.Popen(
        [*(ALONE if alone else ()), FIRSTLIGHT, "watch", "--json", *options],
        stdin=subprocess.DEVNULL,
        stdout=out or subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stderr is not None
            while not process.stderr.readline().startswith("watching "):
                assert process.poll() is None
            yield process
        finally:
            process.kill() if alone else process.terminate()  # unshare ignores SIGTERM


def cpu_seconds(pid: int) -> float:
    """The CPU time of a process and its descendants so far."""
    spent = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        spent += int((task / "schedstat").read_text().split()[0]) / 1e9
        spent += sum(cpu_seconds(int(child)) for child in (task / "children").read_text().split())
    return spent


def idle(*options: str) -> Mark:
    """The share of one core that it takes while nothing starts."""
    with watching(*options, alone=True) as process:
        time.sleep(2)
        before, began = cpu_seconds(process.pid), time.monotonic()
        time.sleep(IDLE_SECONDS)
        share = (cpu_seconds(process.pid) - before) / (time.monotonic() - began)
    name = " ".join(("watch", *options))
    return Mark(f"{name}, idle: of one core", f"{share:.3%}", "≤ 0.2 %", share <= 0.002)


class Turn(NamedTuple):
    """The server's calls per second of its CPU time, and the starts' times, while it is busy."""

    calls: float
    took: list[float]
    cpu: list[float]


@contextmanager
def server(directory: Path) -> Iterator[Callable[[int, int], float]]:
    """Two processes that do nothing but system calls. Gives what counts those between two moments,
    in ns, per second of the processes' CPU time.
    """
    files = [directory / f"server{number}" for number in range(2)]
    with ExitStack() as running:
        for file in files:
            out = running.enter_context(file.open("wb"))
            process = subprocess.Popen([sys.executable, "-c", _SERVER], stdout=out)
            running.enter_context(process)
            running.callback(process.kill)

        def calls(begin: int, end: int) -> float:
            rate = 0.0
            for file in files:
                lines = file.read_bytes().splitlines(keepends=True)
                stamps = [tuple(map(int, line.split())) for line in lines if line.endswith(b"\n")]
                spent = [cpu for at, cpu in stamps if begin <= at <= end]
                rate += _LOOPS * (len(spent) - 1) / ((spent[-1] - spent[0]) / 1e9)
            return rate

        yield calls


def busy_turn(directory: Path, name: str, calls: Callable[[int, int], float]) -> Turn:
    """A turn of starts, one a second."""
    begin, each = time.monotonic_ns(), []
    for number in range(TURN_SECONDS):
        due = time.monotonic() + 1
        each.append(start(directory, f"{name}-{number}"))
        time.sleep(max(0.0, due - time.monotonic()))
    took, cpu = zip(*each, strict=True)
    return Turn(calls(begin, time.monotonic_ns()), list(took), list(cpu))


def busy(directory: Path, *options: str, turns: int = TURNS) -> list[Mark]:
    """What it takes from a busy server, and adds to a start a second."""
    shares, off, on = [], [], []
    with server(directory) as calls:
        for turn in range(turns + 1):
            off.append(busy_turn(directory, f"b{turn}", calls))
            if turn == turns:
                break
            with watching(*options) as process:
                assert process.stdout is not None
                for first in range(FIRST_STARTS):  # the first with phases loads what it needs
                    start(directory, f"w{turn}-{first}")
                    if json.loads(process.stdout.readline())["phases_ns"]:
                        break
                before, began = cpu_seconds(process.pid), time.monotonic()
                on.append(busy_turn(directory, f"o{turn}", calls))
                spent = cpu_seconds(process.pid) - before
                shares.append(spent / (time.monotonic() - began))
    cores = os.cpu_count() or 1
    own = float(np.mean(shares)) / cores
    slower = _beside(off, on, lambda turn: turn.calls)
    loss = [each - 1 - own for each in (slower.value, slower.low, slower.high)]
    cpu = _beside(off, on, lambda turn: float(np.median(turn.cpu)))
    later = _beside(off, on, lambda turn: float(np.median(turn.took)))
    took = [seconds for turn in off for seconds in turn.cpu]
    name = " ".join(("watch", *options))
    return [
        Mark(
            f"{name}, a start a second: throughput of a busy server",
            f"{loss[0]:+.1%} [{loss[1]:+.1%}, {loss[2]:+.1%}], of it own CPU {own:.2%} of "
            f"{cores} cores",
            "≥ -1 %",
            loss[0] >= -0.01,
        ),
        Mark(
            f"{name}, a start a second: CPU time of `runc run`, {np.median(took) * 1e3:.0f} ms "
            f"(its duration {_percent(later)})",
            _percent(cpu),
            "≤ +3 %",
            cpu.value <= 1.03,
        ),
    ]


def _beside(off: list[Turn], on: list[Turn], value: Callable[[Turn], float]) -> Interval:
    """The median ratio of each turn with ``watch`` to the mean of the turns before and after it."""
    around = [(value(one) + value(next)) / 2 for one, next in pairwise(off)]
    ratios = [value(turn) / other for turn, other in zip(on, around, strict=True)]
    return stats.quantile_interval(ratios, 0.5)


def _percent(ratio: Interval) -> str:
    return f"{ratio.value - 1:+.1%} [{ratio.low - 1:+.1%}, {ratio.high - 1:+.1%}]"


def results(directory: Path) -> list[Mark]:
    """How many of many starts are found with their names, and how many events are lost.

    WORKERS run crun without a pause, so that there is hardly a moment without a start.
    """
    prefix = f"w{os.getpid()}-"
    script = (
        "mount -t cgroup2 cgroup2 /sys/fs/cgroup && seq $1 | xargs -P $2 -I N "
        'crun --root "$3/state" --cgroup-manager=disabled run --bundle "$3/bundle" "$4"N'
    )
    file = directory / "seen"
    with file.open("wb") as out, watching(out=out) as process:
        began = time.monotonic()
        subprocess.run(
            ["unshare", "--mount", "sh", "-ec", script, "sh", str(STARTS), str(WORKERS), directory,
             prefix],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        rate = STARTS / (time.monotonic() - began)
        records: dict[str, dict[str, Any]] = {}
        until = time.monotonic() + PATIENCE
        while len(records) < STARTS and time.monotonic() < until and process.poll() is None:
            time.sleep(1)
            lines = file.read_bytes().splitlines(keepends=True)
            parsed = [json.loads(line) for line in lines if line.endswith(b"\n")]
            records = {record["labels"]["id"]: record for record in parsed
                       if record["labels"]["id"].startswith(prefix)}  # fmt: skip
    named = sum(
        record["labels"].get("pod") == "bench" and record["error"] is None
        for record in records.values()
    )
    lost = sum(int(record["lost_events"]) for record in records.values())
    whole = sum(bool(record["phases_ns"]) for record in records.values())
    return [
        Mark(f"starts found with their pod's name, of {STARTS}, {rate:.0f} a second ({whole} with "
             "phases)", str(named), str(STARTS), named == STARTS),
        Mark("events lost in them", str(lost), "0", lost == 0),
    ]  # fmt: skip


_DOUBLED = 13
_STORM = """
mount -t proc proc /proc
mount -t tmpfs bench "$1/top"
mount --make-rprivate "$1/top"
for number in $(seq $2); do mkdir "$1/top/$number"; mount --rbind "$1/top" "$1/top/$number"; done
for number in 1 2 3; do runc --root "$1/state" run --bundle "$1/bundle" "storm$number"; done
"""


def storm(directory: Path) -> Mark:
    """Whether a storm is named that nobody told it of: starts among thousands of mounts."""
    (directory / "top").mkdir()
    kept = directory / "kept"
    with watching("--sample", "1", "--out", str(kept), alone=True) as process:
        tracer = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
        subprocess.run(
            ["nsenter", "--target", tracer, "--pid", "unshare", "--mount", "sh", "-ec", _STORM,
             "sh", directory, str(_DOUBLED)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
    report = subprocess.run(
        [FIRSTLIGHT, "report", *kept.glob("watch-*")], capture_output=True, text=True
    )
    named = report.stdout.partition("\nknown storms\n")[2].partition(":")[0]
    return Mark(
        f"a storm of {1 << _DOUBLED} mounts is named by report of what watch kept",
        named or "none", "many mounts", named == "many mounts",
    )  # fmt: skip


def measure() -> Iterator[Mark]:
    """All marks of watch."""
    yield idle()
    yield idle("--http", "0")
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        bundle(directory)
        yield from busy(directory)
        yield from busy(directory, "--sample", "1", turns=FEW_TURNS)
        yield from results(directory)
        yield storm(directory)
