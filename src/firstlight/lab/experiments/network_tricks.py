"""What each known trick saves in network set-up."""

from collections.abc import Iterator

from firstlight.lab.backends.network import TRICKS, NetworkSetup
from firstlight.lab.experiments import Case, Experiment, Options


def _cases(options: Options) -> Iterator[Case]:
    for trick in TRICKS:
        for instances in options.instances:
            yield Case({"trick": trick, "instances": instances}, NetworkSetup(trick=trick))


NETWORK_TRICKS = Experiment(
    name="network-tricks",
    question="What does each trick save in network set-up?",
    figure="section IV",
    axes=("trick", "instances"),
    cases=_cases,
    instances=(1, 10, 50),
)
