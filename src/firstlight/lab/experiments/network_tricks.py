"""What each known trick takes off the time of a network set-up."""

from firstlight.lab.backends.network import TRICKS, Network
from firstlight.lab.experiments import Experiment, Options
from firstlight.model import Point


def _points(options: Options) -> list[Point]:
    return [
        {"trick": trick, "instances": instances}
        for trick in TRICKS
        for instances in options.instances
    ]


NETWORK_TRICKS = Experiment(
    name="network-tricks",
    question="What does each trick take off the time of a network set-up?",
    figure="section IV",
    axes=("trick", "instances"),
    points=_points,
    backend=lambda _point: Network(),
    instances=(1, 10, 50),
)
