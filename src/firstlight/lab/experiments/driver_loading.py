"""Which driver costs what, on each console, alone and with many at once: the paper's Fig. 4."""

from firstlight.lab.experiments import Experiment, Options, machines
from firstlight.lab.guests import CONSOLES
from firstlight.model import Point


def _points(options: Options) -> list[Point]:
    points: list[Point] = [
        {"hypervisor": machines.pc(options), "guest": guest, "filesystem": filesystem,
         "console": console, "clock": clock}
        for guest, filesystem in machines.guests(options, "squashfs", verbose=True)
        for console in CONSOLES
        for clock in options.clocks
    ]  # fmt: skip
    return machines.measured(points, options)


DRIVER_LOADING = Experiment(
    name="driver-loading",
    question="Which driver costs what, alone and with many at once?",
    figure="Fig. 4",
    axes=machines.AXES,
    points=_points,
    backend=machines.backend,
    instances=(1, 2, 4, 8, 16),
    repetitions=3,
    facts=machines.kinds,
)
