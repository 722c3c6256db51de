"""A whole pod: what the network adds to the container's start."""

from collections.abc import Iterator

from firstlight.lab.backends.cni import present
from firstlight.lab.backends.pod import NO_NETWORK, POOLED, Pod
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.model import Presentation

NETWORKS = ("ptp", "kube-router", "flannel", "calico")


def _cases(options: Options) -> Iterator[Case]:
    for runtime in options.runtimes or ("runc",):
        for network in options.networks or (NO_NETWORK, POOLED, *present(NETWORKS)):
            for instances in options.instances:
                yield Case(
                    {"runtime": runtime, "network": network, "instances": instances},
                    Pod(runtime, network),
                )


POD = Experiment(
    name="pod",
    question="What does the network add to a pod's start?",
    figure="beyond the paper",
    axes=("runtime", "network", "instances"),
    cases=_cases,
    options=("runtimes", "networks"),
    instances=(1, 10, 50),
    presentation=Presentation(subject="a pod ({series})"),
)
