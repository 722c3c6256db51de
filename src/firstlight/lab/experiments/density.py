"""Do starts take longer on a full host?"""

from collections.abc import Iterator

from firstlight.lab.backends.agile_parts import Crowd
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.model import Presentation

BACKGROUND = (10, 100, 500, 1000)


def _cases(options: Options) -> Iterator[Case]:
    for background in BACKGROUND:
        for instances in options.instances:
            yield Case({"background": background, "instances": instances}, Crowd(background))


DENSITY = Experiment(
    name="density",
    question="Do running instances slow a new one?",
    figure="section IV",
    axes=("background", "instances"),
    cases=_cases,
    instances=(1,),
    presentation=Presentation(view="density"),
)
