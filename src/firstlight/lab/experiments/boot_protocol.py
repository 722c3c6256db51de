"""What each way into a guest's kernel costs: a boot sector, firmware, PVH, the 64-bit entry."""

from firstlight.lab.experiments import Experiment, Options, machines
from firstlight.lab.guests import PROTOCOLS
from firstlight.model import Point


def _points(options: Options) -> list[Point]:
    points: list[Point] = [
        {"hypervisor": hypervisor, "guest": guest, "filesystem": filesystem, "protocol": protocol}
        for guest, filesystem in machines.guests(options, "initramfs")
        for hypervisor in machines.hypervisors(options, "pc", "microvm")
        for protocol in PROTOCOLS
    ]
    return machines.measured(points, options)


BOOT_PROTOCOL = Experiment(
    name="boot-protocol",
    question="What does each way into the guest's kernel cost?",
    figure="Fig. 3(a)",
    axes=("hypervisor", "guest", "filesystem", "protocol", "accel", "instances"),
    points=_points,
    backend=machines.backend,
    instances=(1,),
    repetitions=3,
    facts=machines.kinds,
)
