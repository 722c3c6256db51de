"""Fig. 4 of the paper: what each driver costs, by console, alone and with many at once."""

from collections.abc import Iterable

from firstlight.lab.experiments import Case, Experiment, Options, machines
from firstlight.lab.experiments.machines import Machine
from firstlight.lab.guests import CONSOLES
from firstlight.model import Presentation


def _cases(options: Options) -> Iterable[Case]:
    booted = [
        Machine(machines.pc(options), guest, filesystem, console, clock=clock)
        for guest, filesystem in machines.guests(options, "squashfs", verbose=True)
        for console in CONSOLES
        for clock in options.clocks
    ]
    return machines.cases(machines.AXES, booted, options)


DRIVER_LOADING = Experiment(
    name="driver-loading",
    question="What does each driver cost, alone and with many at once?",
    figure="Fig. 4",
    axes=machines.AXES,
    cases=_cases,
    options=(*machines.OPTIONS, "clocks"),
    instances=(1, 2, 4, 8, 16),
    repetitions=4,
    facts=machines.kinds,
    presentation=Presentation(view="boots", counterpart="the paper's Fig. 4"),
)
