"""The VMs that experiments boot: their cases and the labels of their points."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from firstlight.errors import FirstlightError, UnknownName, Unsupported
from firstlight.lab.backends import Backend
from firstlight.lab.backends.accel import choose, in_use
from firstlight.lab.backends.firecracker import Firecracker
from firstlight.lab.backends.qemu import Qemu
from firstlight.lab.experiments import Case, Option, Options
from firstlight.lab.guests import BootConfig, Guest, built_in, catalogue
from firstlight.lab.guests.linux import Linux
from firstlight.lab.guests.osv import Osv
from firstlight.model import Presentation, Setting

AXES = ("hypervisor", "guest", "filesystem", "console", "protocol", "clock", "accel", "instances")
"""The axes of an experiment with both consoles and both clocks."""
OPTIONS: tuple[Option, ...] = ("hypervisors", "accel", "guests")
"""The options of every experiment with VMs."""
BOOTS = Presentation(view="boots")
QEMU = "qemu-system-x86_64"


@dataclass(frozen=True)
class Hypervisor:
    """A QEMU with its machine type, or a Firecracker; by name or path.

    ``snapshot``: a guest is restored, not booted.
    """

    binary: str
    machine: str = ""
    snapshot: bool = False

    @property
    def is_firecracker(self) -> bool:
        """Whether the hypervisor is Firecracker, not QEMU."""
        return "firecracker" in Path(self.binary).name

    @property
    def name(self) -> str:
        """Its label: ``qemu pc``, ``firecracker``, ``firecracker snapshot``."""
        binary = "qemu" if self.binary == QEMU else self.binary
        return " ".join(filter(None, (binary, self.machine, "snapshot" * self.snapshot)))


@dataclass(frozen=True)
class Machine:
    """A guest on a hypervisor. An empty ``protocol`` means the shortest one available.

    ``guest`` is ``probe``, ``linux`` or a name of the guest catalogue.
    """

    hypervisor: Hypervisor
    guest: str
    filesystem: str
    console: str = "serial"
    protocol: str = ""
    clock: str = "wall"


def hypervisors(options: Options, *machines: str) -> list[Hypervisor]:
    """The hypervisors to compare: each QEMU with each machine type, and Firecracker."""
    given = [Hypervisor(binary) for binary in options.hypervisors]
    qemus = [each.binary for each in given if not each.is_firecracker]
    return [
        *(Hypervisor(binary, machine) for binary in qemus or [QEMU] for machine in machines),
        *([each for each in given if each.is_firecracker] or [Hypervisor("firecracker")]),
    ]


def pc(options: Options) -> Hypervisor:
    """The hypervisor of an experiment that does not compare hypervisors."""
    return hypervisors(options, "pc")[0]


def guests(options: Options, *filesystems: str, verbose: bool = False) -> list[tuple[str, str]]:
    """Guests and their file systems: built-in and in the catalogue, or the chosen ones.

    ``filesystems`` are for built-in guests that have several. Built-in guests are also taken
    ``verbose`` where the cost of a console is the question.
    """
    added = {entry.name: entry.filesystem for entry in catalogue.entries()}
    known = (*added, *built_in.NAMES)
    for name in options.guests:
        if name not in known:
            raise UnknownName("guest", name, known)
    names = options.guests or (*added, *(built_in.NAMES if verbose else built_in.ALL))
    return [
        (name, filesystem)
        for name in names
        for filesystem in ((added[name],) if name in added else _filesystems(name, filesystems))
    ]


def _filesystems(name: str, filesystems: tuple[str, ...]) -> tuple[str, ...]:
    only = built_in.ALL[name.removesuffix(built_in.VERBOSE)].filesystem
    return (only,) if only else filesystems


def kinds(_: Options) -> dict[str, Setting]:
    """The kind of each of the user's guests, and the accelerators of QEMU's machines.

    Claims compare within a kind of guest.
    """
    kinds: dict[str, Setting] = {f"guest {entry.name}": entry.kind for entry in catalogue.entries()}
    return {**kinds, "accelerators": ", ".join(in_use())}


def protocol(machine: Machine) -> str:
    """The protocol that boots a guest: as its machine says, else the shortest one.

    Linux has a VGA text console only by firmware, so on a PC it is booted by firmware on either
    console. Every Firecracker has the 64-bit entry, newer ones also PVH.
    """
    if machine.protocol:
        return machine.protocol
    if machine.hypervisor.is_firecracker:
        return "direct"
    guest = _guest(machine.guest, machine.filesystem)
    is_on_screen = isinstance(guest, Linux) and machine.hypervisor.machine == "pc"
    ways = ("kernel", "pvh") if is_on_screen else ("pvh", "kernel", "disk")
    return next((way for way in ways if _boots(guest, way)), ways[0])


def _boots(guest: Guest, way: str) -> bool:
    try:
        guest.probe(BootConfig(way))
    except FirstlightError:
        return False
    return True


def cases(axes: tuple[str, ...], machines: Iterable[Machine], options: Options) -> Iterator[Case]:
    """A case for each VM and number of instances, with the settings of these axes."""
    for machine in machines:
        accel = _accelerator(machine, options)
        settings: dict[str, Setting] = {
            "hypervisor": machine.hypervisor.name,
            "guest": machine.guest,
            "filesystem": machine.filesystem,
            "console": machine.console,
            "protocol": protocol(machine),
            "clock": machine.clock,
            "accel": accel,
        }
        for instances in options.instances:
            if machine.clock == "counted" and not _can_count(machine, instances, options):
                continue
            yield Case(
                {axis: instances if axis == "instances" else settings[axis] for axis in axes},
                backend(machine, accel),
            )


def _can_count(machine: Machine, instances: int, options: Options) -> bool:
    """Only QEMU counts instructions, and neighbours do not change a count."""
    return instances == min(options.instances) and not machine.hypervisor.is_firecracker


def backend(machine: Machine, accel: str = "auto") -> Backend:
    """The backend that boots a VM."""
    hypervisor, guest = machine.hypervisor, _guest(machine.guest, machine.filesystem)
    if hypervisor.is_firecracker:
        return Firecracker(
            guest,
            way="snapshot" if hypervisor.snapshot else "config",
            protocol=protocol(machine),
            console=machine.console,
            binary=hypervisor.binary,
        )
    return Qemu(
        guest,
        machine=hypervisor.machine,
        protocol=protocol(machine),
        console=machine.console,
        accel=accel,
        binary=hypervisor.binary,
        icount=machine.clock == "counted",
        # Under TCG OSv has no clock to print; its chart in memory costs the boot nothing.
        chart="memory" if isinstance(guest, Osv) else "console",
    )


def _accelerator(machine: Machine, options: Options) -> str:
    if machine.hypervisor.is_firecracker:
        return "kvm"
    program = shutil.which(machine.hypervisor.binary)
    try:
        if program:
            counted = machine.clock == "counted"
            return choose(str(Path(program).absolute()), options.accel, must_be_tcg=counted).name
    except Unsupported:
        pass
    return options.accel


@cache
def _guest(name: str, filesystem: str) -> Guest:
    if name in built_in.NAMES:
        brought = built_in.ALL[name.removesuffix(built_in.VERBOSE)]
        return brought.make(filesystem, name.endswith(built_in.VERBOSE))
    return catalogue.guest(catalogue.find(name))
