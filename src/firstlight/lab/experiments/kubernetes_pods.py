"""Pods by the API server of a real control plane: where they spend their time."""

from collections.abc import Iterator

from firstlight.lab.backends.kubernetes import Kubernetes, Own, Users
from firstlight.lab.cluster.settings import PAYLOAD
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.model import Presentation

_PATIENCE = 0.9  # of the deadline; the reason of a pod that is not Ready is queried then


def _cases(options: Options) -> Iterator[Case]:
    """On a user's cluster, runtimes are its runtime classes, and the network is its own."""
    patience = _PATIENCE * options.deadline
    image, users = options.image, Users(options.kubeconfig, options.context)
    runtimes, networks = options.runtimes or ("runc",), options.networks or ("bridge", "ptp")
    if users.kubeconfig:
        runtimes, networks = options.runtimes or ("",), ("",)
    cluster = users if users.kubeconfig else Own(runtimes, networks)
    for runtime in runtimes:
        for network in networks:
            for instances in options.instances:
                yield Case(
                    {
                        "runtime": runtime or "the cluster's",
                        "network": network or "the cluster's",
                        "instances": instances,
                    },
                    Kubernetes(cluster, runtime, network, image or PAYLOAD, patience),
                )


KUBERNETES_PODS = Experiment(
    name="kubernetes-pods",
    question="Where does a pod spend its time, from the API request to its first instruction?",
    figure="Fig. 8, Fig. 9",
    axes=("runtime", "network", "instances"),
    cases=_cases,
    options=("runtimes", "networks", "kubeconfig", "context", "image"),
    instances=(1, 10, 30, 100),
    repetitions=5,
    presentation=Presentation(subject="a pod ({series})", view="pods"),
    explained_by="components",
)
