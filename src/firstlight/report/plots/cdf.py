"""The distribution of latencies: a curve per number of instances, a facet per series.

With a single number of instances there is a curve per series; with more series than colours, a
facet per setting of their first axis.
"""

from collections.abc import Iterable
from typing import Any

import altair as alt
import numpy as np

from firstlight.analysis import Analysis
from firstlight.analysis.figures import PointFigures, latencies, settings
from firstlight.report.plots import palette, theme
from firstlight.units import duration

MOST = 200
"""More points on a curve cannot be distinguished."""


def cdf(analysis: Analysis, *, legend: bool = True) -> alt.FacetChart:
    """The share of the headline's starts that were ready by a time after their intended arrival."""
    rows = values(analysis)
    scale, ticks = theme.log_scale(*_ends(row["ms"] for row in rows))
    facets = list(dict.fromkeys(row["facet"] for row in rows))
    by_instances = len({row["instances"] for row in rows}) > 1
    colours = curves(analysis)
    chart: alt.FacetChart = (
        alt.Chart()
        .mark_line(interpolate="step-after")
        .encode(
            x=alt.X(
                "ms:Q",
                title=f"latency to {analysis.end_point} (log)",
                scale=scale,
                axis=alt.Axis(
                    labelExpr=theme.DURATION_LABELS,
                    values=ticks,
                    labelOverlap="greedy",
                    labelSeparation=6,
                ),
            ),
            y=alt.Y("share:Q", title="starts ready", axis=alt.Axis(format="%", tickCount=5)),
            color=alt.Color(
                "curve:N",
                scale=alt.Scale(domain=list(colours), range=list(colours.values())),
                legend=alt.Legend(
                    title="instances" if by_instances else None,
                    orient="top",
                    columns=4,
                    symbolType="stroke",
                    symbolStrokeWidth=3,
                )
                if legend
                else None,
            ),
            tooltip=[
                alt.Tooltip("series:N", title="series"),
                alt.Tooltip("instances:O", title="instances"),
                alt.Tooltip("share:Q", title="starts", format=".0%"),
                alt.Tooltip("latency:N", title="ready by"),
            ],
        )
        .properties(width=250, height=180)
        .facet(
            facet=alt.Facet("facet:N", title=None, sort=facets),
            columns=theme.columns(len(facets), 2),
            data=theme.rows(rows),
        )
        .properties(usermeta=theme.cells(facets, least=190, left=58))
    )
    return chart


def curves(analysis: Analysis) -> dict[str, str]:
    """The meaning of each curve, and its colour."""
    places = _places(analysis)
    counts = sorted({point.instances for point, _, _ in places})
    if len(counts) == 1:
        return palette.series(list(dict.fromkeys(curve for _, _, curve in places)))
    return dict(zip(map(str, counts), palette.growth(counts), strict=True))


def _places(analysis: Analysis) -> list[tuple[PointFigures, str, str]]:
    """Each measured point with its facet and its curve."""
    measured = [point for point in analysis.points if point.headline_samples]
    counts = {point.instances for point in measured}
    if len(counts) > 1:
        return [(point, point.series, str(point.instances)) for point in measured]
    if len({point.series for point in measured}) <= len(palette.SERIES):
        return [(point, f"instances: {point.instances}", point.series) for point in measured]
    places = []
    for point in measured:
        first, *rest = settings(analysis.run, point.point)
        places.append((point, first, " · ".join(rest) or first))
    return places


def _ends(values: Iterable[float]) -> tuple[float, float]:
    ordered = list(values)
    return min(ordered), max(ordered)


def values(analysis: Analysis) -> list[dict[str, Any]]:
    """``facet``, ``curve``, ``ms``, ``share`` and labels, thinned to ``MOST`` rows per curve."""
    rows = []
    for point, facet, name in _places(analysis):
        ordered = np.sort(latencies(point.headline_samples))
        places = np.unique(
            np.linspace(0, len(ordered) - 1, min(len(ordered), MOST)).round().astype(int)
        )
        curve = [(ordered[0], 0.0)]
        curve += [(ordered[place], (int(place) + 1) / len(ordered)) for place in places]
        rows += [
            {
                "facet": facet,
                "curve": name,
                "series": point.series,
                "instances": point.instances,
                "ms": float(latency) / 1e6,
                "share": share,
                "latency": duration(float(latency)),
            }
            for latency, share in curve
        ]
    return rows
