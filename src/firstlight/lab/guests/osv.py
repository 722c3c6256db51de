"""OSv: a user's kernel and image, timed by OSv's own boot chart.

The end point is the end of OSv's boot, before it loads a program. With the chart in memory that is
OSv's write of 123 to port 0x3f0; with the chart on the console, the chart's first line, which OSv
prints next.

OSv prints on one console or on all of them: with the chart on the console, ``vga`` means both VGA
and serial, so that the end of the boot can be seen; with the chart in memory VGA alone.
"""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface
from pathlib import Path

from firstlight.errors import Failed, Unsupported
from firstlight.lab.guests import BootConfig, BootSpec, Line, Reading, clock, images, osv_chart
from firstlight.model import EndPoint, Step

FILESYSTEMS = ("rofs", "zfs", "ramfs", "ext", "virtiofs")
WRITABLE = ("zfs", "ext")
DISKLESS = ("ramfs", "virtiofs")
READY = r"disk read \(real mode\): |Booted up in |^Cmdline: "
LAST = r"Total time: |Booted up in |^Cmdline: "
"""The chart's first and last lines; for a kernel without a clock, the next line instead."""
_DONE_PORT, _DONE_CODE = 0x3F0, 123
_COMMAND_LINE, _COMMAND_LINE_SIZE = 512, 63 * 512  # on the disk, where arch/x64/boot16.S reads it


@dataclass(frozen=True)
class Osv:
    """An OSv guest. ``kernel`` is its loader-stripped.elf, for a direct boot, ``disk`` a raw image.

    ``share`` is a directory that is its root by virtio-fs. ``program`` runs once it is up; empty
    means the image's own.
    """

    name: str
    filesystem: str
    kernel: Path | None = None
    disk: Path | None = None
    program: str = ""
    share: Path | None = None
    end_point: EndPoint = EndPoint.BOOTED

    def probe(self, config: BootConfig) -> None:
        """Raise Unsupported if it cannot be booted in this way here."""
        if (config.machine, config.accel) == ("microvm", "tcg"):
            raise Unsupported(
                "OSv halts on a microvm without KVM: it finds no clock",
                "use the machine pc or q35, or a host with KVM",
            )
        if self.filesystem == "virtiofs" and (not config.machine or config.icount):
            raise Unsupported(
                f"guest {self.name} has its root on virtio-fs, which needs QEMU without --icount",
                "add it with a ROFS or ZFS image",
            )
        if config.protocol == "disk":
            if self.disk is None or not images.disk(self.disk).boots:
                raise Unsupported(
                    f"guest {self.name} has no disk with a boot loader",
                    "add an image made by scripts/build without --create-disk",
                )
            return
        if self.kernel is None:
            raise Unsupported(
                f"guest {self.name} has no kernel for the protocol {config.protocol}",
                "add it with --kernel loader-stripped.elf, or use the protocol disk",
            )
        if config.protocol == "kernel":
            raise Unsupported(
                "OSv cannot be booted by firmware: its vmlinuz.bin has no real-mode entry",
                "use the protocol pvh or disk",
            )
        what = images.kernel(self.kernel)
        if what.bzimage or (config.protocol == "pvh" and not what.pvh):
            raise Unsupported(
                f"guest {self.name}'s kernel has no entry for the protocol {config.protocol}",
                "add it with --kernel loader-stripped.elf of OSv 0.54 or later",
            )

    def boot(self, config: BootConfig, directory: Path) -> BootSpec:
        """Its images as they are; for a boot from disk, a copy with the command line in it.

        Raises Failed for an image that is missing, truncated or not of its kind.
        """
        if self.kernel is not None:
            check_kernel(self.kernel)
        if self.disk is not None and self.filesystem not in DISKLESS:
            check_disk(self.disk, self.filesystem)
        if config.chart == "memory":
            clock.tsc_hertz()
            end = BootSpec(exit_port=_DONE_PORT, exit_code=_DONE_CODE)
        else:
            end = BootSpec(ready=READY, last=LAST)
        kernel, disk, arguments = self.kernel, self.disk, self._arguments(config)
        if config.protocol == "disk" and disk is not None:
            copy = directory / f"{self.name}-{IPv4Interface(config.address).ip}.img"
            kernel, disk = None, _with_command_line(disk, arguments, copy)
        elif self.filesystem in DISKLESS:
            disk = None
        writable = self.filesystem in WRITABLE
        return replace(end, kernel=kernel, arguments=arguments, disk=disk, writable=writable,
                       share=self._root())  # fmt: skip

    def _root(self) -> Path | None:
        if self.filesystem != "virtiofs":
            return None
        if self.share is None or not self.share.is_dir():
            raise Failed(
                f"guest {self.name} has no directory for its root by virtio-fs",
                "add it with --image DIR",
            )
        return self.share

    def read(self, config: BootConfig, lines: Sequence[Line], memory: Path | None) -> Reading:
        """The spans of its boot chart; each event names the span that it ends."""
        if config.chart == "memory" and memory is not None:
            hertz = 1e9 if config.icount else clock.tsc_hertz()
            spans = osv_chart.spans(osv_chart.remembered(memory), hertz)
            return Reading("the guest's time-stamp counter", tuple(spans), (), self._fault(spans))
        spans, anchors = osv_chart.printed(lines)
        return Reading("OSv's clock, to 10 µs", tuple(spans), tuple(anchors), self._fault(spans))

    def _fault(self, spans: Sequence[Step]) -> str | None:
        """OSv continues without a root that it cannot mount; the chart then lacks an event."""
        names = [span.name for span in spans]
        if self.filesystem in DISKLESS or names[-1:] != ["Total time"]:
            return None
        if any(name.endswith(" mounted") for name in names):
            return None
        return f"OSv did not mount its root, {self.filesystem}"

    def _arguments(self, config: BootConfig) -> str:
        address = IPv4Interface(config.address)
        visible = config.chart == "console"
        words = [
            *(["--bootchart"] if visible else []),
            f"--console={'all' if config.console == 'vga' and visible else config.console}",
            f"--rootfs={self.filesystem}",
            f"--ip=eth0,{address.ip},{address.netmask}",
            f"--defaultgw={config.gateway}",
            self.program or _own_program(self.disk),
        ]
        return " ".join(word for word in words if word)


