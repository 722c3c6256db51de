"""What each known trick takes off the time of a network set-up."""

from collections.abc import Iterator

from firstlight.lab.backends.network import TRICKS, Network
from firstlight.lab.experiments import Case, Experiment, Options


def _cases(options: Options) -> Iterator[Case]:
    for trick in TRICKS:
        for instances in options.instances:
            yield Case({"trick": trick, "instances": instances}, Network(trick=trick))


NETWORK_TRICKS = Experiment(
    name="network-tricks",
    question="What does each trick take off the time of a network set-up?",
    figure="section IV",
    axes=("trick", "instances"),
    cases=_cases,
    instances=(1, 10, 50),
)
