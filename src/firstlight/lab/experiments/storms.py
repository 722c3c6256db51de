"""Known storms, each with its remedy: is it named from the trace, and is its prediction right?"""

from collections.abc import Iterator

from firstlight.lab.backends import storm as storms
from firstlight.lab.backends.network import NetworkSetup
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.model import Presentation

_NETWORK = {
    "veth move": ("none", "veth in place"),
    "duplicate-address detection": ("DAD on", "DAD off"),
}
"""Each storm with the tricks of backends.network that meet and avoid it."""

MET, MENDED = "met", "mended"


def _cases(options: Options) -> Iterator[Case]:
    for instances in options.instances:
        for storm, tricks in _NETWORK.items():
            for state, trick in zip((MET, MENDED), tricks, strict=True):
                yield Case(_point(storm, state, instances), NetworkSetup(trick=trick))
        for storm in storms.STORMS:
            for state in (MET, MENDED):
                yield Case(_point(storm, state, instances), storms.Storm(storm, state == MENDED))


def _point(storm: str, state: str, instances: int) -> dict[str, str | int | float | bool]:
    return {"storm": storm, "state": state, "instances": instances}


STORMS = Experiment(
    name="storms",
    question="Are the storms known from production named from a trace, with their gain?",
    figure="beyond the paper",
    axes=("storm", "state", "instances"),
    cases=_cases,
    instances=(1,),
    beside="state",
    presentation=Presentation(subject="a start ({series})", view="storms"),
)
