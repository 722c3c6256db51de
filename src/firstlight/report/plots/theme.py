"""The looks of charts on white and on black: two Vega-Lite configurations, and shared parts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
LIGHT = {"ink": "#1c2126", "soft": "#59636e", "rule": "#dfe3e8", "paper": "#ffffff"}
DARK = {"ink": "#e7eaee", "soft": "#a3adb8", "rule": "#333b44", "paper": "#14181c"}

DURATION_LABELS = (
    "datum.value >= 1000 ? format(datum.value / 1000, '~r') + ' s' : "
    "datum.value >= 1 || datum.value == 0 ? format(datum.value, '~r') + ' ms' : "
    "format(datum.value * 1000, '~r') + ' µs'"
)
"""A Vega expression that labels an axis in ms."""


MOST_TICKS = 6
LETTER = 8
"""The width of a letter in a facet's name, in pixels."""


def config(theme: Mapping[str, str]) -> dict[str, Any]:
    """The Vega-Lite ``config`` of a theme; charts are transparent and set no ink colour."""
    words = {"labelColor": theme["soft"], "titleColor": theme["soft"]}
    return {
        "background": "transparent",
        "font": FONT,
        "view": {"stroke": None},
        "axis": {
            **words,
            "domainColor": theme["rule"],
            "tickColor": theme["rule"],
            "gridColor": theme["rule"],
            "labelFontSize": 11,
            "titleFontSize": 11,
            "titleFontWeight": "normal",
            "titlePadding": 8,
            "labelPadding": 4,
        },
        "legend": {
            **words,
            "labelFontSize": 11,
            "titleFontSize": 11,
            "titleFontWeight": "normal",
            "symbolStrokeWidth": 0,
            "symbolOpacity": 1,
            "symbolLimit": 0,
        },
        "header": {"labelColor": theme["ink"], "labelFontSize": 12, "labelFontWeight": 600},
        "title": {
            "color": theme["ink"],
            "fontSize": 13,
            "anchor": "start",
            "subtitleColor": theme["soft"],
        },
        "bar": {"stroke": theme["paper"], "strokeWidth": 0.5},
        "text": {"color": theme["soft"], "fontSize": 10},
        "line": {"strokeWidth": 1.75},
        "rule": {"color": theme["soft"]},
    }


def rows(values: Iterable[Mapping[str, Any]]) -> alt.InlineData:
    """Rows to draw, without limit on their number.

    Altair would check each row against its schema, which takes longer than the rest of a chart.
    """
    data = alt.InlineData(values=[])
    data.values = list(values)
    return data


def cells(facets: Sequence[str], *, least: int, left: int) -> dict[str, Any]:
    """In pixels, for facets with these names: the minimum width of a cell, and the room for the
    axis at the left."""
    longest = max(map(len, facets), default=0)
    return {"cells": len(facets), "least": max(least, LETTER * longest), "left": left}


def columns(count: int, most: int) -> int:
    """The number of facets side by side in a picture of fixed width."""
    return min(count, most)


def log_scale(low: float, high: float) -> tuple[alt.Scale, list[float]]:
    """A logarithmic scale for values from ``low`` to ``high``, and its ticks."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**power for power in decades for step in steps]
        if len([tick for tick in ticks if low <= tick <= high]) <= MOST_TICKS:
            break
    return alt.Scale(type="log", nice=False, domain=[low / 1.06, high * 1.06]), ticks
