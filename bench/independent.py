"""Whether other people's tools see the same: bpftrace the totals, perf trace the calls.

strace is asked too, for what it costs.
"""

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.marks import Mark
from firstlight.backends import Command, Place
from firstlight.backends.oci import Oci
from firstlight.load import Generator, Outcome
from firstlight.place import isolated
from firstlight.tracers.bpf import Tracer

STARTS = 20
MOST_APART_US = 200.0
MOST_APART = 0.05
_DEADLINE = 60.0
_LONG_US = 100.0
"""Calls that take so long; perf trace itself adds some 15 µs to each."""
_PERF_LINE = re.compile(
    r"\s*[\d.]+ \(\s*([\d.]+) ms\): .*?/(\d+) +(?:\.\.\. \[continued\]: )?(\w+)\("
)
_PROBES = """
tracepoint:sched:sched_process_fork /args->parent_pid == GENERATOR/
    { printf("fork %d %llu\\n", args->child_pid, nsecs); }
tracepoint:sched:sched_process_exec /str(args->filename) == "/bin/payload"/
    { printf("exec %d %llu\\n", pid, nsecs); }
BEGIN { printf("ready 0 0\\n"); }
"""


def _start(generator: Generator, place: Place, batch: int, *before: str) -> Outcome:
    """One start of runc, with another command before its own."""
    with Oci("runc").prepared({}, 1, place) as (command,):
        outcome = _run(generator, batch, replace(command, argv=(*before, *command.argv)))
        generator.stop(batch, deadline=_DEADLINE)
    return outcome


def _run(generator: Generator, batch: int, command: Command) -> Outcome:
    (outcome,) = generator.run(batch, [command], deadline=_DEADLINE)
    return outcome


def _latency(outcome: Outcome) -> int:
    """From the intended arrival to the payload's own stamp, in ns."""
    stamp = next(line for line in outcome.output.splitlines() if "firstlight ready" in line)
    return int(stamp.split()[2]) - outcome.intended


@contextmanager
def _bpftrace(generator: int) -> Iterator[list[tuple[str, int, int]]]:
    """What bpftrace saw, complete when it is left: the event, the process and the time in ns."""
    seen: list[tuple[str, int, int]] = []
    with subprocess.Popen(
        ["bpftrace", "-e", _PROBES.replace("GENERATOR", str(generator))],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("ready"):
                break
        yield seen
        process.terminate()
        for line in process.stdout:
            words = line.split()
            if len(words) == 3 and words[0] in ("fork", "exec"):
                seen.append((words[0], int(words[1]), int(words[2])))


def totals(starts: int = STARTS) -> Mark:
    """bpftrace's time from the fork to the payload's execve, against ours to its first stamp."""
    with (
        isolated("bench-totals") as place,
        Generator() as generator,
        _bpftrace(generator.pid) as seen,
    ):
        outcomes = [_start(generator, place, batch) for batch in range(starts)]
    forks = {pid: at for event, pid, at in seen if event == "fork"}
    execs = sorted(at for event, _, at in seen if event == "exec")
    apart, latencies = [], []
    for one in outcomes:
        executed = next(at for at in execs if at > one.intended)
        apart.append((_latency(one) - (executed - forks[one.pid])) / 1000)
        latencies.append(_latency(one) / 1000)
    middle, worst = float(np.median(apart)), float(np.max(np.abs(apart)))
    return Mark(
        f"latency less bpftrace's fork to execve, {starts} runc ({np.median(latencies):.0f} µs)",
        f"{middle:.0f} µs, at most {worst:.0f}", f"≤ {MOST_APART_US:.0f} µs",
        middle <= MOST_APART_US,
    )  # fmt: skip


def calls(starts: int = 5) -> Mark:
    """The time of long calls by perf trace and by our tracer, in the same starts at once."""
    with (
        tempfile.TemporaryDirectory() as directory,
        isolated("bench-calls") as place,
        Generator() as generator,
        Tracer(generator.pid) as tracer,
    ):
        theirs: dict[str, float] = defaultdict(float)
        ours: dict[str, float] = defaultdict(float)
        for batch in range(starts):
            report = Path(directory) / f"{batch}"
            tracer.start()
            outcome = _start(
                generator, place, batch, "/usr/bin/perf", "trace", "-T", "-o", str(report), "--"
            )
            tracer.stop()
            spans = tracer.collect({outcome.pid: 0}).filter(kind="call")
            spans = spans.filter(spans["result"].is_not_null() & (spans["pid"] != outcome.pid))
            threads = set(spans["tid"].to_list())
            names = set(spans["name"].to_list())
            for name, start, end in spans.select("name", "start", "end").iter_rows():
                if end - start > _LONG_US * 1000:
                    ours[name] += (end - start) / 1000
            for line in report.read_text(errors="replace").splitlines():
                found = _PERF_LINE.match(line)
                if found and int(found[2]) in threads and found[3] in names:
                    micros = float(found[1]) * 1000
                    if micros > _LONG_US:
                        theirs[found[3]] += micros
    del ours["read"], theirs["read"]  # long waits for one another would hide all else
    sys.stdout.write(f"{'call':<16}{'firstlight':>12}{'perf trace':>12}  µs a start\n")
    for name in sorted(ours, key=lambda name: -ours[name])[:12]:
        sys.stdout.write(f"{name:<16}{ours[name] / starts:>12.0f}{theirs[name] / starts:>12.0f}\n")
    apart = abs(sum(ours.values()) - sum(theirs.values())) / sum(theirs.values())
    return Mark(
        f"time in calls over {_LONG_US:.0f} µs, against perf trace of the same {starts} runc",
        f"{apart:.1%} apart", f"≤ {MOST_APART:.0%}", apart <= MOST_APART,
    )  # fmt: skip


def strace(starts: int = 5) -> Mark:
    """How many times slower runc is under strace."""
    with isolated("bench-strace") as place, Generator() as generator:
        plain, traced = [], []
        for batch in range(0, 2 * starts, 2):
            plain.append(_latency(_start(generator, place, batch)))
            traced.append(_latency(_start(
                generator, place, batch + 1, "/usr/bin/strace", "-f", "-ttt", "-T", "-o",
                "/dev/null")))  # fmt: skip
    ratio = float(np.median(traced) / np.median(plain))
    return Mark("strace makes runc slower", f"{ratio:.1f} times", "none", True)


def measure() -> Iterator[Mark]:
    """All of them."""
    yield totals()
    yield calls()
    yield strace()
