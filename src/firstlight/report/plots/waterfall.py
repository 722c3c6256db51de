"""A start over time: a lane per process, coloured by phase, and below them a lane of causes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

from firstlight.analysis.figures import in_order
from firstlight.model import Sample
from firstlight.report.plots import palette, theme
from firstlight.units import duration

CAUSE_LANE = "cause"
PIXELS = 1500
"""The maximum width of a picture; bars shorter than a pixel are merged."""


def waterfall(
    timeline: pl.DataFrame, sample: Sample, programs: Mapping[int, str], *, legend: bool = True
) -> alt.Chart:
    """``timeline`` is ``breakdown.timeline(run, sample)``; ``programs`` names its processes."""
    rows = values(timeline, sample, programs)
    lanes = [*dict.fromkeys(row["lane"] for row in rows if row["lane"] != CAUSE_LANE), CAUSE_LANE]
    phases = in_order({row["part"] for row in rows if row["lane"] != CAUSE_LANE})
    kinds = [kind for kind in palette.CAUSES if any(row["part"] == kind for row in rows)]
    chart: alt.Chart = (
        alt.Chart(theme.rows(rows))
        .mark_bar(height=16, strokeWidth=0)
        .encode(
            x=alt.X(
                "start:Q",
                title="since the intended arrival",
                scale=alt.Scale(nice=False),
                axis=alt.Axis(labelExpr=theme.DURATION_LABELS, tickCount=6),
            ),
            x2="end:Q",
            y=alt.Y("lane:N", title=None, sort=lanes, axis=alt.Axis(ticks=False, domain=False)),
            color=alt.Color(
                "part:N",
                scale=alt.Scale(
                    domain=[*phases, *kinds],
                    range=[palette.part(name) for name in phases]
                    + [palette.CAUSES[kind] for kind in kinds],
                ),
                legend=alt.Legend(title=None, orient="top", symbolType="square", columns=7)
                if legend
                else None,
            ),
            opacity=alt.Opacity("opacity:Q", scale=None),
            tooltip=[
                alt.Tooltip("phase:N", title="phase"),
                alt.Tooltip("cause:N", title="cause"),
                alt.Tooltip("took:N", title="took"),
                alt.Tooltip("lane:N", title="process"),
            ],
        )
        .properties(
            width=720,
            height=alt.Step(24),
            usermeta=theme.cells([""], least=200, left=_room(lanes)),
        )
    )
    return chart


def values(
    timeline: pl.DataFrame, sample: Sample, programs: Mapping[int, str]
) -> list[dict[str, Any]]:
    """Bars in ms since the intended arrival; bars that cannot be distinguished are merged."""
    by_lane: dict[str, list[_Bar]] = {}
    pixel = (sample.latency or 0) / PIXELS
    for row in timeline.sort("start").iter_rows(named=True):
        process = f"{programs.get(row['pid'], 'process')} {row['pid']}"
        kind = palette.cause_class(row["cause"])
        for lane, part, shade in (
            (process, row["phase"], row["shade"]),
            (CAUSE_LANE, kind, ""),
        ):
            bar = _Bar(part, shade, row["start"], row["end"], {row["phase"]}, {row["cause"]})
            bars = by_lane.setdefault(lane, [])
            if bars and bars[-1].holds(bar, pixel):
                bars[-1].add(bar)
            else:
                bars.append(bar)
    return [
        {
            "lane": lane,
            "part": bar.part,
            "opacity": palette.opacity(bar.shade),
            "start": (bar.start - sample.stamps.intended) / 1e6,
            "end": (bar.end - sample.stamps.intended) / 1e6,
            "phase": _some(bar.phases),
            "cause": _some(bar.causes),
            "took": duration(bar.end - bar.start),
        }
        for lane, bars in by_lane.items()
        for bar in bars
    ]


def _room(lanes: Sequence[str]) -> int:
    return 12 + 7 * max(map(len, lanes))


@dataclass
class _Bar:
    part: str
    shade: str
    start: int
    end: int
    phases: set[str]
    causes: set[str]

    def holds(self, next_bar: "_Bar", pixel: float) -> bool:
        """Whether the next bar would look like a continuation of this one."""
        near = next_bar.start - self.end <= pixel
        alike = next_bar.shade == self.shade or next_bar.end - next_bar.start < pixel
        return near and alike and next_bar.part == self.part

    def add(self, other: "_Bar") -> None:
        self.end = max(self.end, other.end)
        self.phases |= other.phases
        self.causes |= other.causes


def _some(names: set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
