"""The machines that experiments boot, by the words that their points use.

``hypervisor`` is ``BINARY MACHINE`` (``qemu`` stands for the QEMU on PATH), or a Firecracker's name
or path, with `` snapshot`` behind it where a guest is restored and not booted. ``guest`` is
``probe``, ``linux`` or a name of the guest catalogue.
"""

import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from firstlight.errors import FirstlightError, UnknownName, Unsupported
from firstlight.lab.backends import Backend
from firstlight.lab.backends.accel import choose, in_use
from firstlight.lab.backends.firecracker import Firecracker
from firstlight.lab.backends.qemu import Qemu
from firstlight.lab.experiments import Options
from firstlight.lab.guests import Guest, Wanted, catalogue
from firstlight.lab.guests.catalogue import OWN, VERBOSE
from firstlight.lab.guests.linux import Linux
from firstlight.lab.guests.osv import Osv
from firstlight.lab.guests.probe import Probe
from firstlight.model import Point, Setting

AXES = ("hypervisor", "guest", "filesystem", "console", "protocol", "clock", "accel", "instances")
"""Of an experiment that boots by both consoles and both clocks."""
SNAPSHOT = " snapshot"
_QEMU = "qemu-system-x86_64"
_LINES = 100


def hypervisors(options: Options, *machines: str) -> list[str]:
    """What to compare: each QEMU with each type of machine, and Firecracker."""
    given = [binary for binary in options.binaries if not _is_firecracker(binary)]
    others = [binary for binary in options.binaries if _is_firecracker(binary)]
    qemus = [f"{binary} {machine}" for binary in given or ["qemu"] for machine in machines]
    return qemus + (others or ["firecracker"])


def pc(options: Options) -> str:
    """The one QEMU of an experiment that compares none."""
    return hypervisors(options, "pc")[0]


def guests(options: Options, *filesystems: str, verbose: bool = False) -> list[tuple[str, str]]:
    """Guests and their file systems: ours and the catalogue's, or those that were asked for.

    ``filesystems`` are the ones of Linux's that count here. Ours are taken ``verbose`` as well
    where a console's cost is the question.
    """
    ours = (*OWN, *(f"{name}{VERBOSE}" for name in OWN))
    added = {entry.name: entry.filesystem for entry in catalogue.entries()}
    known = (*added, *ours)
    for name in options.guests:
        if name not in known:
            raise UnknownName("guest", name, known)
    names = options.guests or (*added, *(ours if verbose else OWN))
    return [
        (name, filesystem)
        for name in names
        for filesystem in (
            filesystems if name.startswith("linux") and name in ours
            else ("erofs",) if name in ours else (added.get(name, ""),)
        )
    ]  # fmt: skip


def kinds(options: Options) -> dict[str, Setting]:
    """The kind of each of the user's guests, and the accelerators that QEMU's machines run on.

    Claims compare within a kind of guest.
    """
    del options
    kinds: dict[str, Setting] = {f"guest {entry.name}": entry.kind for entry in catalogue.entries()}
    return {**kinds, "accelerators": ", ".join(in_use())}


def protocol(hypervisor: str, guest: str, filesystem: str) -> str:
    """How a guest is booted where that is not the question: the shortest way that it has.

    Linux has a VGA text console only by firmware, so on a PC it is booted so on either console.
    Every Firecracker has the 64-bit entry, and only newer ones PVH.
    """
    if _is_firecracker(hypervisor):
        return "direct"
    booted = _guest(guest, filesystem)
    is_on_screen = isinstance(booted, Linux) and hypervisor.endswith(" pc")
    ways = ("kernel", "pvh") if is_on_screen else ("pvh", "kernel", "disk")
    return next((way for way in ways if _boots(booted, way)), ways[0])


def _boots(guest: Guest, way: str) -> bool:
    try:
        guest.probe(Wanted(way))
    except FirstlightError:
        return False
    return True


def measured(points: Iterable[Point], options: Options) -> list[Point]:
    """Points of a hypervisor and a guest made whole: how it is booted where they do not say,
    which accelerator will run it, and each number of instances."""
    return [
        {
            **point,
            "protocol": point.get("protocol")
            or protocol(*(str(point[axis]) for axis in ("hypervisor", "guest", "filesystem"))),
            "accel": _accelerator(point, options),
            "instances": instances,
        }
        for point in points
        for instances in options.instances
        if point.get("clock") != "counted" or _can_count(point, instances, options)
    ]


def _can_count(point: Point, instances: int, options: Options) -> bool:
    """Only QEMU counts, and a neighbour does not change what one counts."""
    return instances == min(options.instances) and not _is_firecracker(str(point["hypervisor"]))


def backend(point: Point) -> Backend:
    """The machine of a point; what a point does not say is as the paper had it."""
    hypervisor = str(point["hypervisor"])
    binary, _, machine = hypervisor.rpartition(" ")
    name, filesystem = str(point["guest"]), str(point["filesystem"])
    guest = _guest(name, filesystem)
    console = str(point.get("console", "serial"))
    how = str(point.get("protocol") or protocol(hypervisor, name, filesystem))
    if _is_firecracker(hypervisor):
        binary = hypervisor.removesuffix(SNAPSHOT)
        way = "config" if binary == hypervisor else "snapshot"
        return Firecracker(guest, way=way, protocol=how, console=console, binary=binary)
    return Qemu(
        guest,
        machine=machine,
        protocol=how,
        console=console,
        accel=str(point.get("accel", "auto")),
        binary=_QEMU if binary == "qemu" else binary,
        icount=point.get("clock") == "counted",
        # OSv has no clock to print by under TCG, and its chart in memory costs the boot nothing.
        chart="memory" if isinstance(guest, Osv) else "console",
    )


def _is_firecracker(hypervisor: str) -> bool:
    return "firecracker" in Path(hypervisor).name


def _accelerator(point: Point, options: Options) -> str:
    if _is_firecracker(str(point["hypervisor"])):
        return "kvm"
    binary = str(point["hypervisor"]).rpartition(" ")[0]
    found = shutil.which(_QEMU if binary == "qemu" else binary)
    try:
        if found:
            counted = point.get("clock") == "counted"
            program = str(Path(found).absolute())
            return choose(program, options.accel, must_be_tcg=counted).name
    except Unsupported:
        pass
    return options.accel


@cache
def _guest(name: str, filesystem: str) -> Guest:
    own, verbose = name.removesuffix(VERBOSE), name.endswith(VERBOSE)
    if own == "probe":
        return Probe(filesystem, packet=False, lines=_LINES if verbose else 0)
    if own == "linux":
        return Linux(filesystem, verbose=verbose)
    return catalogue.guest(catalogue.find(name))
