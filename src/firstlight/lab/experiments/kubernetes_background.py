"""Pattern A of the paper with real pods: one more on a node with running pods."""

from collections.abc import Iterator

from firstlight.lab.backends.kubernetes import Kubernetes, Own
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.model import Presentation

_BACKGROUND = (0, 10, 30, 100)


def _cases(options: Options) -> Iterator[Case]:
    runtimes, networks = options.runtimes or ("runc",), options.networks or ("bridge",)
    for runtime in runtimes:
        for network in networks:
            for background in _BACKGROUND:
                for instances in options.instances:
                    yield Case(
                        {
                            "runtime": runtime,
                            "network": network,
                            "background": background,
                            "instances": instances,
                        },
                        Kubernetes(
                            Own(runtimes, networks), runtime, network, background=background
                        ),
                    )


KUBERNETES_BACKGROUND = Experiment(
    name="kubernetes-background",
    question="How long does a pod's start take on a node with running pods?",
    figure="Fig. 8, Fig. 9",
    axes=("runtime", "network", "background", "instances"),
    cases=_cases,
    options=("runtimes", "networks"),
    instances=(1,),
    repetitions=2,
    together=True,
    presentation=Presentation(subject="one more pod ({series})", view="pods"),
    explained_by="components",
)
