"""A whole pod, network and container: what the network adds to the container's start."""

from firstlight.lab.backends.cni import present
from firstlight.lab.backends.pod import NO_NETWORK, POOLED, Pod
from firstlight.lab.experiments import Experiment, Options
from firstlight.model import Point

NETWORKS = ("ptp", "kube-router", "flannel", "calico")


def _points(options: Options) -> list[Point]:
    return [
        {"runtime": runtime, "network": network, "instances": instances}
        for runtime in options.runtimes or ("runc",)
        for network in options.confs or (NO_NETWORK, POOLED, *present(NETWORKS))
        for instances in options.instances
    ]


POD = Experiment(
    name="pod",
    question="What does the network add to a pod's start?",
    figure="beyond the paper",
    axes=("runtime", "network", "instances"),
    points=_points,
    backend=lambda point: Pod(str(point["runtime"]), str(point["network"])),
    instances=(1, 10, 50),
)
