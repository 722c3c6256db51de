"""Checks that a start's time goes to the right phase, against the measured programs themselves.

While an experiment runs a Go program, uprobes stamp some of its functions. Each instant of a
start's critical path then has two names: the innermost such function, and the phase by
``breakdown.timeline``. A table says which phases are right for a function, from its source.
firstlight's netsetup stamps its own steps.
"""

import sys
import tempfile
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from bench.gofunctions import GoProgram
from bench.marks import Mark
from bench.uprobes import Probes, Visit
from firstlight import store
from firstlight.analysis import breakdown
from firstlight.lab import runner
from firstlight.lab.experiments import Options
from firstlight.lab.experiments.catalogue import find
from firstlight.model import Sample

REPETITIONS = 5
MARK = 0.90
_LIB = "github.com/opencontainers/runc/libcontainer"
_CNI = "github.com/containernetworking/plugins/pkg"
_START, _INITIALISERS, _ELSEWHERE = "Go's own start", "package initialisers", "elsewhere"
_STARTED = {_START: {"process.start"}, _INITIALISERS: {"process.start"}}


@dataclass(frozen=True)
class Subject:
    """A Go program, an experiment that runs it, and what its functions are for.

    ``work`` are the functions where its own work begins, ``expected`` the phases of others.
    """

    program: str
    experiment: str
    options: Options
    work: tuple[str, ...]
    expected: dict[str, set[str]]

    @property
    def edges(self) -> dict[str, str]:
        """Functions that never return, and the name of the time from there on."""
        own = dict.fromkeys(self.work, _ELSEWHERE)
        return {"runtime.rt0_go": _START, "runtime.main": _INITIALISERS, **own}


RUNC = Subject(
    "/usr/sbin/runc",
    "container-creation",
    Options((1,), ("runc",)),
    ("main.main", f"{_LIB}.(*LinuxFactory).StartInitialization"),
    {
        **_STARTED,
        "main.setupSpec": {"config"},
        f"{_LIB}/specconv.CreateLibcontainerConfig": {"config"},
        "main.loadFactory": {"config"},
        f"{_LIB}/cgroups/fs.NewManager": {"cgroup"},
        "main.newSignalHandler": {"signals"},
        f"{_LIB}.(*linuxContainer).createExecFifo": {"handshake"},
        "os/exec.(*Cmd).Start": {"fork"},
        f"{_LIB}/cgroups/fs.(*manager).Apply": {"cgroup"},
        f"{_LIB}/cgroups/fs.(*manager).Set": {"cgroup"},
        f"{_LIB}.(*initProcess).waitForChildExit": {"handshake"},
        f"{_LIB}.(*linuxContainer).updateState": {"config"},
        f"{_LIB}.newContainerInit": {"config", "handshake"},
        f"{_LIB}.setupNetwork": {"link.up", "link.query"},
        f"{_LIB}.prepareRootfs": {"mount"},
        f"{_LIB}.syncParentHooks": {"handshake"},
        f"{_LIB}.finalizeRootfs": {"mount"},
        f"{_LIB}/keys.JoinSessionKeyring": {"security"},
        f"{_LIB}.readonlyPath": {"security"},
        f"{_LIB}.maskPath": {"security"},
        f"{_LIB}.syncParentReady": {"handshake"},
        f"{_LIB}.finalizeNamespace": {"security"},
        f"{_LIB}/seccomp.InitSeccomp": {"security"},
        f"{_LIB}/system.Exec": {"exec"},
    },
)
BRIDGE = Subject(
    "/usr/lib/cni/bridge",
    "cni-breakdown",
    Options((1,), networks=("bridge",)),
    ("main.main",),
    {
        **_STARTED,
        "main.loadNetConf": {"config", "handshake"},
        "main.setupBridge": {"bridge", "link.query", "link.sysctl", "link.up"},
        f"{_CNI}/ns.GetNS": {"netns.switch"},
        f"{_CNI}/ns.(*netNS).Set": {"netns.switch"},
        f"{_CNI}/ip.makeVethPair": {"veth"},
        f"{_CNI}/ipam.ConfigureIface": {"ipam", "route", "link.up", "link.query", "link.sysctl"},
        "main.ensureAddr": {"ipam", "link.query"},
        f"{_CNI}/utils/sysctl.Sysctl": {"link.sysctl", "garp"},
    },
)
STEPS = {
    "netns": {"ns.net", "netns.name", "netns.switch"},
    "veth": {"veth"},
    "move": {"veth.move"},
    "host.up": {"link.up"},
    "container.up": {"link.up"},
    "address": {"ipam"},
    "route": {"route"},
}
"""The phases of netsetup's steps."""

Confusion = dict[str, dict[str, int]]
"""Nanoseconds by function and phase."""


@dataclass(frozen=True)
class Evidence:
    """A run of a program, and the stamps of its functions."""

    run: store.Run
    visits: list[Visit]


def observe(subject: Subject, directory: Path, repetitions: int = REPETITIONS) -> Evidence:
    """Run a program under firstlight and under uprobes at once. Raises OSError without it."""
    program = GoProgram(Path(subject.program).resolve())
    known = program.functions()
    wanted = [known[name] for name in (*subject.edges, *subject.expected) if name in known]
    plan = runner.Plan(find(subject.experiment), subject.options, repetitions, seed=1)
    with Probes(program, wanted) as probes:
        runner.run(plan, directory)
        return Evidence(store.read(directory), probes.visits())


