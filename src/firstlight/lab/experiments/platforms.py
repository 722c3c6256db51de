"""Containers, prepared parts and machines side by side: what one function costs to start."""

from firstlight.lab.backends import Backend
from firstlight.lab.backends.agile import Agile
from firstlight.lab.backends.pod import Pod
from firstlight.lab.experiments import Experiment, Options, machines
from firstlight.model import Point

_NETWORK = "bridge"
_AGILE = ("agile", "agile-ready")
_ROOT = "squashfs"


def _points(options: Options) -> list[Point]:
    runtimes = options.runtimes or ("runc", "crun")
    names = [f"{runtime} + {_NETWORK}" for runtime in runtimes]
    names += _AGILE
    names += [
        f"{hypervisor}: {guest} {filesystem}"
        for guest, filesystem in machines.guests(options, _ROOT)
        for hypervisor in _hypervisors(options)
    ]
    return [
        {"platform": name, "instances": instances}
        for name in names
        for instances in options.instances
    ]


def _hypervisors(options: Options) -> list[str]:
    booting = machines.hypervisors(options, "microvm")
    return [*booting, f"{booting[-1]}{machines.SNAPSHOT}"]


def _backend(point: Point) -> Backend:
    name = str(point["platform"])
    if name in _AGILE:
        return Agile(name)
    hypervisor, colon, rest = name.partition(": ")
    if not colon:
        return Pod(name.removesuffix(f" + {_NETWORK}"), _NETWORK)
    guest, _, filesystem = rest.partition(" ")
    return machines.backend({"hypervisor": hypervisor, "guest": guest, "filesystem": filesystem})


PLATFORMS = Experiment(
    name="platforms",
    question="What does one function cost to start in a container, from prepared parts, in a VM?",
    figure="sections III and IV",
    axes=("platform", "instances"),
    points=_points,
    backend=_backend,
    instances=(1, 10),
    repetitions=5,
)
