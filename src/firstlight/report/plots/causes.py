"""What each phase's time was spent on: a facet per point, a bar per phase."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from firstlight.analysis.figures import PointFigures, in_order
from firstlight.report.plots import palette, theme
from firstlight.units import percent


def causes(points: Sequence[PointFigures], *, legend: bool = True) -> alt.FacetChart:
    """Shares of the starts' wall time by phase, coloured by the kind of cause."""
    rows = values(points)
    facets = [point.name for point in points]
    phases = in_order({row["phase"] for row in rows})
    kinds = [kind for kind in palette.CAUSES if any(row["kind"] == kind for row in rows)]
    chart: alt.FacetChart = (
        alt.Chart()
        .mark_bar()
        .encode(
            y=alt.Y("phase:N", title=None, sort=phases, axis=alt.Axis(ticks=False, domain=False)),
            x=alt.X("share:Q", title="share of the start", axis=alt.Axis(format="%", tickCount=4)),
            color=alt.Color(
                "kind:N",
                scale=alt.Scale(domain=kinds, range=[palette.CAUSES[kind] for kind in kinds]),
                legend=alt.Legend(title=None, orient="top", symbolType="square", columns=4)
                if legend
                else None,
            ),
            order=alt.Order("rank:Q"),
            tooltip=[
                alt.Tooltip("phase:N", title="phase"),
                alt.Tooltip("cause:N", title="cause"),
                alt.Tooltip("worded:N", title="of the start"),
            ],
        )
        .properties(width=230, height=alt.Step(17))
        .facet(
            facet=alt.Facet("point:N", title=None, sort=facets),
            columns=2,
            data=theme.rows(rows),
        )
        .properties(usermeta=theme.cells(facets, least=190, left=96))
    )
    return chart


def values(points: Sequence[PointFigures]) -> list[dict[str, Any]]:
    """A row per point, phase and cause; ``share`` is relative to the point's wall time."""
    kinds = list(palette.CAUSES)
    return [
        {
            "point": point.name,
            "phase": part.phase,
            "cause": cause,
            "kind": palette.cause_class(cause),
            "rank": kinds.index(palette.cause_class(cause)),
            "share": share * part.share.value,
            "worded": percent(share * part.share.value),
        }
        for point in points
        for part in point.parts
        if part.seen
        for cause, share in part.causes
    ]
