"""Fig. 2 and Fig. 6 of the paper: where container creation goes."""

from firstlight.lab.backends.oci import Oci
from firstlight.lab.experiments import Experiment, Options
from firstlight.model import Point


def _points(options: Options) -> list[Point]:
    return [
        {"runtime": runtime, "instances": instances}
        for runtime in options.runtimes or ("runc", "crun")
        for instances in options.instances
    ]


CONTAINER_CREATION = Experiment(
    name="container-creation",
    question="Where does container creation go, alone and with many at once?",
    figure="Fig. 2, Fig. 6",
    axes=("runtime", "instances"),
    points=_points,
    backend=lambda point: Oci(str(point["runtime"])),
)
