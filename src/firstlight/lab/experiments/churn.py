"""What a platform sees all day: starts and stops that go on, past the end of its pools."""

from firstlight.lab.backends.agile_parts import POOLS, Churn
from firstlight.lab.experiments import Experiment, Options
from firstlight.model import Point

RATES = (50, 100, 200, 400)
"""Starts a second, and as many stops."""


def _points(options: Options) -> list[Point]:
    return [
        {"pools": pools, "rate": rate, "instances": instances}
        for pools in POOLS
        for rate in RATES
        for instances in options.instances
    ]


CHURN = Experiment(
    name="churn",
    question="How many starts and stops a second, and what does refilling the pools cost them?",
    figure="section IV",
    axes=("pools", "rate", "instances"),
    points=_points,
    backend=lambda point: Churn(str(point["pools"])),
    instances=(100,),
)
