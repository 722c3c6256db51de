"""Fig. 3(b) of the paper: does a larger hypervisor start more slowly, because of linking?

All builds boot the same guest on the same machine type, under the same accelerator.
"""

import shutil
from collections.abc import Iterator

from firstlight.errors import Unsupported
from firstlight.lab.backends import qemu_build
from firstlight.lab.backends.accel import choose
from firstlight.lab.backends.qemu import Qemu
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.lab.guests.probe import Probe
from firstlight.model import Presentation, Setting

_DEBIANS = ("qemu-system-x86_64", "qemu-system-x86_64-microvm")


def _builds(options: Options) -> tuple[str, ...]:
    return (*_DEBIANS, *(build for build in options.hypervisors if build not in _DEBIANS))


def _cases(options: Options) -> Iterator[Case]:
    builds = _builds(options)
    accel = _common(builds, options.accel)
    for build in builds:
        machine = Qemu(Probe("none", packet=False), binary=build, accel=accel, devices=())
        for instances in options.instances:
            yield Case({"build": build, "accel": accel, "instances": instances}, machine)


def _common(builds: tuple[str, ...], wanted: str) -> str:
    """An accelerator that all builds have, so that nothing else differs; or the given one."""
    programs = [program for build in builds if (program := shutil.which(build))]
    for accel in ("tcg", "kvm") if wanted == "auto" else (wanted,):
        try:
            for program in programs:
                choose(program, accel)
        except Unsupported:
            continue
        return accel
    return "tcg" if wanted == "auto" else wanted


def _facts(options: Options) -> dict[str, Setting]:
    """The contents of each build, and its dynamic linking by the linker's own count."""
    facts: dict[str, Setting] = {}
    for build in _builds(options):
        if program := shutil.which(build):
            features, linking = qemu_build.features(program), qemu_build.linking(program)
            facts |= {
                f"{build}: features": features.devices,
                f"{build}: machine types": features.machines,
                f"{build}: shared objects": linking.shared_objects,
                f"{build}: relocations": linking.relocations + linking.relative_relocations,
                f"{build}: linker ns": linking.total_ns,
                f"{build}: of which relocating ns": linking.relocation_ns,
            }
    return facts


HYPERVISOR_BUILDS = Experiment(
    name="hypervisor-builds",
    question="Does a larger hypervisor start more slowly?",
    figure="Fig. 3(b)",
    axes=("build", "accel", "instances"),
    cases=_cases,
    options=("hypervisors", "accel"),
    instances=(1,),
    facts=_facts,
    presentation=Presentation(view="builds", counterpart="the paper's Fig. 3(b)"),
)
