"""Compares with other tools: bpftrace for totals, perf trace for calls, strace for its cost."""

import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from bench.marks import Mark
from firstlight.host.workspace import Workspace, sandbox
from firstlight.lab.backends import Execute
from firstlight.lab.backends.oci import Oci
from firstlight.lab.load import Generator, Outcome
from firstlight.trace.bpf import Tracer

STARTS = 20
MOST_APART_US = 200.0
LEAST_ALIKE = 0.95
_DEADLINE = 60.0
_LONG_US = 100.0
_LEFT_OUT = frozenset({"read", "execve", "execveat"})
"""Reads are long waits for one another, which would hide the rest. perf trace loses when a call
began in which the program changes, and says 2**64 ns."""
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


def _start(generator: Generator, workspace: Workspace, batch: int, *before: str) -> Outcome:
    """One start of runc, with another command before its own."""
    with Oci("runc").bundles(workspace) as bundles:
        command = bundles.make(0).execute(workspace.environment)
        outcome = _run(generator, batch, replace(command, argv=(*before, *command.argv)))
        generator.stop(batch, deadline=_DEADLINE)
    return outcome


def _run(generator: Generator, batch: int, command: Execute) -> Outcome:
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
        sandbox("bench-totals") as place,
        Generator() as generator,
        _bpftrace(generator.pid) as seen,
    ):
        outcomes = [_start(generator, place, batch) for batch in range(starts)]
    forks = {pid: at for event, pid, at in seen if event == "fork"}
    execs = sorted(at for event, _, at in seen if event == "exec")
    apart, latencies = [], []
    for outcome in outcomes:
        executed = next(at for at in execs if at > outcome.intended)
        apart.append((_latency(outcome) - (executed - forks[outcome.pid])) / 1000)
        latencies.append(_latency(outcome) / 1000)
    middle, worst = float(np.median(apart)), float(np.max(np.abs(apart)))
    return Mark(
        f"latency less bpftrace's fork to execve, {starts} runc ({np.median(latencies):.0f} µs)",
        f"{middle:.0f} µs, at most {worst:.0f}", f"≤ {MOST_APART_US:.0f} µs",
        middle <= MOST_APART_US,
    )  # fmt: skip


def calls(starts: int = 5) -> Mark:
    """Whether the long calls that perf trace saw are in our spans, in the same starts at once."""
    result: dict[str, float] = defaultdict(float)
    request: dict[str, float] = defaultdict(float)
    with (
        tempfile.TemporaryDirectory() as directory,
        sandbox("bench-calls") as place,
        Generator() as generator,
        Tracer(generator.pid) as tracer,
    ):
        for batch in range(starts):
            report = Path(directory) / f"{batch}"
            tracer.start()
            outcome = _start(
                generator, place, batch, "/usr/bin/perf", "trace", "-T", "-o", str(report), "--"
            )
            tracer.stop()
            spans = tracer.collect({outcome.pid: 0}).filter(kind="call")
            ours = _durations(spans.filter(spans["result"].is_not_null()))
            for line in report.read_text(errors="replace").splitlines():
                match = _PERF_LINE.match(line)
                key = (int(match[2]), match[3]) if match else None
                micros = float(match[1]) * 1000 if match else 0.0
                if key in ours and micros > _LONG_US and key[1] not in _LEFT_OUT:
                    request[key[1]] += micros
                    result[key[1]] += micros * _has(ours[key], micros)
    sys.stdout.write(f"{'call':<16}{'by perf trace':>15}{'by us too':>12}  µs a start\n")
    for name in sorted(request, key=lambda name: -request[name])[:12]:
        sys.stdout.write(
            f"{name:<16}{request[name] / starts:>15.0f}{result[name] / starts:>12.0f}\n"
        )
    share = sum(result.values()) / sum(request.values())
    return Mark(
        f"time of perf trace's calls over {_LONG_US:.0f} µs that we saw alike",
        f"{share:.1%}", f"≥ {LEAST_ALIKE:.0%}", share >= LEAST_ALIKE,
    )  # fmt: skip


def _durations(spans: pl.DataFrame) -> dict[tuple[int, str], list[float]]:
    """The µs of every call, by thread and name."""
    taken: dict[tuple[int, str], list[float]] = defaultdict(list)
    for tid, name, start, end in spans.select("tid", "name", "start", "end").iter_rows():
        taken[tid, name].append((end - start) / 1000)
    return taken


def _has(durations: list[float], micros: float) -> bool:
    """Whether one of them is alike; perf trace itself adds some 15 µs."""
    nearest = min(durations, key=lambda each: abs(each - micros))
    return abs(nearest - micros) <= max(20.0, 0.05 * micros)


def strace(starts: int = 5) -> Mark:
    """How many times slower runc is under strace."""
    with sandbox("bench-strace") as place, Generator() as generator:
        plain, traced = [], []
        for batch in range(0, 2 * starts, 2):
            plain.append(_latency(_start(generator, place, batch)))
            traced.append(_latency(_start(
                generator, place, batch + 1, "/usr/bin/strace", "-f", "-ttt", "-T", "-o",
                "/dev/null")))  # fmt: skip
    ratio = float(np.median(traced) / np.median(plain))
    return Mark("strace makes runc slower", f"{ratio:.1f} times", "none", True)


def measure() -> Iterator[Mark]:
    """Ask each tool that is installed."""
    for tool, ask in (("bpftrace", totals), ("perf", calls), ("strace", strace)):
        if shutil.which(tool):
            yield ask()
        else:
            sys.stdout.write(f"{tool} is not installed: not asked\n")
