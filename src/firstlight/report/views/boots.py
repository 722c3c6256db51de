"""How VMs boot: the fastest, the slowest, and what each change gains."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from firstlight.analysis import Analysis, boot
from firstlight.analysis.figures import PointFigures
from firstlight.model import Interval
from firstlight.report.points import (
    TOO_FEW,
    apart,
    batch_count,
    like,
    long,
    median,
    middle,
    over,
    unseen,
)
from firstlight.report.records import View
from firstlight.units import duration, ratio_interval, several

MOST_NAMES = 4
_PARTS = ("hypervisor", "build", "protocol", "console", "filesystem")
"""The axes of a VM that a user can choose for the same guest."""


@dataclass(frozen=True)
class _Change:
    axis: str
    slow: PointFigures
    quick: PointFigures
    gain: Interval


def answer(analysis: Analysis) -> str | None:
    """The fastest and the slowest VM alone, where their intervals differ; None if none booted."""
    booted = alone(analysis)
    if not booted or len(booted) < len(fewest(analysis)):
        return None
    first, *rest = booted
    fast = [first, *like(first, rest, len(rest))]
    sentence = f"On this machine {_boot(analysis, fast)}"
    if len(fast) < len(booted) and apart(booted[-1], first, len(rest)):
        sentence += f"; {_slowest(booted, fast)}"
    many = analysis.ends(first.series)[-1]
    if many.instances > first.instances:
        sentence += f". With {many.instances} at once, {first.series} takes {median(many)}"
    return f"{sentence}."


def advice(analysis: Analysis) -> str:
    """What changing a single part gains, where a gain is certain; or ""."""
    best: dict[str, _Change] = {}
    changes = list(_changes(analysis))
    for change in changes:
        if apart(change.slow, change.quick, len(changes)) and (
            change.axis not in best or change.gain.value > best[change.axis].gain.value
        ):
            best[change.axis] = change
    if not best:
        return ""
    ordered = sorted(best.values(), key=lambda change: -change.gain.value)
    return f"What a single change gains: {'; '.join(map(_words, ordered))}."


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


def _boot(analysis: Analysis, group: list[PointFigures]) -> str:
    point, *equals = group
    assert point.boot
    only = len(alone(analysis)) == 1
    name, took = max(point.boot.phases, key=lambda phase: phase[1].value)
    figure = median(point).replace(" (", " (median, 95 % interval ")
    subject = f"{point.series}" if equals or only else f"the fastest boot, {point.series},"
    clause = (
        f"{subject} takes {figure} to its {analysis.end_point}, "
        f"{duration(took.value)} of it in {name}"
    )
    if equals:
        why = unseen(*group, comparisons=len(alone(analysis)) - 1)
        clause += f"; {why} {'with' if why == TOO_FEW else 'between it and'} {_several(equals)}"
    return clause


def _slowest(booted: list[PointFigures], fast: list[PointFigures]) -> str:
    """The slowest, if none of them is told apart from neither end."""
    *others, last = booted
    group = [*like(last, others, len(others)), last]
    if any(point in fast for point in group):
        times = long(over(last, booted[0]), batch_count(last, booted[0]))
        return f"{last.name} takes {median(last)}, {times} as {booted[0].series}"
    if len(group) == 1:
        return f"the slowest, {last.name}, takes {median(last)}"
    return f"the slowest, {_several(group)}, take {median(group[0])} to {median(last)}"


def _several(points: list[PointFigures]) -> str:
    """The names of some points, or how many they are."""
    if len(points) > MOST_NAMES:
        return f"{len(points)} others"
    return several([point.name for point in points])


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
            yield _Change(unlike.pop(), slow, quick, over(slow, quick))


def _words(change: _Change) -> str:
    quick, slow = change.quick.point, change.slow.point
    others = (axis for axis in ("guest", *_PARTS) if axis != change.axis)
    rest = [str(quick[axis]) for axis in others if quick.get(axis)]
    if quick.get("accel") != slow.get("accel"):
        rest.append(f"under {quick['accel']} instead of {slow['accel']}")
    with_ = f" ({', '.join(rest)})" if rest else ""
    return (
        f"{change.axis} {quick[change.axis]} instead of {slow[change.axis]}{with_}, "
        f"{median(change.slow)} to {median(change.quick)}, {ratio_interval(change.gain)}"
    )


VIEW = View(answer=answer)
