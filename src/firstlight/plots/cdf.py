"""How latencies are distributed: one curve a number of instances, one facet a series.

With one number of instances only, a curve is a series.
"""

from collections.abc import Iterable
from typing import Any

import altair as alt
import numpy as np

from firstlight.plots import palette, theme
from firstlight.report.figures import Figures, latencies
from firstlight.report.wording import duration

MOST = 200
"""More points than this on a curve cannot be told apart."""


def cdf(run: Figures, *, legend: bool = True) -> alt.FacetChart:
    """The share of untraced starts that were ready by a time, from their intended arrival."""
    rows = values(run)
    series = list(dict.fromkeys(row["series"] for row in rows))
    scale, ticks = theme.log_scale(*_ends(row["ms"] for row in rows))
    counts = sorted({row["instances"] for row in rows})
    alone = f"instances: {counts[0]}" if len(counts) == 1 else None
    rows = [dict(row, facet=alone or row["series"]) for row in rows]
    facets = [alone] if alone else series
    colours = curves(run)
    chart: alt.FacetChart = (
        alt.Chart()
        .mark_line(interpolate="step-after")
        .encode(
            x=alt.X(
                "ms:Q",
                title=f"latency to {run.end_point} (log)",
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
                "series:N" if alone else "instances:O",
                scale=alt.Scale(domain=series if alone else counts, range=list(colours.values())),
                legend=alt.Legend(
                    title=None if alone else "instances",
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


def curves(run: Figures) -> dict[str, str]:
    """What each curve is, and its colour."""
    measured = [point for point in run.points if point.untraced_samples]
    counts = sorted({point.instances for point in measured})
    if len(counts) == 1:
        return palette.series(list(dict.fromkeys(point.series for point in measured)))
    return dict(zip(map(str, counts), palette.growth(counts), strict=True))


def _ends(values: Iterable[float]) -> tuple[float, float]:
    found = list(values)
    return min(found), max(found)


def values(run: Figures) -> list[dict[str, Any]]:
    """``series``, ``instances``, ``ms`` and ``share``, thinned to ``MOST`` a curve."""
    rows = []
    for point in run.points:
        ordered = np.sort(latencies(point.untraced_samples))
        places = np.unique(
            np.linspace(0, len(ordered) - 1, min(len(ordered), MOST)).round().astype(int)
        )
        if not len(ordered):
            continue
        curve = [(ordered[0], 0.0)]
        curve += [(ordered[place], (int(place) + 1) / len(ordered)) for place in places]
        rows += [
            {
                "series": point.series,
                "instances": point.instances,
                "ms": float(latency) / 1e6,
                "share": share,
                "latency": duration(float(latency)),
            }
            for latency, share in curve
        ]
    return rows
