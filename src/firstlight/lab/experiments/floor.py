"""The floor that no runtime can beat: one clone and exec, with each namespace."""

from collections.abc import Iterator

from firstlight.lab.backends.process import NAMESPACES, Process
from firstlight.lab.experiments import Case, Experiment, Options


def _cases(options: Options) -> Iterator[Case]:
    for namespaces in NAMESPACES:
        for instances in options.instances:
            yield Case({"namespaces": namespaces, "instances": instances}, Process(namespaces))


FLOOR = Experiment(
    name="floor",
    question="What do clone, exec and each namespace cost alone?",
    figure="section II-B",
    axes=("namespaces", "instances"),
    cases=_cases,
)
