"""An instance's start by phase: the paper's Fig. 6."""

from collections.abc import Iterable
from typing import Any

import altair as alt
import polars as pl

from firstlight.analysis import Analysis
from firstlight.analysis.figures import PointFigures, in_order
from firstlight.report.plots import palette
from firstlight.report.plots.bars import Measure, stacked
from firstlight.units import duration

WHERE = {"kernel": "in its system calls", "around": "around its system calls"}


def container_creation(
    analysis: Analysis, measure: Measure, *, legend: bool = True
) -> alt.FacetChart:
    """A bar is the untraced median, split like the wall time of traced starts."""
    return stacked(
        values(analysis),
        order=parts(analysis),
        measure=measure,
        end=analysis.end_point,
        legend=legend,
    )


def parts(analysis: Analysis) -> list[str]:
    """The phases in the bars, from the bottom."""
    measured = (point for point in analysis.points if point.latency)
    return in_order({part.phase for point in measured for part in point.parts})


def values(analysis: Analysis) -> list[dict[str, Any]]:
    """Rows for ``bars.stacked``: a point's ``ms`` sum to its median."""
    rank = {phase: place for place, phase in enumerate(parts(analysis))}
    return [row for point in analysis.points for row in _of_point(analysis, point, rank)]


def _of_point(
    analysis: Analysis, point: PointFigures, rank: dict[str, int]
) -> Iterable[dict[str, Any]]:
    if not point.parts or point.latency is None:
        return
    median = point.latency.median.value
    traced = [sample.index for sample in point.traced_samples]
    rows = analysis.breakdown.filter(pl.col("sample").is_in(traced))
    sums = rows.group_by("phase", "shade").agg(pl.col("wall").sum()).sort("phase", "shade")
    whole = max(int(rows.get_column("wall").sum()), 1)
    for phase, shade, wall in sums.iter_rows():
        yield {
            "series": point.series,
            "instances": point.instances,
            "part": phase,
            "opacity": palette.opacity(shade),
            "where": WHERE.get(shade, shade),
            "ms": wall / whole * median / 1e6,
            "share": wall / whole,
            "rank": 2 * rank[phase] + (shade == "around"),
            "wall": duration(wall / whole * median),
            "total": duration(median),
        }
