"""Which node of a cluster is slow, and in which phase."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from firstlight.analysis import Analysis
from firstlight.analysis.figures import PointFigures
from firstlight.model import Interval
from firstlight.report.points import apart, as_long, like, median, middle, unseen
from firstlight.report.records import Table, View
from firstlight.units import duration

if TYPE_CHECKING:
    from firstlight.model import Setting

_AXIS = "node"


def _settings(analysis: Analysis) -> Iterator[list[PointFigures]]:
    """The nodes' points of each setting, the fastest first."""
    settings: dict[frozenset[tuple[str, Setting]], list[PointFigures]] = {}
    for point in analysis.points:
        rest = frozenset((name, value) for name, value in point.point.items() if name != _AXIS)
        settings.setdefault(rest, []).append(point)
    for points in settings.values():
        measured = sorted((point for point in points if point.latency), key=middle)
        if measured:
            yield measured


def _answer(analysis: Analysis) -> str | None:
    points = next(_settings(analysis), None)
    if points is None:
        return None
    fast, slow = points[0], points[-1]
    nodes = len({point.point[_AXIS] for point in analysis.points})
    whole = f"of {nodes} nodes" if len(points) == nodes else f"of {nodes} nodes, {len(points)} have"
    if len(points) < 2:
        return (
            f"On {_node(fast)} {_subject(analysis, fast)} takes {median(fast)}; {whole} a figure."
        )
    if not apart(slow, fast, len(points) - 1):
        why = unseen(fast, slow, comparisons=len(points) - 1)
        return (
            f"Between {len(points)} nodes, {why}: {_subject(analysis, fast)} takes "
            f"{duration(middle(fast))} to {duration(middle(slow))} (medians)."
        )
    is_slowest = not like(slow, points[:-1], len(points) - 1)
    there = f"{_node(slow)} is the slowest node: there" if is_slowest else f"On {_node(slow)}"
    return (
        f"{there} {_subject(analysis, slow)} takes {median(slow)},"
        f" {as_long(slow, fast)} as on {_node(fast)}.{_why(slow, fast)}"
    )


def _subject(analysis: Analysis, point: PointFigures) -> str:
    """One start, without the node in the name of its series."""
    series = ", ".join(
        str(value) for name, value in point.point.items() if name not in (_AXIS, "instances")
    )
    return analysis.header.presentation.name(series=series, experiment=analysis.header.experiment)


def _node(point: PointFigures) -> str:
    return str(point.point[_AXIS])


def _why(slow: PointFigures, fast: PointFigures) -> str:
    """The phase and cause on which the slow node certainly spends more time than the fast one."""
    if more := _more(slow, fast):
        phase, ns = more
        spent = next(part for part in slow.parts if part.phase == phase)
        cause = f", {spent.causes[0][1]:.0%} of it {spent.causes[0][0]}" if spent.causes else ""
        return f" Of that {duration(ns)} is in {phase}{cause}."
    return ""


def _more(slow: PointFigures, fast: PointFigures) -> tuple[str, float] | None:
    before = {part.phase: part.wall for part in fast.parts}
    none = Interval(0.0, 0.0, 0.0)
    more = [
        (part.phase, part.wall.value - was.value)
        for part in slow.parts
        if part.wall.low > (was := before.get(part.phase, none)).high
    ]
    greatest = max(more, key=lambda each: each[1], default=("", 0.0))
    return greatest if greatest[1] > 0 else None


def _tables(analysis: Analysis) -> Iterator[Table]:
    rows = []
    for points in _settings(analysis):
        fast = points[0]
        for point in points:
            more = _more(point, fast) if point is not fast else None
            rows.append(
                (
                    point.name,
                    median(point),
                    "–" if point is fast else as_long(point, fast),
                    f"{more[0]} + {duration(more[1])}" if more else "–",
                )
            )
    if rows:
        headings = ("node and setting", "median", "beside the first", "phase with most more")
        yield Table("nodes of each setting, by median", headings, tuple(rows))


VIEW = View(answer=_answer, tables=_tables)