def check_kernel(kernel: Path) -> None:
    """Raise Failed if ``kernel`` is not a complete OSv kernel for x86-64."""
    images.kernel(kernel)
    if osv_chart.MARK not in kernel.read_bytes():
        raise Failed(f"kernel {kernel} is not an OSv kernel", "give OSv's loader-stripped.elf")


def check_disk(disk: Path, filesystem: str) -> None:
    """Raise Failed if ``disk`` is not a raw image with such a root in its second partition.

    OSv looks only there, and for ROFS its chart does not show whether it found a root.
    """
    images.check_root(disk, filesystem)
    volumes = images.disk(disk).volumes
    if not any(volume.filesystem == filesystem and volume.partition == 2 for volume in volumes):
        raise Failed(
            f"image {disk} holds {filesystem}, but not in its second partition",
            "OSv looks for its root only there: make the image with scripts/build",
        )


def _own_program(disk: Path | None) -> str:
    """The program of an image's own command line: its words from the first non-option on."""
    if disk is None:
        return ""
    with disk.open("rb") as image:
        image.seek(_COMMAND_LINE)
        raw = image.read(_COMMAND_LINE_SIZE).partition(b"\0")[0]
    if not raw.isascii() or not raw.decode().isprintable():
        return ""
    words = raw.decode().split()
    while words and words[0].startswith("--"):
        words.pop(0)
    return " ".join(words)


def _with_command_line(disk: Path, arguments: str, copy: Path) -> Path:
    """A copy of ``disk`` whose boot loader passes ``arguments``. Raises Failed if too long."""
    line = arguments.encode() + b"\0"
    if len(line) > _COMMAND_LINE_SIZE:
        raise Failed(
            f"OSv's command line is too long for its disk: {len(line)} bytes", "shorten it"
        )
    copied = subprocess.run(
        ["cp", "--sparse=always", "--reflink=auto", disk, copy],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if copied.returncode:
        raise Failed(f"cannot copy {disk}: {copied.stderr.strip()}", "free some memory")
    copy.chmod(0o600)
    with copy.open("r+b") as image:
        image.seek(_COMMAND_LINE)
        image.write(line)
    return copy
