"""Where one boot goes: the paper's Table I and Fig. 3(a)."""

from firstlight.lab.experiments import Experiment, Options, machines
from firstlight.lab.guests import CONSOLES, linux_root
from firstlight.model import Point


def _points(options: Options) -> list[Point]:
    points: list[Point] = [
        {"hypervisor": hypervisor, "guest": guest, "filesystem": filesystem, "console": console,
         "clock": clock}
        for guest, filesystem in machines.guests(options, *linux_root.FILESYSTEMS)
        for hypervisor in machines.hypervisors(options, "pc", "microvm")
        for console in CONSOLES
        for clock in options.clocks
    ]  # fmt: skip
    return machines.measured(points, options)


UNIKERNEL_BOOT = Experiment(
    name="unikernel-boot",
    question="Where does one boot go?",
    figure="Table I, Fig. 3(a)",
    axes=machines.AXES,
    points=_points,
    backend=machines.backend,
    instances=(1,),
    repetitions=3,
    facts=machines.kinds,
)
