"""QEMU: a machine of one type, booted by one protocol, with one guest in it.

What ``-kernel`` does (QEMU 7.2; hw/i386/x86.c, x86_load_linux). There is firmware on every machine
type: SeaBIOS, or on microvm a smaller build of it. It runs an option ROM that QEMU adds:
``linuxboot_dma.bin`` for a bzImage, which copies it into memory and jumps to its real-mode entry
(protocol ``kernel``), or ``pvh.bin`` for an ELF file with a PVH note, which QEMU loaded into memory
itself, and jumps to its 32-bit entry (protocol ``pvh``). There is no way to the 64-bit entry
(``direct``) without firmware: that one is Firecracker's.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

from firstlight.errors import Failed, NotApplicable, Unsupported
from firstlight.host.workspace import Workspace
from firstlight.lab.backends import Execute, Prepared, qemu_build, virtiofs, vm
from firstlight.lab.backends.accel import ACCELERATORS, Accelerator, choose
from firstlight.lab.guests import CONSOLES, PROTOCOLS, BootConfig, BootSpec, Guest, images
from firstlight.model import EndPoint

MACHINES = ("microvm", "pc", "q35")
DEVICES = ("block", "net", "rng")
_MONITOR = ("-S", "-chardev", "socket,id=monitor,fd=3", "-mon", "chardev=monitor,mode=control")
_CONSOLE = ("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console")


@dataclass(frozen=True)
class Qemu:
    """One guest on one machine. ``binary`` is a name or a path; ``accel`` one of ACCELERATORS.

    ``devices`` are virtio ones: on PCI, or memory-mapped on microvm. A disk image and a tap are
    there only if the guest has one and the device is named. ``icount`` counts instructions for
    time (TCG only); ``chart`` is BootConfig's.
    """

    guest: Guest
    machine: str = "microvm"
    protocol: str = "pvh"
    console: str = "serial"
    accel: str = "auto"
    binary: str = "qemu-system-x86_64"
    devices: tuple[str, ...] = DEVICES
    memory_mb: int = 1024
    cpus: int = 1
    icount: bool = False
    chart: str = "console"

    @property
    def name(self) -> str:
        """The binary, the machine and how it boots, and the guest's own name."""
        how = f"{self.machine} {self.protocol} {self.console}"
        counted = " icount" * self.icount
        return f"{Path(self.binary).name} {how}{counted}: {self.guest.name} {self.guest.filesystem}"

    @property
    def end_point(self) -> EndPoint:
        """The guest's."""
        return self.guest.end_point

    @property
    def note(self) -> str | None:
        """The accelerator and why it was taken, and what is special to counted time."""
        try:
            chosen = self._accelerator().sentence
        except Unsupported:
            return None
        if self.icount:
            return f"{chosen}; its guests' time is instruction-counted, and wall time says nothing"
        return chosen

    @property
    def _config(self) -> BootConfig:
        return BootConfig(self.protocol, self.console, chart=self.chart, icount=self.icount,
                      machine=self.machine, accel=self._accelerator().name)  # fmt: skip

    @property
    def _program(self) -> str:
        found = shutil.which(self.binary)
        if not found:
            raise Unsupported(
                f"hypervisor {self.binary!r} is not installed",
                "apt-get install qemu-system-x86, or give its path",
            )
        return str(Path(found).absolute())

    def _accelerator(self) -> Accelerator:
        return choose(self._program, self.accel, must_be_tcg=self.icount)

    def to_first_packet(self) -> Self:
        """Until the gateway has answered the guest's first packet."""
        return replace(self, guest=vm.to_first_packet(self.guest))

    def probe(self) -> None:
        """Needs root, the binary with its machine and devices, an accelerator, taps, the guest."""
        if os.geteuid() != 0:
            raise Unsupported("starting machines on the lab's network needs root", "run with sudo")
        _check_words(self)
        if self.protocol == "direct":
            raise NotApplicable(
                "QEMU enters no kernel by its 64-bit entry: firmware always runs first",
                "take the protocol pvh, or Firecracker",
            )
        if self.protocol == "disk" and self.machine == "microvm":
            raise NotApplicable(
                "microvm's firmware boots from no disk", "take the machine pc or q35"
            )
        if self.console == "vga" and self.machine == "microvm":
            raise NotApplicable("microvm has no VGA", "take the machine pc or q35")
        machines = qemu_build.listed(self._program, "-machine")
        if self.machine not in machines:
            raise Unsupported(
                f"{self._program} has no machine {self.machine}", "take another build of QEMU"
            )
        for model in _models(self):
            _check_device(self._program, model)
        self._accelerator()
        if "net" in self.devices:
            vm.probe_taps()
        self.guest.probe(self._config)

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """A tap and an image for each machine; afterwards neither, nor what it wrote."""
        with ExitStack() as cleanup:
            directory, ports = cleanup.enter_context(vm.batch(workspace, instances, self.devices))
            yield Prepared(
                [
                    self._command(index, port, directory, workspace, cleanup)
                    for index, port in enumerate(ports)
                ]
            )

    def _command(
        self, index: int, port: vm.Port, directory: Path, workspace: Workspace, cleanup: ExitStack
    ) -> Execute:
        config = vm.config_at(self._config, port)
        boot = self.guest.boot(config, directory)
        if boot.kernel is not None:
            _check_kernel(boot.kernel, self.protocol)
        log = directory / f"console-{index}"
        memory = directory / f"memory-{index}" if self.chart == "memory" else None
        environment = {**workspace.environment, "TMPDIR": str(directory)}
        share = directory / f"share-{index}" if boot.share else None
        daemons: tuple[int, ...] = ()
        if boot.share and share:
            daemons = (cleanup.enter_context(virtiofs.serving(boot.share, share, environment)),)
        return Execute(
            (*vm.under_vmrun(boot, log, "--qmp"), *self.command_line(boot, port, memory, share)),
            environment,
            daemons=daemons,
            guest=partial(vm.guest_log, self.guest, config, log, memory),
        )

    def command_line(
        self, boot: BootSpec, port: vm.Port, memory: Path | None = None, share: Path | None = None
    ) -> list[str]:
        """QEMU's path and arguments; with ``-S`` and a monitor on descriptor 3, as vmrun asks.

        ``memory`` is a file for the guest's, and ``share`` the socket of its virtiofsd.
        """
        chosen = self._accelerator()
        machine = f"{self.machine},accel={chosen.name}"
        line = [self._program, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
        if memory or share:
            kind = f"file,mem-path={_quoted(memory)}" if memory else "memfd"
            line += ["-object", f"memory-backend-{kind},id=memory,size={self.memory_mb}M,share=on"]
            machine += ",memory-backend=memory"
        line += ["-machine", machine, "-cpu", chosen.cpu,
                 "-m", str(self.memory_mb), "-smp", str(self.cpus),
                 "-vga", "std" if self.console == "vga" else "none",
                 *_CONSOLE, *_MONITOR]  # fmt: skip
        if self.icount:
            line += ["-icount", "shift=0,sleep=off"]
        if boot.exit_port is not None:
            _check_device(self._program, "isa-debug-exit")
            line += ["-device", f"isa-debug-exit,iobase={boot.exit_port:#x},iosize=1"]
        if share:
            model = f"vhost-user-fs-{_bus(self.machine)}"
            _check_device(self._program, model)
            line += ["-chardev", f"socket,id=share,path={_quoted(share)}",
                     "-device", f"{model},chardev=share,tag=root"]  # fmt: skip
        return [*line, *self._kernel(boot), *self._devices(boot, port)]

    def _kernel(self, boot: BootSpec) -> list[str]:
        if boot.kernel is None:
            return ["-boot", "strict=on"]
        line = ["-kernel", str(boot.kernel), "-append", boot.arguments]
        return [*line, "-initrd", str(boot.initrd)] if boot.initrd else line

    def _devices(self, boot: BootSpec, port: vm.Port) -> list[str]:
        bus = _bus(self.machine)
        line: list[str] = []
        if "block" in self.devices and boot.disk is not None:
            mode = "snapshot=on" if boot.writable else "readonly=on"
            first = ",bootindex=0" if boot.kernel is None else ""
            line += ["-drive", f"file={_quoted(boot.disk)},if=none,id=disk,format=raw,{mode}",
                     "-device", f"virtio-blk-{bus},drive=disk{first}"]  # fmt: skip
        if "net" in self.devices:
            rom = ",romfile=" if bus == "pci" else ""  # nothing boots from the network
            line += ["-netdev", f"tap,id=net,ifname={port.tap},script=no,downscript=no",
                     "-device", f"virtio-net-{bus},netdev=net,mac={port.mac}{rom}"]  # fmt: skip
        if "rng" in self.devices:
            line += ["-device", f"virtio-rng-{bus}"]
        return line


def _check_words(machine: Qemu) -> None:
    chosen = [(machine.machine, MACHINES), (machine.protocol, PROTOCOLS),
              (machine.console, CONSOLES), (machine.accel, ACCELERATORS)]  # fmt: skip
    for word, valid in [*chosen, *((device, DEVICES) for device in machine.devices)]:
        if word not in valid:
            raise Unsupported(f"QEMU's backend knows no {word!r}", f"valid: {', '.join(valid)}")


def _bus(machine: str) -> str:
    return "device" if machine == "microvm" else "pci"


def _models(machine: Qemu) -> list[str]:
    words = {"block": "blk", "net": "net", "rng": "rng"}
    models = [f"virtio-{words[device]}-{_bus(machine.machine)}" for device in machine.devices]
    models += ["VGA"] * (machine.console == "vga")
    return models + ["isa-debug-exit"] * (machine.chart == "memory")


def _check_device(program: str, model: str) -> None:
    if model not in qemu_build.listed(program, "-device"):
        raise Unsupported(f"{program} has no device {model}", "take another build of QEMU")


def _check_kernel(kernel: Path, protocol: str) -> None:
    """QEMU takes whatever boots of its own accord: a wrong kernel would be measured as another."""
    found = images.kernel(kernel)
    if protocol == "pvh" and not found.pvh:
        raise Failed(
            f"kernel {kernel} has no PVH entry",
            "take the protocol kernel, or give an ELF vmlinux of CONFIG_PVH=y",
        )
    if protocol == "kernel" and not found.bzimage:
        raise Failed(
            f"kernel {kernel} is no bzImage: firmware cannot boot it",
            "take the protocol pvh for an ELF file",
        )


def _quoted(path: Path) -> str:
    """QEMU's options end at a comma, unless it is doubled."""
    return str(path).replace(",", ",,")
