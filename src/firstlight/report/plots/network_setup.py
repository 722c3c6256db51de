"""Network set-up by the steps of the request's program: the paper's Fig. 7."""

from collections.abc import Iterable
from typing import Any

import altair as alt

from firstlight.analysis import Analysis
from firstlight.analysis.figures import PointFigures
from firstlight.report.plots.bars import Measure, stacked
from firstlight.units import duration

BETWEEN = "between steps"


def network_setup(analysis: Analysis, measure: Measure, *, legend: bool = True) -> alt.FacetChart:
    """A bar is the median time until the last request of a batch is done, as in the paper, split
    like the time of its requests. Untraced samples only."""
    return stacked(
        values(analysis),
        order=steps(analysis),
        measure=measure,
        end="the last request done",
        legend=legend,
    )


def steps(analysis: Analysis) -> list[str]:
    """The names of the steps in order, and of the time between them, in the bars."""
    names = dict.fromkeys(
        step.name
        for point in analysis.points
        if point.all_ready
        for sample in point.untraced_samples
        for step in sample.steps
    )
    return [*names, BETWEEN] if names else []


def values(analysis: Analysis) -> list[dict[str, Any]]:
    """Rows for ``bars.stacked``: a point's ``ms`` sum to its ``all_ready``."""
    rank = {name: place for place, name in enumerate(steps(analysis))}
    return [row for point in analysis.points for row in _of_point(point, rank)]


def _of_point(point: PointFigures, rank: dict[str, int]) -> Iterable[dict[str, Any]]:
    if point.all_ready is None or not rank:
        return
    spent = dict.fromkeys(rank, 0)
    for sample in point.untraced_samples:
        for step in sample.steps:
            spent[step.name] += step.end - step.start
    whole = sum(sample.latency or 0 for sample in point.untraced_samples)
    spent[BETWEEN] = max(whole - sum(spent.values()), 0)
    whole = max(sum(spent.values()), 1)
    for name, wall in spent.items():
        yield {
            "series": point.series,
            "instances": point.instances,
            "part": name,
            "opacity": 1.0,
            "where": "in this step" if name != BETWEEN else "in no step",
            "ms": wall / whole * point.all_ready.value / 1e6,
            "share": wall / whole,
            "rank": rank[name],
            "wall": duration(wall / whole * point.all_ready.value),
            "total": duration(point.all_ready.value),
        }
