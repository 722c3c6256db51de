"""Pools of fixed size, and pools that follow the demand, on a published trace's arrivals."""

from collections.abc import Iterator

from firstlight.lab.backends.replay import Replay, calls
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.model import Presentation

_FIXED = (0, 4, 8)


def _cases(options: Options) -> Iterator[Case]:
    for backend in (Replay(None), *map(Replay, _FIXED)):
        for instances in options.instances:
            _, shape = calls(instances)
            yield Case({"pool": backend.name, "instances": instances}, backend, shape)


TRACE_REPLAY = Experiment(
    name="trace-replay",
    question="What do pools that follow the demand cost and gain, over those of fixed size?",
    figure="related work",
    axes=("pool", "instances"),
    cases=_cases,
    instances=(200,),
    fast_instances=(25,),  # four minutes of the hour, so that each pool has its turn
    repetitions=4,
    presentation=Presentation(
        subject="a call of a function whose pool is {series}", view="trace-replay"
    ),
)
