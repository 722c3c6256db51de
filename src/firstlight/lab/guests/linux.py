"""Linux as a guest: Debian's cloud kernel or another, with a root made around the payload.

``guest-init`` loads the kernel's modules from an initramfs, mounts the root, runs the payload and,
once that is ready, prints what the boot spent its time on. The kernel's tracer records the
initcalls of every boot, which adds 0.6 % to its instructions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from firstlight.errors import NotApplicable, Unsupported
from firstlight.lab.guests import (
    BootConfig,
    BootSpec,
    BuiltInGuest,
    Line,
    Reading,
    clock,
    images,
    linux_kernel,
    linux_log,
)
from firstlight.lab.guests import linux_root as root
from firstlight.model import EndPoint

_TRANSPORTS = ("virtio_pci", "virtio_mmio")
_DEVICES = ("virtio_net", "virtio_rng")
_COUNTED_HERTZ = 1e9
_LEAST_SECONDS = 100e-6
"""Shorter initcalls are not reported, except those of virtio."""


@dataclass(frozen=True)
class Linux:
    """Linux with a root of ``filesystem``. ``kernel`` None is Debian's newest.

    A ``verbose`` kernel prints on the console as it does by default; otherwise it is quiet. With
    the ``end_point`` FIRST_PACKET the payload pings the gateway before it is ready.
    """

    filesystem: str = "squashfs"
    kernel: Path | None = None
    verbose: bool = False
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION
    name: str = "linux"

    def to_first_packet(self) -> "Linux":
        """The same, ready when the gateway has answered the payload's echo request."""
        return replace(self, end_point=EndPoint.FIRST_PACKET)

    def probe(self, config: BootConfig) -> None:
        """Raise Unsupported if it cannot be booted in this way here."""
        root.probe(self.filesystem)
        image = self.kernel or linux_kernel.newest()
        if config.protocol == "disk":
            raise NotApplicable("the Linux guest has no boot loader", "use the protocol kernel")
        if config.protocol == "kernel" and not images.kernel(image).bzimage:
            raise Unsupported(
                f"kernel {image} is an ELF file, which firmware cannot boot",
                "use the protocol pvh, or a bzImage",
            )
        if config.console == "vga" and config.protocol != "kernel":
            raise NotApplicable(
                "Linux has a VGA text console only when its real-mode code runs",
                "use the protocol kernel",
            )
        if config.chart != "console":
            raise NotApplicable("Linux has no boot chart in memory", "use the chart console")

    def boot(self, config: BootConfig, directory: Path) -> BootSpec:
        """Its kernel, packed or unpacked as the protocol needs, an initramfs and an image.

        Raises Failed for a kernel that is missing, truncated or not for x86-64.
        """
        kernel = linux_kernel.load(self.kernel or linux_kernel.newest())
        on_disk = self.filesystem != "initramfs"
        image = kernel.image
        if config.protocol != "kernel":
            image = linux_kernel.uncompress(kernel, directory)
        initrd = directory / f"linux-{self.filesystem}.cpio"
        if not initrd.exists():
            names = [*_TRANSPORTS, *_DEVICES, *(["virtio_blk", self.filesystem] * on_disk)]
            loaded = linux_kernel.modules(kernel, names)
            initrd.write_bytes(root.initramfs(loaded, is_root=not on_disk))
        return BootSpec(
            kernel=image,
            initrd=initrd,
            arguments=" ".join(self._arguments(config)),
            disk=root.image(self.filesystem, directory) if on_disk else None,
            writable=self.filesystem in root.WRITABLE,
            ready=linux_log.READY,
            last=linux_log.LAST,
        )

    def read(self, config: BootConfig, lines: Sequence[Line], memory: Path | None) -> Reading:
        """Its steps, and the long initcalls."""
        del memory
        packed = config.protocol == "kernel"
        return linux_log.read(lines, _hertz(config), packed=packed, counted=config.icount)

    def _arguments(self, config: BootConfig) -> list[str]:
        """The words of the kernel's command line.

        They give the counter's frequency, which a microvm under TCG cannot measure, and declare it
        reliable, or lost ticks of a busy host would make the kernel drop it. With ``debug`` and an
        early console the real-mode code announces itself; not where that console would take lines
        from another. With counted instructions the processor polls when idle, because an idle
        one's time would jump to its next timer during disk reads.
        """
        hertz = _hertz(config)
        words = ["console=" + {"serial": "ttyS0", "vga": "tty0"}[config.console]]
        loudness = "loglevel=7" if self.verbose else "quiet"
        if config.protocol == "kernel" and not (self.verbose and config.console == "vga"):
            words += ["debug", loudness, "earlyprintk=ttyS0,115200"]
        else:
            words.append(loudness)
        words += [
            "panic=-1", "reboot=t", "no_timer_check",
            "tsc=reliable", f"tsc_early_khz={hertz / 1e3:.0f}",
            "trace_event=initcall:*,printk:console", "trace_clock=x86-tsc", "trace_buf_size=256k",
            f"firstlight_least={hertz * _LEAST_SECONDS:.0f}",
            f"firstlight_address={config.address}", f"firstlight_gateway={config.gateway}",
        ]  # fmt: skip
        if config.icount:
            words.append("idle=poll")
        if self.filesystem != "initramfs":
            writable = ",rw" if self.filesystem in root.WRITABLE else ""
            words.append(f"firstlight_root={self.filesystem}{writable}")
        if self.end_point is EndPoint.FIRST_PACKET:
            words += ["firstlight_packet=1", 'sysctl.net.ipv4.ping_group_range="0 0"']
        return words


def _hertz(config: BootConfig) -> float:
    return _COUNTED_HERTZ if config.icount else clock.tsc_hertz()


BUILT_IN = BuiltInGuest("linux", lambda filesystem, verbose: Linux(filesystem, verbose=verbose))
