"""Fig. 9(a) of the paper: do background pods slow a new one? (pattern A)."""

from firstlight.lab.backends.cni import Cni, present
from firstlight.lab.experiments import Experiment, Options
from firstlight.lab.experiments.cni_breakdown import NETWORKS
from firstlight.model import Point

BACKGROUND = (0, 10, 50, 100, 200)


def _points(options: Options) -> list[Point]:
    return [
        {"cni": network, "background": background, "instances": instances}
        for network in options.confs or present(NETWORKS)
        for background in BACKGROUND
        for instances in options.instances
    ]


CNI_BACKGROUND = Experiment(
    name="cni-background",
    question="Do pods that are up already slow a new one?",
    figure="Fig. 9(a)",
    axes=("cni", "background", "instances"),
    points=_points,
    backend=lambda point: Cni(str(point["cni"])),
    instances=(1,),
)
