"""Which node of a cluster is slow, and in which phase."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from firstlight.analysis import Analysis
from firstlight.analysis.figures import PointFigures
from firstlight.report.points import apart, median, middle, over
from firstlight.report.records import Table, View
from firstlight.units import duration, ratio_interval

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
        return (
            f"Between {len(points)} nodes no difference is seen: {_subject(analysis, fast)} takes "
            f"{duration(middle(fast))} to {duration(middle(slow))} (medians)."
        )
    times = ratio_interval(over(slow, fast))
    return (
        f"{_node(slow)} is the slowest node: there {_subject(analysis, slow)} takes {median(slow)},"
        f" {times} as long as on {_node(fast)}.{_why(slow, fast)}"
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
    """The phase and cause on which the slow node spends more time than the fast one."""
    if more := _more(slow, fast):
        phase, ns = more
        spent = next(part for part in slow.parts if part.phase == phase)
        cause = f", {spent.causes[0][1]:.0%} of it {spent.causes[0][0]}" if spent.causes else ""
        return f" The greatest difference is {phase}, {duration(ns)} more{cause}."
    return ""


def _more(slow: PointFigures, fast: PointFigures) -> tuple[str, float] | None:
    before = {part.phase: part.wall.value for part in fast.parts}
    more = [(part.phase, part.wall.value - before.get(part.phase, 0.0)) for part in slow.parts]
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
                    "–" if point is fast else ratio_interval(over(point, fast)),
                    f"{more[0]} + {duration(more[1])}" if more else "–",
                )
            )
    if rows:
        headings = ("node and setting", "median", "over the fastest", "greatest difference")
        yield Table("nodes, the fastest of each setting first", headings, tuple(rows))


VIEW = View(answer=_answer, tables=_tables)