def confusion(subject: Subject, evidence: Evidence) -> tuple[Confusion, int]:
    """The time of each function by phase, over all traced starts; and how many those were."""
    table: Confusion = defaultdict(lambda: defaultdict(int))
    starts = 0
    for _, spans in evidence.run.span_batches():
        for sample in evidence.run.samples:
            own = spans.filter(sample=sample.index)
            if own.is_empty() or sample.stamps.ready is None:
                continue
            starts += 1
            places = _places(subject, evidence.visits, own, sample)
            path = breakdown.timeline(evidence.run, sample)
            for start, end, phase, pid in path.select("start", "end", "phase", "pid").iter_rows():
                for function, length in _split(places.get(pid, []), start, end):
                    table[function][phase] += length
    return table, starts


def _places(
    subject: Subject, visits: list[Visit], spans: pl.DataFrame, sample: Sample
) -> dict[int, list[tuple[int, str]]]:
    """The function of each process over time. By process, because goroutines change threads."""
    process = dict(spans.select("tid", "pid").iter_rows())
    begin, end = sample.stamps.intended, sample.stamps.ready or 0
    places: dict[int, list[tuple[int, str]]] = defaultdict(list)
    stacks: dict[int, list[str]] = defaultdict(lambda: [_ELSEWHERE])
    for visit in visits:
        if visit.tid not in process or not begin <= visit.at <= end:
            continue
        pid = process[visit.tid]
        stack = stacks[pid]
        if visit.function in subject.edges:
            if not visit.returned:
                stack[:] = [subject.edges[visit.function]]
        elif (
            not visit.returned and stack[-1] != visit.function
        ):  # otherwise a stack grew: entered again
            stack.append(visit.function)
        elif visit.returned and visit.function in stack:
            del stack[stack.index(visit.function) :]
        places[pid].append((visit.at, stack[-1]))
    return places


def _split(places: list[tuple[int, str]], start: int, end: int) -> list[tuple[str, int]]:
    """The functions that own the time from ``start`` to ``end``, and how much of it."""
    at = bisect_right(places, start, key=lambda place: place[0])
    edges = [start, *(when for when, _ in places[at:] if when < end), end]
    names = [places[at - 1][1] if at else _ELSEWHERE, *(name for _, name in places[at:])]
    return [(name, b - a) for name, a, b in zip(names, edges, edges[1:], strict=False)]


def steps(directory: Path, repetitions: int = REPETITIONS) -> tuple[Confusion, int]:
    """The time of each step that netsetup stamped, by phase; and over how many requests."""
    plan = runner.Plan(find("network-setup"), Options((1,)), repetitions, seed=1)
    runner.run(plan, directory)
    run = store.read(directory)
    table: Confusion = defaultdict(lambda: defaultdict(int))
    requests = [
        each for each in run.samples
        if each.traced and each.steps and each.point["method"] == "netlink"
    ]  # fmt: skip
    for sample in requests:
        path = breakdown.timeline(run, sample)
        for step in sample.steps:
            for start, end, phase in path.select("start", "end", "phase").iter_rows():
                table[step.name][phase] += max(0, min(end, step.end) - max(start, step.start))
    return table, len(requests)


def lines(table: Confusion, starts: int, expected: dict[str, set[str]]) -> list[str]:
    """The table as text: a line per function, the longest first."""
    words = [f"{'in':<28}{'µs a start':>11}{'right':>8}  charged to"]
    for function, charged in sorted(table.items(), key=lambda row: -sum(row[1].values())):
        total = sum(charged.values())
        right = sum(charged.get(phase, 0) for phase in expected.get(function, ()))
        share = f"{right / total:.0%}" if function in expected else ""
        largest = sorted(charged.items(), key=lambda cell: -cell[1])[:5]
        phases = ", ".join(f"{phase} {time / total:.0%}" for phase, time in largest)
        name = function.rsplit("/", 1)[-1].removeprefix("libcontainer.")
        words.append(f"{name:<28}{total / starts / 1000:>11.0f}{share:>8}  {phases}")
    return words


def agreement(table: Confusion, expected: dict[str, set[str]]) -> float:
    """The share of the time in known functions that was charged to a right phase."""
    known = {function: row for function, row in table.items() if function in expected}
    right = sum(known[name].get(phase, 0) for name in known for phase in expected[name])
    return right / sum(sum(row.values()) for row in known.values())


def _mark(of: str, table: Confusion, starts: int, expected: dict[str, set[str]]) -> Mark:
    sys.stdout.write("\n".join(lines(table, starts, expected)) + "\n\n")
    share = agreement(table, expected)
    longest = max(expected.keys() & table.keys(), key=lambda name: sum(table[name].values()))
    rest = agreement({name: row for name, row in table.items() if name != longest}, expected)
    return Mark(
        f"attribution agrees with {of}; without the longest of them",
        f"{share:.1%}; {rest:.1%}", f"≥ {MARK:.0%}", min(share, rest) >= MARK,
    )  # fmt: skip


def measure() -> Iterator[Mark]:
    """Print each table, and yield its share of right time."""
    for subject in (RUNC, BRIDGE):
        if not Path(subject.program).exists():
            sys.stdout.write(f"{subject.program} is not installed: skipped\n")
            continue
        with tempfile.TemporaryDirectory() as directory:
            table, starts = confusion(subject, observe(subject, Path(directory)))
        name = Path(subject.program).name
        yield _mark(f"{name}'s own functions", table, starts, subject.expected)
    with tempfile.TemporaryDirectory() as directory:
        table, starts = steps(Path(directory))
    yield _mark("netsetup's own stamps", table, starts, STEPS)
