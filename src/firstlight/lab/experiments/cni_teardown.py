"""What taking pods down costs, and what it costs those that start meanwhile."""

from firstlight.lab.backends.cni import OPERATIONS, Cni, present
from firstlight.lab.experiments import Experiment, Options
from firstlight.lab.experiments.cni_breakdown import NETWORKS
from firstlight.model import Point


def _points(options: Options) -> list[Point]:
    return [
        {"cni": network, "operation": operation, "instances": instances}
        for network in options.confs or present(NETWORKS)
        for operation in OPERATIONS
        for instances in options.instances
    ]


CNI_TEARDOWN = Experiment(
    name="cni-teardown",
    question="What does DEL cost, alone and together, and an ADD while DELs run?",
    figure="beyond the paper",
    axes=("cni", "operation", "instances"),
    points=_points,
    backend=lambda point: Cni(str(point["cni"])),
    instances=(1, 10, 50),
)
