"""Stacked bars of a start's parts against instances, like the paper's Fig. 6 and 7."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import altair as alt

from firstlight.report.plots import palette, theme

ROOM = 1.09
"""Room above the highest bar for its label."""

MOST_LETTERS = 60
"""With more labels than this under the bars, labels are slanted."""

LONGEST_LABEL = 280
MOST_BELOW = 24
"""Names per column of a legend."""
LEAST_BAR = 44
"""In pixels: the room for the name under a bar, and the width of a bar with its total above."""

Measure = Literal["time", "share"]


def stacked(
    values: Sequence[Mapping[str, Any]],
    *,
    order: Sequence[str],
    measure: Measure,
    end: str,
    legend: bool,
) -> alt.FacetChart:
    """A facet per series, a bar per number of instances, a layer per part and shade.

    With a single number of instances, there is a bar per series.

    ``values`` have ``series``, ``instances``, ``part``, ``where``, ``opacity`` (the shade), ``ms``
    with ``wall`` as its text (a bar's add up to the latency, whose text is ``total``), ``share`` of
    the bar, and ``rank``, the part's place from the ground. ``end`` names the end point.
    """
    series = list(dict.fromkeys(str(row["series"]) for row in values))
    counts = sorted({row["instances"] for row in values})
    alone = f"instances: {counts[0]}" if len(counts) == 1 else None
    facets, bar, names = ([alone], "series:N", series) if alone else (series, "instances:O", counts)
    values = [dict(row, facet=alone or row["series"]) for row in values]
    long = max(len(str(name)) for name in names) * len(names) > MOST_LETTERS
    x = alt.X(
        bar,
        title=None if alone else "instances",
        sort=names,
        axis=alt.Axis(labelAngle=-35 if long else 0, labelLimit=LONGEST_LABEL, ticks=False),
        scale=alt.Scale(paddingInner=0.1, paddingOuter=max(0.05, 1.2 - 0.35 * len(names))),
    )
    colours = palette.parts(order)
    bars = (
        alt.Chart()
        .mark_bar()
        .encode(
            x=x,
            y=_y(values, measure, end),
            color=alt.Color(
                "part:N",
                scale=alt.Scale(domain=list(colours), range=list(colours.values())),
                legend=alt.Legend(
                    title=None, symbolType="square", columns=1 + len(colours) // MOST_BELOW
                )
                if legend
                else None,
            ),
            opacity=alt.Opacity("opacity:Q", scale=None),
            order=alt.Order("rank:Q"),
            tooltip=[
                alt.Tooltip("series:N", title="series"),
                alt.Tooltip("instances:O", title="instances"),
                alt.Tooltip("part:N", title="part"),
                alt.Tooltip("where:N", title="where"),
                alt.Tooltip("wall:N", title="time"),
                alt.Tooltip("share:Q", title="share", format=".1%"),
                alt.Tooltip("total:N", title="of"),
            ],
        )
    )
    layers: list[alt.Chart] = [bars]
    if measure == "time":
        totals = alt.Chart().mark_text(dy=-6).encode(x=x, y="sum(ms):Q", text="total:N")
        layers.append(totals)
    return (
        alt.layer(*layers)
        .properties(width=max(250, LEAST_BAR * len(names)), height=230)
        .facet(
            facet=alt.Facet("facet:N", title=None, sort=facets),
            columns=theme.columns(len(facets), 2),
            data=theme.rows(values),
        )
        .properties(usermeta=theme.cells(facets, least=max(110, 40 * len(names)), left=58))
    )


def _y(values: Sequence[Mapping[str, Any]], measure: Measure, end: str) -> alt.Y:
    if measure == "share":
        return alt.Y(
            "share:Q",
            title="share",
            scale=alt.Scale(domain=[0, 1]),
            axis=alt.Axis(format="%", tickCount=5),
        )
    heights: Counter[tuple[str, int]] = Counter()
    for row in values:
        heights[row["series"], row["instances"]] += row["ms"]
    return alt.Y(
        "ms:Q",
        title=f"to {end}",
        scale=alt.Scale(domain=[0, ROOM * max(heights.values(), default=1.0)], nice=False),
        axis=alt.Axis(labelExpr=theme.DURATION_LABELS, tickCount=5),
    )
