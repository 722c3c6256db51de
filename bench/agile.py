"""What prepared parts gain, and what they cost to hold.

Ratios are between starts of one run, whose batches are interleaved at random. The number of starts
is given with each P99: fewer than 368 do not bound it.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.marks import Mark, rows
from firstlight import store
from firstlight.analysis import stats
from firstlight.lab import runner
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.lab.experiments.agile import AGILE
from firstlight.lab.experiments.churn import CHURN
from firstlight.lab.experiments.functions import FUNCTIONS
from firstlight.lab.load import Sequence
from firstlight.model import Point, Sample

OLD, PARTS, WHOLE, FLOOR = "runc + bridge", "agile", "agile-ready", "floor"
ALONE = 80
CROWDS = (50, 100)
REPETITIONS = 5
CALLS = 25
RATE = 200
Chosen = Callable[[Point], bool]


def cases(
    experiment: Experiment, names: tuple[str, ...], instances: int, order: str = "parallel"
) -> list[Case]:
    """The cases whose first axis has one of these names, in parallel or in sequence."""
    shape = Sequence() if order == "sequential" else None
    return [
        replace(case, point={**case.point, "order": order}, shape=shape or case.shape)
        for case in experiment.cases(Options((instances,)))
        if case.point[experiment.axes[0]] in names
    ]


def samples(experiment: Experiment, chosen: list[Case], repetitions: int) -> list[Sample]:
    """The untraced starts of these cases; all must be ready."""
    axes = tuple(chosen[0].point)
    narrow = replace(experiment, axes=axes, cases=lambda _: chosen)
    plan = runner.Plan(narrow, Options(()), repetitions, seed=1, traced=False)
    with tempfile.TemporaryDirectory() as directory:
        runner.run(plan, Path(directory))
        samples = store.read(Path(directory)).samples
    if failed := [each.error for each in samples if each.latency is None]:
        raise RuntimeError(f"{len(failed)} of {len(samples)} starts failed: {failed[0]}")
    return samples


def latencies(measured: list[Sample], chosen: Chosen) -> tuple[stats.Floats, stats.Floats]:
    """The latencies of the chosen starts in ms, and the batch of each; shape (n,)."""
    of = [each for each in measured if chosen(each.point)]
    return np.array([(each.latency or 0) / 1e6 for each in of]), np.array(
        [each.batch for each in of]
    )


def lasts(measured: list[Sample], chosen: Chosen) -> stats.Floats:
    """Each chosen batch's last start, in ms; shape (batches,)."""
    values, batches = latencies(measured, chosen)
    return np.array([values[batches == batch].max() for batch in np.unique(batches)])


def starts() -> Iterator[Mark]:
    """One at a time and many at once, against a runtime with a plugin and against the floor."""
    chosen = cases(AGILE, (OLD, PARTS, WHOLE, FLOOR), ALONE, "sequential")
    for crowd in CROWDS:
        chosen += cases(AGILE, (OLD, PARTS, WHOLE), crowd)
    result = samples(AGILE, chosen, REPETITIONS)

    def alone(name: str) -> Chosen:
        return lambda point: point["backend"] == name and point["order"] == "sequential"

    old, old_batches = latencies(result, alone(OLD))
    for name in (PARTS, WHOLE):
        new, batches = latencies(result, alone(name))
        gain = stats.ratio_interval(old, new, groups_a=old_batches, groups_b=batches)
        yield Mark(
            f"{name} against {OLD}, one at a time, median ({np.median(new):.2f} ms)",
            f"{gain.value:.1f}× [{gain.low:.1f}, {gain.high:.1f}]", "≥ 20×", gain.value >= 20,
        )  # fmt: skip
        tails = [float(np.percentile(each, 99)) for each in (old, new)]
        yield Mark(
            f"the same at P99 (of {old.size} and {new.size}: {tails[0]:.1f}, {tails[1]:.2f} ms)",
            f"{tails[0] / tails[1]:.1f}×", "≥ 20×", tails[0] >= 20 * tails[1],
        )  # fmt: skip
        yield _against_floor(name, result, alone, most=1.2 if name == PARTS else 1.0)
    for crowd in CROWDS:
        last = {
            name: lasts(result, lambda p, n=name: p["backend"] == n and p["instances"] == crowd)  # type: ignore[misc] # noqa: B023
            for name in (OLD, PARTS, WHOLE)
        }
        for name, least in ((PARTS, 100), (WHOLE, 150)):
            gain = stats.ratio_interval(last[OLD], last[name])
            yield Mark(
                f"{name}, {crowd} at once, to the last ({np.median(last[name]):.1f} ms)",
                f"{gain.value:.1f}× [{gain.low:.1f}, {gain.high:.1f}]", f"≥ {least}×",
                gain.value >= least,
            )  # fmt: skip


