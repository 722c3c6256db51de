"""A VM's start by phase: the paper's Fig. 3, 4 and 5."""

from collections.abc import Iterable
from typing import Any

import altair as alt

from firstlight.analysis import Analysis
from firstlight.analysis.boot import INIT
from firstlight.analysis.figures import PointFigures, in_order
from firstlight.report.plots.bars import Measure, stacked
from firstlight.units import duration


def boots(analysis: Analysis, measure: Measure, *, legend: bool = True) -> alt.FacetChart:
    """A bar is the sum of the phases' medians, of untraced starts."""
    return stacked(
        values(analysis),
        order=parts(analysis),
        measure=measure,
        end=analysis.end_point,
        legend=legend,
    )


def parts(analysis: Analysis) -> list[str]:
    """The phases in the bars, from the bottom."""
    return in_order(
        {name for point in analysis.points if point.boot for name, _ in point.boot.phases}
    )


def values(analysis: Analysis) -> list[dict[str, Any]]:
    """Rows for ``bars.stacked``: a point's ``ms`` sum to the sum of its medians."""
    rank = {phase: place for place, phase in enumerate(parts(analysis))}
    return [row for point in analysis.points for row in _of_point(point, rank)]


def _of_point(point: PointFigures, rank: dict[str, int]) -> Iterable[dict[str, Any]]:
    boot = point.boot
    if boot is None:
        return
    whole = max(sum(took.value for _, took in boot.phases), 1.0)
    for name, took in boot.phases:
        yield {
            "series": point.series,
            "instances": point.instances,
            "part": name,
            "opacity": 1.0,
            "where": "in the hypervisor" if name == INIT else f"by {boot.clock}",
            "ms": took.value / 1e6,
            "share": took.value / whole,
            "rank": rank[name],
            "wall": duration(took.value),
            "total": duration(whole),
        }
