"""The views that an experiment's presentation can name: one file each.

``EMPTY`` is the view of a run without one.
"""

from collections.abc import Iterator

from firstlight.analysis import Analysis
from firstlight.model import Header
from firstlight.report import rate
from firstlight.report.records import Table, View
from firstlight.report.views import (
    ablation,
    agile,
    boots,
    builds,
    churn,
    cni,
    density,
    functions,
    image,
    nodes,
    platforms,
    pods,
    storms,
    trace_replay,
)

ALL: dict[str, View] = {
    "ablation": ablation.VIEW,
    "agile": agile.VIEW,
    "boots": boots.VIEW,
    "builds": builds.VIEW,
    "churn": churn.VIEW,
    "cni": cni.VIEW,
    "density": density.VIEW,
    "functions": functions.VIEW,
    "image": image.VIEW,
    "nodes": nodes.VIEW,
    "platforms": platforms.VIEW,
    "pods": pods.VIEW,
    "storms": storms.VIEW,
    "trace-replay": trace_replay.VIEW,
}
EMPTY = View()


def of(header: Header) -> View:
    """The view of a run; ``EMPTY`` if this firstlight does not have it."""
    return ALL.get(header.presentation.view, EMPTY)


def tables(analysis: Analysis) -> Iterator[Table]:
    """The tables of a run's view, and those of every run."""
    yield from of(analysis.header).tables(analysis)
    yield from rate.tables(analysis)