def _against_floor(
    name: str, measured: list[Sample], alone: Callable[[str], Chosen], most: float
) -> Mark:
    new, batches = latencies(measured, alone(name))
    floor, floor_batches = latencies(measured, alone(FLOOR))
    cost = stats.ratio_interval(new, floor, groups_a=batches, groups_b=floor_batches)
    return Mark(
        f"{name} against the floor, median ({np.median(floor):.2f} ms)",
        f"{cost.value:.2f}× [{cost.low:.2f}, {cost.high:.2f}]", f"≤ {most}×", cost.value <= most,
    )  # fmt: skip


def refill() -> Mark:
    """P99 of starts at a rate, while the pool refills and while it need not."""
    chosen = [
        case for case in cases(CHURN, ("full", "refilling"), 100) if case.point["rate"] == RATE
    ]
    result = samples(CHURN, chosen, REPETITIONS)
    full, refilling = (latencies(result, lambda p, n=n: p["pools"] == n)[0]  # type: ignore[misc]
                       for n in ("full", "refilling"))  # fmt: skip
    tails = [float(np.percentile(each, 99)) for each in (full, refilling)]
    return Mark(
        f"P99 while the pool refills, {RATE} starts a second (of {full.size} each: "
        f"{tails[0]:.2f}, {tails[1]:.2f} ms)",
        f"{tails[1] / tails[0]:.2f}×", "≤ 1.5×", tails[1] <= 1.5 * tails[0],
    )  # fmt: skip


def handlers() -> Iterator[Mark]:
    """A Python handler by zygote against ``python3`` in runc, and a WebAssembly one."""
    old = "python3 in runc"
    names = (old, "zygote", "zygote-ready", "wasm")
    result = samples(FUNCTIONS, cases(FUNCTIONS, names, CALLS, "sequential"), 4)
    by = {
        name: latencies(result, lambda p, n=name: p["function"] == n)  # type: ignore[misc]
        for name in (old, "zygote", "zygote-ready")
    }
    for name in ("zygote", "zygote-ready"):
        middle = float(np.median(by[name][0]))
        yield Mark(f"Python handler by {name}, to its first line, median of {by[name][0].size}",
                   f"{middle:.2f} ms", "≤ 1.2 ms", middle <= 1.2)  # fmt: skip
        gain = stats.ratio_interval(by[old][0], by[name][0], groups_a=by[old][1],
                                    groups_b=by[name][1])  # fmt: skip
        yield Mark(f"the same against {old} ({np.median(by[old][0]):.0f} ms)",
                   f"{gain.value:.0f}× [{gain.low:.0f}, {gain.high:.0f}]", "≥ 15×",
                   gain.value >= 15)  # fmt: skip
    wasm = [each for each in result if each.point["function"] == "wasm"]
    inside = float(np.median([each.steps[-1].end - each.steps[0].start for each in wasm])) / 1e3
    outside = float(np.median([each.steps[-1].end - each.stamps.intended for each in wasm])) / 1e3
    yield Mark(
        f"WebAssembly by the runtime's socket, request to result, median of {len(wasm)} "
        f"(in the runtime {inside:.0f} µs)", f"{outside:.0f} µs", "none", True,
    )  # fmt: skip


def measure() -> Iterator[Mark]:
    """All of them."""
    yield from rows([
        ("starts", starts), ("starts while the pool refills", lambda: [refill()]),
        ("handlers", handlers),
    ])  # fmt: skip
