"""What prepared parts gain against a runtime with a CNI plugin."""

from collections.abc import Iterator

from firstlight.lab.backends import Backend
from firstlight.lab.backends.agile import DEPTHS, Agile
from firstlight.lab.backends.agile_floor import Floor
from firstlight.lab.backends.pod import POOLED, Pod
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.model import Presentation

_NETWORKS = ("bridge", POOLED)


def _backends(options: Options) -> Iterator[tuple[str, Backend]]:
    for network in _NETWORKS:
        for runtime in options.runtimes or ("runc", "crun"):
            yield f"{runtime} + {network}", Pod(runtime, network)
    prepared: list[Backend] = [*map(Agile, DEPTHS), Agile("agile", "client"), Floor()]
    for backend in prepared:
        yield backend.name, backend


def _cases(options: Options) -> Iterator[Case]:
    for name, backend in _backends(options):
        for instances in options.instances:
            yield Case({"backend": name, "instances": instances}, backend)


AGILE = Experiment(
    name="agile",
    question="What do prepared parts gain over making them on request?",
    figure="section IV",
    axes=("backend", "instances"),
    cases=_cases,
    options=("runtimes",),
    instances=(1, 10, 50, 100),
    presentation=Presentation(view="agile"),
)
