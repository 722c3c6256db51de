"""The node's part of a pod: a sandbox and a container by the CRI, without a kubelet."""

from collections.abc import Iterator

from firstlight.lab.backends.cri import Containerd, Cri, Socket
from firstlight.lab.cluster.settings import PAYLOAD
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.model import Presentation


def _cases(options: Options) -> Iterator[Case]:
    """For a user's runtime, runtimes are its handlers, and the network is its own."""
    image, socket = options.image, options.cri
    runtimes, networks = options.runtimes or ("runc",), options.networks or ("bridge", "ptp")
    if socket:
        runtimes, networks = options.runtimes or ("",), ("",)
    of = Socket(socket) if socket else Containerd(runtimes, networks)
    for runtime in runtimes:
        for network in networks:
            for instances in options.instances:
                yield Case(
                    {
                        "runtime": runtime or "the socket's",
                        "network": network or "the socket's",
                        "instances": instances,
                    },
                    Cri(of, runtime, network, image or PAYLOAD),
                )


CRI_SANDBOX = Experiment(
    name="cri-sandbox",
    question="How long does the node take to start a pod's sandbox and container?",
    figure="Fig. 8",
    axes=("runtime", "network", "instances"),
    cases=_cases,
    options=("runtimes", "networks", "cri", "image"),
    instances=(1, 10, 30),
    repetitions=5,
    presentation=Presentation(subject="a sandbox ({series})"),
    explained_by="components",
)
