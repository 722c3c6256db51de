"""Fig. 7 of the paper: where network set-up goes, in order and at once."""

from firstlight.lab.backends.network import METHODS, Network
from firstlight.lab.experiments import Experiment, Options
from firstlight.model import Point


def _points(options: Options) -> list[Point]:
    return [
        {"method": method, "order": order, "instances": instances}
        for method in METHODS
        for order in ("sequential", "parallel")
        for instances in options.instances
    ]


NETWORK_SETUP = Experiment(
    name="network-setup",
    question="Where does network set-up go, in order and at once?",
    figure="Fig. 7(a), 7(b)",
    axes=("method", "order", "instances"),
    points=_points,
    backend=lambda _point: Network(),
)
