"""Does a start take longer on a host that is full?"""

from firstlight.lab.backends.agile_parts import Crowd
from firstlight.lab.experiments import Experiment, Options
from firstlight.model import Point

BACKGROUND = (10, 100, 500, 1000)


def _points(options: Options) -> list[Point]:
    return [
        {"background": background, "instances": instances}
        for background in BACKGROUND
        for instances in options.instances
    ]


DENSITY = Experiment(
    name="density",
    question="Do instances that are up already slow a new one?",
    figure="section IV",
    axes=("background", "instances"),
    points=_points,
    backend=lambda _point: Crowd(),
    instances=(1,),
)
