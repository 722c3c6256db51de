"""Fig. 5 of the paper: what grows when many VMs boot at once."""

from collections.abc import Iterable

from firstlight.lab.experiments import Case, Experiment, Options, machines
from firstlight.lab.experiments.machines import Machine
from firstlight.lab.guests import CONSOLES
from firstlight.model import Presentation

_AXES = ("hypervisor", "guest", "filesystem", "console", "protocol", "accel", "instances")


def _cases(options: Options) -> Iterable[Case]:
    booted = [
        Machine(machines.pc(options), guest, filesystem, console)
        for guest, filesystem in machines.guests(options, "squashfs", "ext4")
        for console in CONSOLES
    ]
    return machines.cases(_AXES, booted, options)


UNIKERNEL_SCALE = Experiment(
    name="unikernel-scale",
    question="What grows when many VMs boot at once?",
    figure="Fig. 5",
    axes=_AXES,
    cases=_cases,
    options=machines.OPTIONS,
    instances=(1, 2, 4, 8, 16),
    repetitions=4,
    facts=machines.kinds,
    presentation=Presentation(view="boots", counterpart="the paper's Fig. 5"),
)
