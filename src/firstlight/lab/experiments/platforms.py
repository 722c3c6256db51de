"""Containers, sandboxes, prepared parts, HTTP and VMs: what it costs to start one function."""

from collections.abc import Iterator
from dataclasses import replace

from firstlight.lab.backends import Backend
from firstlight.lab.backends.agile import Agile
from firstlight.lab.backends.containerd import Containerd
from firstlight.lab.backends.over_http import KINDS, OverHttp
from firstlight.lab.backends.pod import Pod
from firstlight.lab.backends.sandboxer import PROGRAMS, Sandboxer
from firstlight.lab.experiments import Case, Experiment, Options, machines
from firstlight.lab.experiments.machines import Hypervisor, Machine
from firstlight.model import Presentation

_NETWORK = "bridge"
_DEPTHS = ("agile", "agile-ready")
_ROOT = "squashfs"


def _platforms(options: Options) -> Iterator[tuple[str, Backend]]:
    for runtime in options.runtimes or ("runc", "crun"):
        yield f"{runtime} + {_NETWORK}", Pod(runtime, _NETWORK)
    for program in PROGRAMS:
        yield program, Sandboxer(program)
    yield "containerd (ctr)", Containerd("runc")
    for depth in _DEPTHS:
        yield depth, Agile(depth)
    for kind in KINDS:
        yield f"agile, boto3: {kind}", OverHttp(kind)
    for guest, filesystem in machines.guests(options, _ROOT):
        for hypervisor in _hypervisors(options):
            machine = Machine(hypervisor, guest, filesystem)
            yield f"{hypervisor.name}: {guest} {filesystem}", machines.backend(machine)


def _hypervisors(options: Options) -> list[Hypervisor]:
    booting = machines.hypervisors(options, "microvm")
    return [*booting, replace(booting[-1], snapshot=True)]


def _cases(options: Options) -> Iterator[Case]:
    for name, backend in _platforms(options):
        for instances in options.instances:
            yield Case({"platform": name, "instances": instances}, backend)


PLATFORMS = Experiment(
    name="platforms",
    question="What does it cost to start a function, by what one could use for it?",
    figure="sections III and IV",
    axes=("platform", "instances"),
    cases=_cases,
    options=("runtimes", "hypervisors", "guests"),
    instances=(1, 10),
    fast_instances=(1,),
    repetitions=5,
    presentation=Presentation(view="platforms"),
)
