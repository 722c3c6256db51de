"""Kinds of functions: the cost of a start, and the isolation."""

from collections.abc import Iterator

from firstlight.lab.backends import Backend
from firstlight.lab.backends.functions import KINDS, Invoked, Program, PythonInRunc
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.model import Presentation


def _backends() -> Iterator[Backend]:
    yield PythonInRunc()
    yield Program()
    yield from map(Invoked, KINDS)


def _cases(options: Options) -> Iterator[Case]:
    for backend in _backends():
        for instances in options.instances:
            yield Case({"function": backend.name, "instances": instances}, backend)


FUNCTIONS = Experiment(
    name="functions",
    question="What does it cost to start each kind of function?",
    figure="related work",
    axes=("function", "instances"),
    cases=_cases,
    instances=(1, 10, 50),
    presentation=Presentation(view="functions"),
)
