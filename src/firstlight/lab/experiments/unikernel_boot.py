"""Table I and Fig. 3(a) of the paper: where a boot spends its time."""

from collections.abc import Iterable

from firstlight.lab.experiments import Case, Experiment, Options, machines
from firstlight.lab.experiments.machines import Machine
from firstlight.lab.guests import CONSOLES, linux_root
from firstlight.model import Presentation


def _cases(options: Options) -> Iterable[Case]:
    booted = [
        Machine(hypervisor, guest, filesystem, console, clock=clock)
        for guest, filesystem in machines.guests(options, *linux_root.FILESYSTEMS)
        for hypervisor in machines.hypervisors(options, "pc", "microvm")
        for console in CONSOLES
        for clock in options.clocks
    ]
    return machines.cases(machines.AXES, booted, options)


UNIKERNEL_BOOT = Experiment(
    name="unikernel-boot",
    question="Where does a VM's boot spend its time?",
    figure="Table I, Fig. 3(a)",
    axes=machines.AXES,
    cases=_cases,
    options=(*machines.OPTIONS, "clocks"),
    instances=(1,),
    repetitions=3,
    facts=machines.kinds,
    presentation=Presentation(view="boots", counterpart="the paper's Fig. 3(a)"),
)
