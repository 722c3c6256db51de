"""What each prepared part gains: the runtime with and without it."""

from collections.abc import Iterator

from firstlight.lab.backends.agile_parts import WITHOUT, Ablated
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.model import Presentation


def _cases(options: Options) -> Iterator[Case]:
    for part in WITHOUT:
        for instances in options.instances:
            yield Case({"without": part, "instances": instances}, Ablated(part))


ABLATION = Experiment(
    name="ablation",
    question="What does each prepared part gain?",
    figure="section IV",
    axes=("without", "instances"),
    cases=_cases,
    instances=(1, 20),
    presentation=Presentation(view="ablation"),
)
