"""Fig. 8 of the paper: what each CNI spends on one pod."""

from collections.abc import Iterable, Iterator

from firstlight.lab.backends.cni import Cni, present
from firstlight.lab.cni import known
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


def _networks(options: Options) -> Iterable[str]:
    """The paper's five first, then every other built-in network."""
    others = (name for name in known.networks() if name not in NETWORKS)
    return options.networks or present([*NETWORKS, *others])


def _cases(options: Options) -> Iterator[Case]:
    for network in _networks(options):
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
    presentation=Presentation(subject="a pod's network ({series})", view="cni"),
)
