"""Firecracker: one process, one VM without firmware, entered at the kernel's own entry.

There are three ways to start it: from a configuration file; by API requests, which ``vmrun`` makes
and stamps; or by restoring a snapshot, which is made in advance, untimed. A kernel with a PVH note
is entered by PVH from version 1.12 on, and by the 64-bit Linux entry before. For the protocol
``direct`` it gets a copy of the kernel without the note.

The guest's first instruction follows the log's "Artificially kick devices", which Firecracker
writes last before it wakes the vCPU.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

from firstlight.errors import WITH_SUDO, Failed, NotApplicable, Unsupported
from firstlight.host.workspace import Workspace
from firstlight.lab.backends import Execute, Prepared, firecracker_api, firecracker_probe, vm
from firstlight.lab.backends.firecracker_room import (
    API,
    CONFIG,
    DISK,
    LOG,
    MEMORY,
    REQUESTS,
    STATE,
    Room,
    find_jailer,
    until_ready,
)
from firstlight.lab.guests import BootConfig, BootSpec, Guest, images
from firstlight.model import EndPoint, GuestLog

WAYS = ("config", "api", "snapshot")
DEVICES = ("block", "net", "rng")
PROTOCOLS = ("direct", "pvh")
_FIRST_WITH_PVH = (1, 12, 0)


@dataclass(frozen=True)
class Firecracker:
    """A guest in a VM. ``binary`` and ``jailer`` are names or paths.

    A jailed VM stays root: changing its identity would cancel the signal that ends it with its
    parent. It has a disk or a tap only if the guest has one and the device is named.
    """

    guest: Guest
    way: str = "config"
    protocol: str = "direct"
    console: str = "serial"
    binary: str = firecracker_probe.BINARY
    jailer: str | None = None
    devices: tuple[str, ...] = DEVICES
    memory_mb: int = 1024
    cpus: int = 1
    chart: str = "console"

    @property
    def name(self) -> str:
        """How it is started, and the guest's name."""
        jailed = " jailed" if self.jailer else ""
        how = f"{self.way} {self.protocol}{jailed}"
        return f"{Path(self.binary).name} {how}: {self.guest.name} {self.guest.filesystem}"

    @property
    def end_point(self) -> EndPoint:
        """The guest's; for a restored guest, the first instruction after the restore."""
        return EndPoint.FIRST_INSTRUCTION if self.way == "snapshot" else self.guest.end_point

    @property
    def note(self) -> str | None:
        """The version, the speed of KVM, and where a restored guest's start ends."""
        try:
            program = firecracker_probe.find(self.binary)
            pace = firecracker_probe.run_guest(program)
            version = ".".join(map(str, firecracker_probe.version(program)))
        except Unsupported:
            return None
        ends = "; a restored guest is ready when the API has answered that it runs"
        return f"Firecracker {version}: {pace}{ends if self.way == 'snapshot' else ''}"

    @property
    def _config(self) -> BootConfig:
        return BootConfig(self.protocol, self.console, chart=self.chart)

    def to_first_packet(self) -> Self:
        """The same, to the gateway's answer to the guest's first packet."""
        if self.way == "snapshot":
            raise Unsupported(
                "a restored guest cannot report its first packet", "boot the guest instead"
            )
        return replace(self, guest=vm.to_first_packet(self.guest))

    def probe(self) -> None:
        """Needs root, the binary, a KVM that runs guests, taps, and the guest."""
        if os.geteuid() != 0:
            raise Unsupported("starting VMs on the lab's network needs root", WITH_SUDO)
        self._check_words()
        program = firecracker_probe.find(self.binary)
        version = firecracker_probe.version(program)
        if self.protocol == "pvh" and version < _FIRST_WITH_PVH:
            raise Unsupported(
                f"{program} is older than 1.12 and cannot boot by PVH",
                "use the protocol direct, or a newer Firecracker",
            )
        if self.jailer:
            firecracker_probe.version(find_jailer(self.jailer))
        firecracker_probe.run_guest(program)
        if "net" in self.devices:
            vm.probe_taps()
        self.guest.probe(self._config)

    def _check_words(self) -> None:
        if self.protocol in ("disk", "kernel"):
            raise NotApplicable(
                f"Firecracker has no firmware, which the protocol {self.protocol} needs",
                "use the protocol direct or pvh",
            )
        if self.console != "serial":
            raise NotApplicable(f"Firecracker has no {self.console} console", "use serial")
        if self.chart != "console":
            raise NotApplicable(
                f"Firecracker does not expose its guest's {self.chart}", "use the chart console"
            )
        words = [(self.way, WAYS), (self.protocol, PROTOCOLS)]
        for word, valid in [*words, *((device, DEVICES) for device in self.devices)]:
            if word not in valid:
                raise Unsupported(
                    f"unknown option {word!r} of Firecracker's backend",
                    f"valid: {', '.join(valid)}",
                )

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """A tap, a directory and an image for each VM."""
        with vm.batch(workspace, instances, self.devices) as (directory, ports):
            boots = [self._boot(port, directory) for port in ports]
            rooms = [self._room(directory, workspace, str(index)) for index in range(instances)]
            start = self._prepare_boot
            if self.way == "snapshot":
                start = partial(
                    self._prepare_restore, self._save(boots, ports[0], directory, workspace)
                )
            commands = []
            for room, boot, port in zip(rooms, boots, ports, strict=True):
                read = partial(self._read, vm.config_at(self._config, port), room.root / "console")
                argv = start(room, boot, port)
                commands.append(Execute(argv, workspace.environment, cwd=room.root, guest=read))
            yield Prepared(commands)

    def _read(self, config: BootConfig, console: Path) -> GuestLog:
        """The guest's log of its boot; a restored guest has none."""
        log = vm.guest_log(self.guest, config, console, None)
        return GuestLog("none", console=log.console) if self.way == "snapshot" else log

    def _room(self, directory: Path, workspace: Workspace, name: str) -> Room:
        program = firecracker_probe.find(self.binary)
        jailer = find_jailer(self.jailer) if self.jailer else None
        return Room.make(directory, f"{workspace.run}-{name}", program, jailer)

    def _boot(self, port: vm.Port, directory: Path) -> BootSpec:
        """What the guest boots, with a kernel for the protocol."""
        boot = self.guest.boot(vm.config_at(self._config, port), directory)
        if boot.ready is None or boot.kernel is None:
            what = "ready line on the console" if boot.kernel else "kernel"
            raise Failed(
                f"guest {self.guest.name} has no {what}, and Firecracker needs one",
                "Firecracker has neither firmware nor an exit port",
            )
        kernel = images.kernel(boot.kernel)
        if self.protocol == "pvh" and not kernel.pvh:
            raise Failed(
                f"kernel {boot.kernel} has no PVH entry",
                "use the protocol direct, or another kernel",
            )
        if self.protocol == "direct" and kernel.pvh:
            bare = directory / f"{boot.kernel.name}-direct"
            if not bare.exists():
                bare.write_bytes(without_pvh(boot.kernel.read_bytes()))
            boot = replace(boot, kernel=bare)
        return replace(boot, exit_port=None)

    def _machine(self, room: Room, boot: BootSpec, port: vm.Port) -> firecracker_api.Machine:
        disk = boot.disk if "block" in self.devices else None
        has_net = "net" in self.devices
        assert boot.kernel is not None
        return firecracker_api.Machine(
            kernel=room.bring(boot.kernel, "kernel"),
            arguments=boot.arguments,
            initrd=room.bring(boot.initrd, "initrd") if boot.initrd else None,
            disk=room.bring(disk, DISK, copied=boot.writable) if disk else None,
            writable=boot.writable,
            tap=port.tap if has_net else None,
            mac=port.mac if has_net else None,
            has_rng="rng" in self.devices,
            memory_mb=self.memory_mb,
            cpus=self.cpus,
        )

    def _prepare_boot(self, room: Room, boot: BootSpec, port: vm.Port) -> tuple[str, ...]:
        machine = self._machine(room, boot, port)
        options: tuple[str, ...] = ()
        if self.way == "api":
            requests = firecracker_api.lines(firecracker_api.requests(machine))
            (room.root / REQUESTS).write_text(requests)
            options = ("--api", API, "--requests", REQUESTS)
        else:
            (room.root / CONFIG).write_text(firecracker_api.text(machine))
        end = vm.under_vmrun(boot, room.root / "console", "--journal", LOG, *options)
        return (*end, *room.command_line(self.way))

    def _prepare_restore(
        self, saved: "_Saved", room: Room, boot: BootSpec, port: vm.Port
    ) -> tuple[str, ...]:
        state = room.bring(saved.room.root / STATE, STATE)
        memory = room.bring(saved.room.root / MEMORY, MEMORY)
        if room.jailer and saved.disk:  # the name is the same in every jail
            room.bring(saved.disk, DISK, copied=boot.writable)
        tap = port.tap if "net" in self.devices and port.tap != saved.tap else None
        requests = firecracker_api.lines(firecracker_api.restore(state, memory, tap))
        (room.root / REQUESTS).write_text(requests)
        options = ("--journal", LOG, "--api", API, "--requests", REQUESTS, "--answered")
        end = vm.under_vmrun(BootSpec(), room.root / "console", *options)
        return (*end, *room.command_line("api"))

    def _save(
        self, boots: list[BootSpec], port: vm.Port, directory: Path, workspace: Workspace
    ) -> "_Saved":
        """Boot a guest, wait until it is ready, and save its snapshot in its directory."""
        room = self._room(directory, workspace, "saved")
        machine = self._machine(room, boots[0], port)
        if machine.disk and machine.writable and len(boots) > 1 and not self.jailer:
            raise Failed(
                f"{len(boots)} restored guests would write to one disk, which the snapshot names",
                "restore one at a time, or use a read-only file system or a jailer",
            )
        (room.root / CONFIG).write_text(firecracker_api.text(machine))
        argv = (*vm.under_vmrun(boots[0], room.root / "console", "--journal", LOG),
                *room.command_line("both"))  # fmt: skip
        with until_ready(argv, workspace.environment, room.root):
            firecracker_api.perform(room.root / API, firecracker_api.save(STATE, MEMORY))
        return _Saved(room, machine.tap, room.root / DISK if machine.disk else None)


@dataclass(frozen=True)
class _Saved:
    """A snapshot's files, and the tap and the disk that it names."""

    room: Room
    tap: str | None
    disk: Path | None


def without_pvh(kernel: bytes) -> bytes:
    """An ELF kernel without its PVH note, which Firecracker would prefer to the 64-bit entry.

    Xen notes of type 18 (xen/include/public/elfnote.h) get the unused type 0.
    """
    for size in (4, 8):
        note = [size.to_bytes(4, "little"), (18).to_bytes(4, "little"), b"Xen\0"]
        pvh_note = b"\4\0\0\0" + b"".join(note)
        kernel = kernel.replace(pvh_note, pvh_note[:8] + bytes(4) + pvh_note[12:])
    return kernel
