"""Fig. 9(b) of the paper: do pods that start together slow each other? (pattern B)."""

from collections.abc import Iterator

from firstlight.lab.backends.cni import Cni, present
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.lab.experiments.cni_breakdown import NETWORKS
from firstlight.model import Presentation


def _cases(options: Options) -> Iterator[Case]:
    for network in options.networks or present(NETWORKS):
        for instances in options.instances:
            yield Case({"cni": network, "instances": instances}, Cni(network))


CNI_BURST = Experiment(
    name="cni-burst",
    question="Do pods that start together slow each other?",
    figure="Fig. 9(b)",
    axes=("cni", "instances"),
    cases=_cases,
    options=("networks",),
    presentation=Presentation(subject="a pod's network ({series})"),
)
