"""What each prepared part is worth: the runtime without it beside the runtime as it is."""

from firstlight.lab.backends.agile_parts import WITHOUT, Ablated
from firstlight.lab.experiments import Experiment, Options
from firstlight.model import Point


def _points(options: Options) -> list[Point]:
    return [
        {"without": part, "instances": instances}
        for part in WITHOUT
        for instances in options.instances
    ]


ABLATION = Experiment(
    name="ablation",
    question="What is each prepared part worth?",
    figure="section IV",
    axes=("without", "instances"),
    points=_points,
    backend=lambda point: Ablated(str(point["without"])),
    instances=(1, 20),
)
