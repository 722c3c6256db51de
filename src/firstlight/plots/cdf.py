"""How latencies are distributed: one curve a number of instances, one facet a series."""

from collections.abc import Iterable
from typing import Any

import altair as alt
import numpy as np

from firstlight.plots import palette, theme
from firstlight.report.figures import Figures, latencies
from firstlight.report.wording import duration

MOST = 200
"""More points than this on a curve cannot be told apart."""


def cdf(run: Figures) -> alt.FacetChart:
    """The share of untraced starts that were ready by a time, from their intended arrival."""
    rows = values(run)
    series = list(dict.fromkeys(row["series"] for row in rows))
    scale, ticks = theme.log_scale(*_ends(row["ms"] for row in rows))
    counts = sorted({row["instances"] for row in rows})
    chart: alt.FacetChart = (
        alt.Chart()
        .mark_line(interpolate="step-after")
        .encode(
            x=alt.X(
                "ms:Q",
                title=f"latency to {run.end_point} (log)",
                scale=scale,
                axis=alt.Axis(labelExpr=theme.DURATION_LABELS, values=ticks),
            ),
            y=alt.Y("share:Q", title="starts ready", axis=alt.Axis(format="%", tickCount=5)),
            color=alt.Color(
                "instances:O",
                scale=alt.Scale(domain=counts, range=palette.growth(counts)),
                legend=alt.Legend(
                    title="instances", orient="top", symbolType="stroke", symbolStrokeWidth=3
                )
                if len(counts) > 1
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
            facet=alt.Facet("series:N", title=None, sort=series),
            columns=theme.columns(len(series), 2),
            data=theme.rows(rows),
        )
        .properties(usermeta=theme.cells(count=len(series), least=190, left=58))
    )
    return chart


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
        rows += [
            {
                "series": point.series,
                "instances": point.instances,
                "ms": float(ordered[place]) / 1e6,
                "share": (int(place) + 1) / len(ordered),
                "latency": duration(float(ordered[place])),
            }
            for place in places
        ]
    return rows
