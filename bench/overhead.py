"""What tracing adds to a start, and whether tracer and load generator keep up with a hundred.

Starts with and without tracing are interleaved at random, as in every run of the lab, so that the
machine's drift meets both.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from bench.marks import Mark, rows
from firstlight import store
from firstlight.analysis import stats
from firstlight.lab import runner
from firstlight.lab.experiments import Case, Options
from firstlight.lab.experiments.catalogue import find
from firstlight.model import Point

REPETITIONS = 34
"""Each gives three starts with tracing and three without, so that either has a hundred."""
MOST_ADDED, MOST_LATE = 1.10, 0.10
BUDGET_SECONDS = 120.0
CROWD = 100


@dataclass(frozen=True)
class Workload:
    """A point of an experiment, and its name."""

    name: str
    experiment: str
    point: Point
    runtimes: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()


WORKLOADS = (
    Workload("runc run", "container-creation", {"runtime": "runc"}, ("runc",)),
    Workload("crun run", "container-creation", {"runtime": "crun"}, ("crun",)),
    Workload("a network by netlink", "network-setup", {"method": "netlink", "order": "parallel"}),
    Workload("a network by ip", "network-setup", {"method": "ip", "order": "parallel"}),
    Workload("CNI bridge ADD", "cni-breakdown", {"cni": "bridge"}),
)


def run(workload: Workload, instances: int, repetitions: int) -> pl.DataFrame:
    """The samples of a workload, traced and not, as ``store.Run.frame``: as many as time allows."""
    result = find(workload.experiment)

    def cases(options: Options) -> list[Case]:
        return [
            case
            for case in result.cases(options)
            if all(case.point.get(axis) == value for axis, value in workload.point.items())
        ]

    narrow = replace(result, cases=cases)
    plan = runner.Plan(
        narrow, Options((instances,), workload.runtimes, workload.networks), repetitions, seed=1,
        budget=BUDGET_SECONDS,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        runner.run(plan, Path(directory))
        return store.read(Path(directory)).frame


def added(workload: Workload, repetitions: int = REPETITIONS, most: float = MOST_ADDED) -> Mark:
    """The ratio of the medians with and without tracing, with its bootstrap interval."""
    frame = run(workload, 1, repetitions)
    on, off = _latencies(frame, traced=True), _latencies(frame, traced=False)
    ratio = stats.ratio_interval(on, off)
    return Mark(
        f"tracing adds to {workload.name} ({np.median(off) / 1e6:.1f} ms, {on.size} + {off.size})",
        f"{ratio.value - 1:+.1%} [{ratio.low - 1:+.1%}, {ratio.high - 1:+.1%}], "
        f"CPU time {_cpu(frame, traced=True) / _cpu(frame, traced=False) - 1:+.1%}",
        f"≤ {most - 1:+.0%}",
        ratio.value <= most,
    )


def crowd(repetitions: int = 3) -> list[Mark]:
    """A hundred runc at once: lost events, and the load generator's lateness."""
    frame = run(WORKLOADS[0], CROWD, repetitions)
    on, off = _latencies(frame, traced=True), _latencies(frame, traced=False)
    lost = int(frame["lost"].to_numpy().max())
    failed = frame.height - on.size - off.size
    late = float(frame.filter(~pl.col("traced"))["lateness"].to_numpy().max() / np.median(off))
    return [
        Mark(f"events lost, {CROWD} runc at once", str(lost), "0", lost == 0),
        Mark(f"starts that failed, of {frame.height}", str(failed), "0", failed == 0),
        Mark(f"latest spawn's lateness by median latency, {CROWD} runc at once", f"{late:.1%}",
             f"< {MOST_LATE:.0%}", late < MOST_LATE),
        Mark(f"tracing adds to {CROWD} runc at once ({np.median(off) / 1e6:.0f} ms)",
             f"{np.median(on) / np.median(off) - 1:+.1%}", "none", True),
    ]  # fmt: skip


def _latencies(frame: pl.DataFrame, *, traced: bool) -> stats.Floats:
    """The latencies of the starts that were ready, in ns; shape (n,)."""
    chosen = frame.filter((pl.col("traced") == traced) & (pl.col("ending") == "ready"))
    return chosen["latency"].to_numpy().astype(np.float64)


def _cpu(frame: pl.DataFrame, *, traced: bool) -> float:
    """The median CPU time of a start, in ns: it depends less on other work than the latency."""
    chosen = frame.filter((pl.col("traced") == traced) & (pl.col("ending") == "ready"))
    return float(np.median((chosen["user_ns"] + chosen["system_ns"]).to_numpy()))


def measure() -> Iterator[Mark]:
    """All of them."""
    each = [(f"tracing of {load.name}", lambda load=load: [added(load)]) for load in WORKLOADS]
    yield from rows([*each, (f"{CROWD} at once", crowd)])
