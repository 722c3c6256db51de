"""What no runtime can be faster than: one clone and exec, with each namespace."""

from firstlight.lab.backends.process import NAMESPACES, Process
from firstlight.lab.experiments import Experiment, Options
from firstlight.model import Point


def _points(options: Options) -> list[Point]:
    return [
        {"namespaces": namespaces, "instances": instances}
        for namespaces in NAMESPACES
        for instances in options.instances
    ]


FLOOR = Experiment(
    name="floor",
    question="What do clone, exec and each namespace cost by themselves?",
    figure="section II-B",
    axes=("namespaces", "instances"),
    points=_points,
    backend=lambda _point: Process(),
)
