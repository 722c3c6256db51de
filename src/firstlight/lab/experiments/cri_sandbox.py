"""The node's part of a pod alone: a sandbox and a container by the CRI, without a kubelet."""

from collections.abc import Iterator

from firstlight.lab.backends.cri import Containerd, Cri, Socket
from firstlight.lab.cluster.settings import PAYLOAD
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.model import Presentation


def _cases(options: Options) -> Iterator[Case]:
    if options.cri:
        for instances in options.instances:
            yield Case(
                {"runtime": "the socket's", "network": "the socket's", "instances": instances},
                Cri(Socket(options.cri), image=options.image or PAYLOAD),
            )
        return
    runtimes = options.runtimes or ("runc",)
    networks = options.networks or ("bridge", "ptp")
    for runtime in runtimes:
        for network in networks:
            for instances in options.instances:
                yield Case(
                    {"runtime": runtime, "network": network, "instances": instances},
                    Cri(Containerd(runtimes, networks), runtime, network),
                )


CRI_SANDBOX = Experiment(
    name="cri-sandbox",
    question="What does the node alone take to start a pod's sandbox and container?",
    figure="Fig. 8",
    axes=("runtime", "network", "instances"),
    cases=_cases,
    options=("runtimes", "networks", "cri", "image"),
    instances=(1, 10, 30),
    repetitions=5,
    presentation=Presentation(subject="a sandbox ({series})"),
    explained_by="components",
)
