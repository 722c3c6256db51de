"""What each boot protocol costs: a boot sector, firmware, PVH, the 64-bit entry."""

from collections.abc import Iterable

from firstlight.lab.experiments import Case, Experiment, Options, machines
from firstlight.lab.experiments.machines import Machine
from firstlight.lab.guests import PROTOCOLS

_AXES = ("hypervisor", "guest", "filesystem", "protocol", "accel", "instances")


def _cases(options: Options) -> Iterable[Case]:
    booted = [
        Machine(hypervisor, guest, filesystem, protocol=protocol)
        for guest, filesystem in machines.guests(options, "initramfs")
        for hypervisor in machines.hypervisors(options, "pc", "microvm")
        for protocol in PROTOCOLS
    ]
    return machines.cases(_AXES, booted, options)


BOOT_PROTOCOL = Experiment(
    name="boot-protocol",
    question="What does each boot protocol cost?",
    figure="Fig. 3(a)",
    axes=_AXES,
    cases=_cases,
    options=machines.OPTIONS,
    instances=(1,),
    repetitions=3,
    facts=machines.kinds,
    presentation=machines.BOOTS,
)
