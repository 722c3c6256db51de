"""The growth of latency along an axis: a curve per series, with its 95 % interval as a band."""

from typing import Any

import altair as alt

from firstlight.analysis import Analysis
from firstlight.analysis.figures import PointFigures, series_axes
from firstlight.report.plots import palette, theme
from firstlight.units import duration_interval

QUANTITIES = ("median", "P95", "P99", "all ready")
AXES = {
    "instances": "instances (log)",
    "background": "running instances (log)",
    "rate": "starts per second (log)",
}
"""The axes along which curves can be drawn, with their titles."""


def scaling(analysis: Analysis, *, along: str = "instances", legend: bool = True) -> alt.FacetChart:
    """Median, P95 and P99 of a start, and the time until a whole batch is ready; log-log.

    ``along`` is one of AXES; the last quantity is only drawn along instances.
    """
    rows = values(analysis, along)
    shown = [name for name in QUANTITIES if any(row["quantity"] == name for row in rows)]
    counts = sorted({row["at"] for row in rows})
    names = series(analysis, along)
    colours = palette.series(names)
    scale, ticks = theme.log_scale(
        min(row["low"] for row in rows), max(row["high"] for row in rows)
    )
    x = alt.X(
        "at:Q",
        title=AXES[along],
        scale=theme.log_scale(counts[0], counts[-1])[0],
        axis=alt.Axis(values=counts, format="d", grid=False),
    )
    y = alt.Y(
        "ms:Q",
        title=f"to {analysis.end_point} (log)",
        scale=scale,
        axis=alt.Axis(labelExpr=theme.DURATION_LABELS, values=ticks),
    )
    colour = alt.Color(
        "series:N",
        scale=alt.Scale(domain=names, range=[colours[name] for name in names]),
        legend=alt.Legend(title=None, orient="top", symbolType="stroke", symbolStrokeWidth=3)
        if legend and len(names) > 1
        else None,
    )
    base = alt.Chart().encode(x=x, color=colour)
    band = base.mark_area(opacity=0.22).encode(
        y=alt.Y("low:Q", title=None), y2="high:Q", color=colour
    )
    line = base.mark_line().encode(y=y)
    dots = base.mark_point(filled=True, size=28, opacity=1).encode(
        y=y,
        tooltip=[
            alt.Tooltip("series:N", title="series"),
            alt.Tooltip("at:Q", title=along),
            alt.Tooltip("quantity:N", title="figure"),
            alt.Tooltip("worded:N", title="95 % interval"),
        ],
    )
    return (
        alt.layer(band, line, dots)
        .properties(width=200, height=200)
        .facet(
            facet=alt.Facet("quantity:N", title=None, sort=list(QUANTITIES)),
            columns=theme.columns(len(shown), 4),
            data=theme.rows(rows),
        )
        .properties(usermeta=theme.cells(shown, least=150, left=58))
    )


def series(analysis: Analysis, along: str) -> list[str]:
    """The names of the curves: the settings of the axes that vary, except ``along``."""
    return list(
        dict.fromkeys(_name(analysis, point, along) for point in analysis.points if point.latency)
    )


def _name(analysis: Analysis, point: PointFigures, along: str) -> str:
    if along == "instances":
        return point.series
    axes = [axis for axis in series_axes(analysis.run) if axis != along]
    sizes = {each.instances for each in analysis.points}
    own = " · ".join(str(point.point.get(axis)) for axis in axes)
    return " × ".join(filter(None, (own, str(point.instances) * (len(sizes) > 1)))) or "all"


def values(analysis: Analysis, along: str = "instances") -> list[dict[str, Any]]:
    """A row per point and quantity, without tails that the samples cannot bound, and without
    settings that have no logarithm."""
    rows = []
    for point in analysis.points:
        at = point.point.get(along, 0)
        if point.latency is None or not isinstance(at, int | float) or at <= 0:
            continue
        figures = (
            point.latency.median,
            point.latency.p95,
            point.latency.p99,
            point.all_ready if along == "instances" else None,
        )
        rows += [
            {
                "series": _name(analysis, point, along),
                "at": at,
                "quantity": quantity,
                "ms": interval.value / 1e6,
                "low": interval.low / 1e6,
                "high": interval.high / 1e6,
                "worded": duration_interval(interval),
            }
            for quantity, interval in zip(QUANTITIES, figures, strict=True)
            if interval is not None
        ]
    return rows
