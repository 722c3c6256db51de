"""How latency grows with instances: a curve a series, with its 95 % interval as a band."""

from typing import Any

import altair as alt

from firstlight.plots import palette, theme
from firstlight.report.figures import Figures
from firstlight.report.wording import duration_interval

QUANTITIES = ("median", "P95", "P99", "all ready")


def scaling(run: Figures, *, legend: bool = True) -> alt.FacetChart:
    """Median, P95 and P99 of a start, and the time until a batch is all ready; log-log."""
    rows = values(run)
    shown = [name for name in QUANTITIES if any(row["quantity"] == name for row in rows)]
    counts = sorted({row["instances"] for row in rows})
    names = run.series
    colours = palette.series(names)
    scale, ticks = theme.log_scale(
        min(row["low"] for row in rows), max(row["high"] for row in rows)
    )
    x = alt.X(
        "instances:Q",
        title="instances (log)",
        scale=theme.log_scale(counts[0], counts[-1])[0],
        axis=alt.Axis(values=counts, format="d", grid=False),
    )
    y = alt.Y(
        "ms:Q",
        title=f"to {run.end_point} (log)",
        scale=scale,
        axis=alt.Axis(labelExpr=theme.DURATION_LABELS, values=ticks),
    )
    colour = alt.Color(
        "series:N",
        scale=alt.Scale(domain=names, range=[colours[name] for name in names]),
        legend=alt.Legend(title=None, orient="top", symbolType="stroke", symbolStrokeWidth=3)
        if legend
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
            alt.Tooltip("instances:Q", title="instances"),
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


def values(run: Figures) -> list[dict[str, Any]]:
    """A row a point and quantity; a tail that the samples cannot bound has none."""
    rows = []
    for point in run.points:
        if point.latency is None:
            continue
        figures = (
            point.latency.median,
            point.latency.p95,
            point.latency.p99,
            point.all_ready,
        )
        rows += [
            {
                "series": point.series,
                "instances": point.instances,
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
