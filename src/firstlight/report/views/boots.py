"""How VMs boot: the fastest, the slowest, and what each change gains."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from firstlight.analysis import Analysis, boot
from firstlight.analysis.figures import PointFigures, batches, latencies
from firstlight.analysis.stats import ratio_interval as ratio_of
from firstlight.model import Interval
from firstlight.report.records import View
from firstlight.units import duration, duration_interval, ratio_interval

_PARTS = ("hypervisor", "build", "protocol", "console", "filesystem")
"""The axes of a VM that a user can choose for the same guest."""


@dataclass(frozen=True)
class _Change:
    axis: str
    slow: PointFigures
    quick: PointFigures
    gain: Interval


def answer(analysis: Analysis) -> str | None:
    """The fastest and the slowest VM, alone; None if none was ready."""
    booted = alone(analysis)
    if not booted or len(booted) < len(fewest(analysis)):
        return None
    quickest, slowest = booted[0], booted[-1]
    sentence = f"On this machine {_boot(analysis, quickest)}"
    if slowest is not quickest:
        sentence += f"; the slowest, {slowest.name}, takes {_median(slowest)}"
    many = analysis.ends(quickest.series)[-1]
    if many.instances > quickest.instances:
        sentence += f"; with {many.instances} at once the first takes {_median(many)}"
    return f"{sentence}."


def advice(analysis: Analysis) -> str:
    """The largest gains of changing a single part, or ""."""
    best: dict[str, _Change] = {}
    for change in _changes(analysis):
        if change.gain.low > 1 and (
            change.axis not in best or change.gain.value > best[change.axis].gain.value
        ):
            best[change.axis] = change
    if not best:
        return ""
    ordered = sorted(best.values(), key=lambda change: -change.gain.value)
    return f"The largest single gains: {'; '.join(map(_words, ordered))}."


def fewest(analysis: Analysis) -> list[PointFigures]:
    """The ready points with the fewest instances, by wall time."""
    timed = [
        point for point in analysis.points
        if point.latency and point.point.get("clock", "wall") == "wall"
    ]  # fmt: skip
    least = min((point.instances for point in timed), default=0)
    return [point for point in timed if point.instances == least]


def alone(analysis: Analysis) -> list[PointFigures]:
    """The points that booted VMs, the fastest first."""
    return sorted((point for point in fewest(analysis) if point.boot), key=middle)


def middle(point: PointFigures) -> float:
    """Its median latency, in ns."""
    assert point.latency
    return point.latency.median.value


def _boot(analysis: Analysis, point: PointFigures) -> str:
    assert point.boot
    name, took = max(point.boot.phases, key=lambda phase: phase[1].value)
    median = _median(point).replace(" (", " (median, 95 % interval ")
    return (
        f"the fastest boot, {point.series}, takes {median} to its {analysis.end_point}, of which "
        f"{name} is {duration(took.value)}"
    )


def _median(point: PointFigures) -> str:
    assert point.latency
    return duration_interval(point.latency.median)


def _changes(analysis: Analysis) -> Iterator[_Change]:
    """Pairs of points with one kind of guest that differ in one part, the slower first.

    Each hypervisor has its own boot protocols, so the protocol may change with it.
    """
    header = analysis.header
    for quick, slow in combinations(alone(analysis), 2):
        if boot.kind(header, quick.point) != boot.kind(header, slow.point):
            continue
        unlike = {axis for axis, value in quick.point.items() if slow.point.get(axis) != value}
        unlike -= {"accel", "guest"}
        unlike -= {"protocol"} if "hypervisor" in unlike else set()
        if len(unlike) == 1 and unlike < {*_PARTS}:
            yield _Change(unlike.pop(), slow, quick, _gain(slow, quick))


def _gain(slow: PointFigures, quick: PointFigures) -> Interval:
    return ratio_of(
        latencies(slow.untraced_samples), latencies(quick.untraced_samples),
        groups_a=batches(slow.untraced_samples), groups_b=batches(quick.untraced_samples),
    )  # fmt: skip


def _words(change: _Change) -> str:
    quick, slow = change.quick.point, change.slow.point
    others = (axis for axis in ("guest", *_PARTS) if axis != change.axis)
    rest = [str(quick[axis]) for axis in others if quick.get(axis)]
    if quick.get("accel") != slow.get("accel"):
        rest.append(f"under {quick['accel']} instead of {slow['accel']}")
    with_ = f" ({', '.join(rest)})" if rest else ""
    return (
        f"{change.axis} {quick[change.axis]} instead of {slow[change.axis]}{with_}, "
        f"{_median(change.slow)} to {_median(change.quick)}, {ratio_interval(change.gain)}"
    )


VIEW = View(answer=answer)
