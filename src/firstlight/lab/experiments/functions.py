"""Kinds of functions side by side: what it costs to start each, and which isolation it gives."""

from firstlight.lab.backends import Backend
from firstlight.lab.backends.functions import KINDS, RUNC, Invoked, Program, PythonInRunc
from firstlight.lab.experiments import Experiment, Options
from firstlight.model import Point

COMMAND = "agile"


def _points(options: Options) -> list[Point]:
    return [
        {"function": function, "instances": instances}
        for function in (RUNC, COMMAND, *KINDS)
        for instances in options.instances
    ]


def _backend(point: Point) -> Backend:
    name = str(point["function"])
    if name == RUNC:
        return PythonInRunc()
    return Program() if name == COMMAND else Invoked(name)


FUNCTIONS = Experiment(
    name="functions",
    question="What does each kind of function cost to start?",
    figure="related work",
    axes=("function", "instances"),
    points=_points,
    backend=_backend,
    instances=(1, 10, 50),
)
