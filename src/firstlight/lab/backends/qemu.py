"""QEMU: a machine type, a boot protocol, and a guest.

What ``-kernel`` does (QEMU 7.2; hw/i386/x86.c, x86_load_linux): every machine type has firmware,
SeaBIOS or, on microvm, a smaller build of it. It runs an option ROM that QEMU adds:
``linuxboot_dma.bin`` copies a bzImage into memory and jumps to its real-mode entry (protocol
``kernel``); ``pvh.bin`` jumps to the 32-bit entry of an ELF file with a PVH note, which QEMU has
loaded (protocol ``pvh``). The 64-bit entry without firmware (``direct``) is Firecracker's.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

from firstlight.errors import WITH_SUDO, Failed, NotApplicable, Unsupported
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
    """A guest on a machine. ``binary`` is a name or a path; ``accel`` one of ACCELERATORS.

    ``devices`` are virtio devices: on PCI, or memory-mapped on microvm. There is a disk or a tap
    only if the guest has one and the device is named. ``icount`` takes counted instructions for
    time (TCG only); ``chart`` is as in BootConfig.
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
        """The binary, the machine, how it boots, and the guest's name."""
        how = f"{self.machine} {self.protocol} {self.console}"
        counted = " icount" * self.icount
        return f"{Path(self.binary).name} {how}{counted}: {self.guest.name} {self.guest.filesystem}"

    @property
    def end_point(self) -> EndPoint:
        """The guest's end point."""
        return self.guest.end_point

    @property
    def note(self) -> str | None:
        """The accelerator, why it was chosen, and what is special about counted time."""
        try:
            chosen = self._accelerator().sentence
        except Unsupported:
            return None
        if self.icount:
            return f"{chosen}; its guests' time is counted instructions: wall time means nothing"
        return chosen

    @property
    def _config(self) -> BootConfig:
        return BootConfig(self.protocol, self.console, chart=self.chart, icount=self.icount,
                      machine=self.machine, accel=self._accelerator().name)  # fmt: skip

    @property
    def _program(self) -> str:
        path = shutil.which(self.binary)
        if not path:
            raise Unsupported(
                f"hypervisor {self.binary!r} is not installed",
                "apt-get install qemu-system-x86, or give its path",
            )
        return str(Path(path).absolute())

    def _accelerator(self) -> Accelerator:
        return choose(self._program, self.accel, must_be_tcg=self.icount)

    def to_first_packet(self) -> Self:
        """The same, to the gateway's answer to the guest's first packet."""
        return replace(self, guest=vm.to_first_packet(self.guest))

    def probe(self) -> None:
        """Needs root, the binary with machine type and devices, an accelerator, taps, the guest."""
        if os.geteuid() != 0:
            raise Unsupported("starting VMs on the lab's network needs root", WITH_SUDO)
        _check_words(self)
        if self.protocol == "direct":
            raise NotApplicable(
                "QEMU cannot enter a kernel by its 64-bit entry: firmware always runs first",
                "use the protocol pvh, or Firecracker",
            )
        if self.protocol == "disk" and self.machine == "microvm":
            raise NotApplicable(
                "microvm's firmware cannot boot from disk", "use the machine pc or q35"
            )
        if self.console == "vga" and self.machine == "microvm":
            raise NotApplicable("microvm has no VGA", "use the machine pc or q35")
        machines = qemu_build.listed(self._program, "-machine")
        if self.machine not in machines:
            raise Unsupported(
                f"{self._program} has no machine type {self.machine}", "use another build of QEMU"
            )
        for model in _models(self):
            _check_device(self._program, model)
        self._accelerator()
        if "net" in self.devices:
            vm.probe_taps()
        self.guest.probe(self._config)

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """A tap and an image for each VM; on exit all are removed."""
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
        """QEMU's path and arguments, with ``-S`` and a monitor on descriptor 3 for vmrun.

        ``memory`` is the file of the guest's memory, ``share`` the socket of its virtiofsd.
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
            rom = ",romfile=" if bus == "pci" else ""  # no network boot
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
            raise Unsupported(
                f"unknown option {word!r} of QEMU's backend", f"valid: {', '.join(valid)}"
            )


def _bus(machine: str) -> str:
    return "device" if machine == "microvm" else "pci"


def _models(machine: Qemu) -> list[str]:
    words = {"block": "blk", "net": "net", "rng": "rng"}
    models = [f"virtio-{words[device]}-{_bus(machine.machine)}" for device in machine.devices]
    models += ["VGA"] * (machine.console == "vga")
    return models + ["isa-debug-exit"] * (machine.chart == "memory")


def _check_device(program: str, model: str) -> None:
    if model not in qemu_build.listed(program, "-device"):
        raise Unsupported(f"{program} has no device {model}", "use another build of QEMU")


def _check_kernel(kernel: Path, protocol: str) -> None:
    """Raise Failed for a kernel of another protocol, which QEMU would boot in its own way."""
    kind = images.kernel(kernel)
    if protocol == "pvh" and not kind.pvh:
        raise Failed(
            f"kernel {kernel} has no PVH entry",
            "use the protocol kernel, or give an ELF vmlinux with CONFIG_PVH=y",
        )
    if protocol == "kernel" and not kind.bzimage:
        raise Failed(
            f"kernel {kernel} is not a bzImage: firmware cannot boot it",
            "use the protocol pvh for an ELF file",
        )


def _quoted(path: Path) -> str:
    """Escape a value for QEMU, whose options end at a comma unless it is doubled."""
    return str(path).replace(",", ",,")
