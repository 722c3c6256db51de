"""Fig. 9(b) of the paper: do pods that start together slow each other? (pattern B)."""

from firstlight.lab.backends.cni import Cni, present
from firstlight.lab.experiments import Experiment, Options
from firstlight.lab.experiments.cni_breakdown import NETWORKS
from firstlight.model import Point


def _points(options: Options) -> list[Point]:
    return [
        {"cni": network, "instances": instances}
        for network in options.confs or present(NETWORKS)
        for instances in options.instances
    ]


CNI_BURST = Experiment(
    name="cni-burst",
    question="Do pods that start together slow each other?",
    figure="Fig. 9(b)",
    axes=("cni", "instances"),
    points=_points,
    backend=lambda point: Cni(str(point["cni"])),
)
