"""Fig. 8 of the paper: what each CNI spends on one pod."""

from firstlight.backends.cni import Cni
from firstlight.experiments import Experiment, Options
from firstlight.model import Point

NETWORKS = (
    "bridge",
    "bridge-masq",
    "ptp",
    "kube-router",
    "kube-router-2021",
    "flannel",
    "flannel-2021",
)
"""The networks of conf/cni that the CNI experiments compare, unless told otherwise."""


def _points(options: Options) -> list[Point]:
    return [
        {"cni": network, "instances": instances}
        for network in options.confs or NETWORKS
        for instances in options.instances
    ]


CNI_BREAKDOWN = Experiment(
    name="cni-breakdown",
    question="What does each CNI spend on one pod?",
    figure="Fig. 8",
    axes=("cni", "instances"),
    points=_points,
    backend=lambda point: Cni(str(point["cni"])),
    instances=(1,),
)
