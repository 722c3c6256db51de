"""Fig. 8 of the paper: what each CNI spends on one pod."""

from collections.abc import Iterator

from firstlight.lab.backends.cni import Cni, present
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.model import Presentation

NETWORKS = (
    "kube-router",
    "kube-router-2021",
    "flannel",
    "flannel-2021",
    "weave",
    "calico",
    "cilium-profile",
)
"""The paper's five plugins, two of them also in their versions of 2021.

Where one cannot be had, its profile is measured."""

_ALL = (*NETWORKS, "cilium-template-profile", "bridge", "bridge-masq", "ptp")


def _cases(options: Options) -> Iterator[Case]:
    for network in options.networks or present(_ALL):
        for instances in options.instances:
            yield Case({"cni": network, "instances": instances}, Cni(network))


CNI_BREAKDOWN = Experiment(
    name="cni-breakdown",
    question="What does each CNI spend on one pod?",
    figure="Fig. 8",
    axes=("cni", "instances"),
    cases=_cases,
    options=("networks",),
    instances=(1,),
    presentation=Presentation(view="cni"),
)
