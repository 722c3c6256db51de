"""Fig. 8 of the paper: what each CNI spends on one pod."""

from firstlight.lab.backends.cni import Cni, present
from firstlight.lab.experiments import Experiment, Options
from firstlight.model import Point

NETWORKS = (
    "kube-router",
    "kube-router-2021",
    "flannel",
    "flannel-2021",
    "weave",
    "calico",
    "cilium-profile",
)
"""The paper's five, of which two also as they were when it was written; unless told otherwise.

Where one cannot be had, the profile that stands in for it is measured."""

_ALL = (*NETWORKS, "cilium-template-profile", "bridge", "bridge-masq", "ptp")


def _points(options: Options) -> list[Point]:
    return [
        {"cni": network, "instances": instances}
        for network in options.confs or present(_ALL)
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
