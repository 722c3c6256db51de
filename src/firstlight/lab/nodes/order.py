"""The order for a node's Job, and the events that it reports: each a line of JSON."""

import msgspec

from firstlight.lab.experiments import Options

VARIABLE = "FIRSTLIGHT_ORDER"
"""The environment variable of a Job with its order."""


class Order(msgspec.Struct, frozen=True):
    """A plan of ``runner.Plan``, with its experiment by name."""

    experiment: str
    options: Options
    repetitions: int | None
    seed: int
    traced: bool
    cold: bool
    deadline: float
    budget: float | None


class Event(msgspec.Struct, frozen=True):
    """``progress`` with the share that is done, ``measured``, or ``failed`` with the reason."""

    kind: str
    done: float = 0.0
    message: str = ""
