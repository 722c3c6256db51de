"""Fig. 9(a) of the paper: do background pods slow a new one? (pattern A)."""

from collections.abc import Iterator

from firstlight.lab.backends.cni import Cni, present
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.lab.experiments.cni_breakdown import NETWORKS
from firstlight.model import Presentation

BACKGROUND = (0, 10, 50, 100, 200)


def _cases(options: Options) -> Iterator[Case]:
    for network in options.networks or present(NETWORKS):
        for background in BACKGROUND:
            for instances in options.instances:
                yield Case(
                    {"cni": network, "background": background, "instances": instances},
                    Cni(network, background=background),
                )


CNI_BACKGROUND = Experiment(
    name="cni-background",
    question="Do running pods slow a new one?",
    figure="Fig. 9(a)",
    axes=("cni", "background", "instances"),
    cases=_cases,
    options=("networks",),
    instances=(1,),
    presentation=Presentation(subject="a pod's network ({series})"),
)
