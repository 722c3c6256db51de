"""What ``firstlight watch`` costs a node: idle, beside a busy server, and for the starts it sees.

Turns with and without it alternate, so that a drift of the machine meets both. A busy server is two
processes that do nothing but system calls; their throughput is counted per second of their own CPU
time, which other work on the machine hardly changes; what ``watch`` takes of the cores is added.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from bench.marks import Mark
from firstlight.analysis import stats
from firstlight.native import native

FIRSTLIGHT = Path(sys.executable).parent / "firstlight"
ALONE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
IDLE_SECONDS, TURN_SECONDS, TURNS = 60, 6, 12
STARTS, WORKERS, PATIENCE = 10_000, 4, 120
_SERVER = """
import os, sys, time
zero = os.open("/dev/zero", os.O_RDONLY)
pread = os.pread
while True:
    for _ in range(20000):
        pread(zero, 1, 0)
    sys.stdout.write(f"{time.process_time_ns()}\\n")
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


def start(directory: Path, name: str) -> float:
    """Run a container to its end; returns the seconds that took."""
    began = time.monotonic()
    subprocess.run(
        ["runc", "--root", directory / "state", "run", "--bundle", directory / "bundle", name],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    return time.monotonic() - began


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


def throughput(directory: Path, turn: int) -> tuple[float, list[float]]:
    """System calls of two servers per second of their CPU time, and the starts' seconds."""
    servers = [
        subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    until, took = time.monotonic() + TURN_SECONDS, []
    number = 0
    while time.monotonic() < until:
        due = time.monotonic() + 1
        took.append(start(directory, f"b{turn}-{number}"))
        number += 1
        time.sleep(max(0.0, due - time.monotonic()))
    rates = []
    for server in servers:
        server.terminate()
        out, _ = server.communicate()
        stamps = [int(line) for line in out.splitlines()[:-1] if line]
        rates.append(_LOOPS * (len(stamps) - 1) / ((stamps[-1] - stamps[0]) / 1e9))
    return sum(rates), took


def busy(directory: Path, *options: str) -> list[Mark]:
    """What it takes from two busy servers, and adds to a start a second."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    took: dict[bool, list[float]] = {True: [], False: []}
    turns: dict[bool, list[int]] = {True: [], False: []}
    shares = []
    for turn in range(TURNS):
        rate, seconds = throughput(directory, 2 * turn)
        rates[False].append(rate)
        took[False] += seconds
        turns[False] += [turn] * len(seconds)
        with watching(*options) as process:
            start(directory, f"w{turn}")  # its first one loads what it needs
            assert process.stdout is not None
            process.stdout.readline()
            throughput(directory, 2 * (turn + TURNS))  # spends what idle cores had earned
            before, began = cpu_seconds(process.pid), time.monotonic()
            rate, seconds = throughput(directory, 2 * turn + 1)
            shares.append((cpu_seconds(process.pid) - before) / (time.monotonic() - began))
        rates[True].append(rate)
        took[True] += seconds
        turns[True] += [turn] * len(seconds)
    cores = os.cpu_count() or 1
    own = float(np.median(shares)) / cores
    slower = stats.ratio_interval(rates[True], rates[False])
    loss = slower.value - 1 - own
    later = stats.ratio_interval(
        took[True], took[False], groups_a=turns[True], groups_b=turns[False]
    )
    name = " ".join(("watch", *options))
    return [
        Mark(
            f"{name}, a start a second: throughput of a busy server",
            f"{loss:+.1%} (calls {slower.value - 1:+.1%} [{slower.low - 1:+.1%}, "
            f"{slower.high - 1:+.1%}], own CPU {own:.1%} of {cores} cores)",
            "≥ -1 %",
            loss >= -0.01,
        ),
        Mark(
            f"{name}, a start a second: `runc run`, {np.median(took[False]) * 1e3:.0f} ms",
            f"{later.value - 1:+.1%} [{later.low - 1:+.1%}, {later.high - 1:+.1%}]",
            "≤ +3 %",
            later.value <= 1.03,
        ),
    ]


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
        yield from busy(directory, "--sample", "1")
        yield from results(directory)
        yield storm(directory)
