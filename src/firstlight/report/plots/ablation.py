"""What each prepared part gains: how much longer a start takes without it, with its interval."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from firstlight.report.plots import palette, theme
from firstlight.report.worth import Worth
from firstlight.units import duration, ratio_interval

_GAIN, _NONE = palette.SERIES[0], palette.SERIES[-1]


def ablation(gains: Sequence[Worth]) -> alt.FacetChart:
    """A dot and its 95 % interval per part, in a facet per end point and number at once.

    Parts that may gain nothing are grey. Log scale.
    """
    rows = [_row(gain) for gain in gains]
    facets = list(dict.fromkeys(row["facet"] for row in rows))
    parts = list(dict.fromkeys(row["part"] for row in rows))
    scale, ticks = theme.log_scale(
        min(1.0, *(row["low"] for row in rows)), max(1.0, *(row["high"] for row in rows))
    )
    x = alt.X(
        "times:Q",
        title="times as long without it (log)",
        scale=scale,
        axis=alt.Axis(values=ticks, format="~r", labelExpr="datum.label + '×'"),
    )
    base = alt.Chart().encode(
        y=alt.Y("part:N", title=None, sort=parts, axis=alt.Axis(grid=True)),
        color=alt.condition("datum.certain", alt.value(_GAIN), alt.value(_NONE)),
        tooltip=[
            alt.Tooltip("part:N", title="left out"),
            alt.Tooltip("facet:N", title="to"),
            alt.Tooltip("worded:N", title="as long (95 % interval)"),
            alt.Tooltip("extra:N", title="longer by"),
        ],
    )
    level = alt.Chart().mark_rule(strokeDash=[3, 3]).encode(x=alt.datum(1.0))
    interval = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q")
    dot = base.mark_point(filled=True, size=50, opacity=1).encode(x=x)
    return (
        alt.layer(level, interval, dot)
        .properties(width=230, height=24 * len(parts))
        .facet(
            facet=alt.Facet("facet:N", title=None, sort=facets),
            columns=theme.columns(len(facets), 2),
            data=theme.rows(rows),
        )
        .properties(usermeta=theme.cells(facets, least=190, left=110))
    )


def _row(gain: Worth) -> dict[str, Any]:
    return {
        "part": gain.part,
        "facet": f"{gain.end}, {gain.instances} at once",
        "times": gain.longer.value,
        "low": gain.longer.low,
        "high": gain.longer.high,
        "certain": gain.is_certain,
        "worded": ratio_interval(gain.longer),
        "extra": duration(gain.extra),
    }
