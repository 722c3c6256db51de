"""Fig. 7 of the paper: where network set-up spends its time, in sequence and at once."""

from collections.abc import Iterator

from firstlight.lab.backends.network import METHODS, NetworkSetup
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.lab.load import BURST, Sequence, Shape
from firstlight.model import Presentation

_ORDERS: dict[str, Shape] = {"sequential": Sequence(), "parallel": BURST}


def _cases(options: Options) -> Iterator[Case]:
    for method in METHODS:
        for order, shape in _ORDERS.items():
            for instances in options.instances:
                yield Case(
                    {"method": method, "order": order, "instances": instances},
                    NetworkSetup(method),
                    shape,
                )


NETWORK_SETUP = Experiment(
    name="network-setup",
    question="Where does network set-up spend its time, in sequence and at once?",
    figure="Fig. 7(a), 7(b)",
    axes=("method", "order", "instances"),
    cases=_cases,
    presentation=Presentation(
        subject="a network set-up request ({series})", counterpart="the paper's Fig. 7"
    ),
)
