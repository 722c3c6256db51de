"""What the recommended design gains: prepared parts against a runtime with a CNI plugin."""

from firstlight.backends import Backend
from firstlight.backends.agile import BY_CLIENT, DEPTHS, Agile
from firstlight.backends.agile_floor import Floor
from firstlight.backends.pod import Pod
from firstlight.experiments import Experiment, Options
from firstlight.model import Point

_NETWORK = "bridge"
_BY_CLIENT = f"agile{BY_CLIENT}"


def _points(options: Options) -> list[Point]:
    runtimes = options.runtimes or ("runc", "crun")
    return [
        {"backend": backend, "instances": instances}
        for backend in (
            *(f"{runtime} + {_NETWORK}" for runtime in runtimes),
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
    return Agile(name) if name in DEPTHS else Pod(name.removesuffix(f" + {_NETWORK}"), _NETWORK)


AGILE = Experiment(
    name="agile",
    question="What do prepared parts gain over making them on request?",
    figure="section IV",
    axes=("backend", "instances"),
    points=_points,
    backend=_backend,
    instances=(1, 10, 50, 100),
)
