"""What removing pods costs, and what it costs pods that start at the same time."""

from collections.abc import Iterator

from firstlight.lab.backends.cni import OPERATIONS, Cni, present
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.lab.experiments.cni_breakdown import NETWORKS


def _cases(options: Options) -> Iterator[Case]:
    for network in options.networks or present(NETWORKS):
        for operation in OPERATIONS:
            for instances in options.instances:
                yield Case(
                    {"cni": network, "operation": operation, "instances": instances},
                    Cni(network, operation),
                )


CNI_TEARDOWN = Experiment(
    name="cni-teardown",
    question="What does DEL cost, alone and together, and an ADD while DELs run?",
    figure="beyond the paper",
    axes=("cni", "operation", "instances"),
    cases=_cases,
    options=("networks",),
    instances=(1, 10, 50),
)
