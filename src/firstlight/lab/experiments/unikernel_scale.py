"""What grows when many boot at once: the paper's Fig. 5."""

from firstlight.lab.experiments import Experiment, Options, machines
from firstlight.lab.guests import CONSOLES
from firstlight.model import Point


def _points(options: Options) -> list[Point]:
    points: list[Point] = [
        {"hypervisor": machines.pc(options), "guest": guest, "filesystem": filesystem,
         "console": console}
        for guest, filesystem in machines.guests(options, "squashfs", "ext4")
        for console in CONSOLES
    ]  # fmt: skip
    return machines.measured(points, options)


UNIKERNEL_SCALE = Experiment(
    name="unikernel-scale",
    question="What grows when many boot at once?",
    figure="Fig. 5",
    axes=("hypervisor", "guest", "filesystem", "console", "protocol", "accel", "instances"),
    points=_points,
    backend=machines.backend,
    instances=(1, 2, 4, 8, 16),
    repetitions=3,
    facts=machines.kinds,
)
