"""Sustained starts and stops, as on a platform, beyond the size of the pools."""

from collections.abc import Iterator

from firstlight.lab.backends.agile_parts import POOLS, Churn
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.lab.load import Poisson
from firstlight.model import Presentation

RATES = (50, 100, 200, 400)
"""Starts per second, and as many stops."""


def _cases(options: Options) -> Iterator[Case]:
    for pools in POOLS:
        for rate in RATES:
            for instances in options.instances:
                yield Case(
                    {"pools": pools, "rate": rate, "instances": instances},
                    Churn(pools),
                    Poisson(rate),
                )


CHURN = Experiment(
    name="churn",
    question="How many starts and stops per second, and what does refilling the pools cost them?",
    figure="section IV",
    axes=("pools", "rate", "instances"),
    cases=_cases,
    instances=(100,),
    presentation=Presentation(view="churn"),
)
