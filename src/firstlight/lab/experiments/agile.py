"""What the recommended design gains: prepared parts against a runtime with a CNI plugin."""

from firstlight.lab.backends import Backend
from firstlight.lab.backends.agile import BY_CLIENT, DEPTHS, Agile
from firstlight.lab.backends.agile_floor import Floor
from firstlight.lab.backends.pod import POOLED, Pod
from firstlight.lab.experiments import Experiment, Options
from firstlight.model import Point

_NETWORKS = ("bridge", POOLED)
_BY_CLIENT = f"agile{BY_CLIENT}"


def _points(options: Options) -> list[Point]:
    runtimes = options.runtimes or ("runc", "crun")
    return [
        {"backend": backend, "instances": instances}
        for backend in (
            *(f"{runtime} + {network}" for network in _NETWORKS for runtime in runtimes),
            *DEPTHS,
            _BY_CLIENT,
            "floor",
        )
        for instances in options.instances
    ]


def _backend(point: Point) -> Backend:
    name = str(point["backend"])
    if name == "floor":
        return Floor()
    if name == _BY_CLIENT:
        return Agile("agile", "client")
    runtime, _, network = name.rpartition(" + ")
    return Pod(runtime, network) if runtime else Agile(name)


AGILE = Experiment(
    name="agile",
    question="What do prepared parts gain over making them on request?",
    figure="section IV",
    axes=("backend", "instances"),
    points=_points,
    backend=_backend,
    instances=(1, 10, 50, 100),
)
