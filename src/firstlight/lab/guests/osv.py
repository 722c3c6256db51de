"""OSv: a user's kernel and image, which tell their own boot by its boot chart.

The end point is the end of OSv's boot, before it loads a program. With the chart in memory it is
the write of 123 to port 0x3f0 by which OSv says so; with the chart on the console it is the chart's
first line, which OSv prints next.

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
"""The chart's first line and last; or, of a kernel without a clock, which prints none, the next."""
_DONE_PORT, _DONE_CODE = 0x3F0, 123
_COMMAND_LINE, _COMMAND_LINE_SIZE = 512, 63 * 512  # of a disk; arch/x64/boot16.S reads it there


@dataclass(frozen=True)
class Osv:
    """One OSv: ``kernel`` is its loader-stripped.elf, for a direct boot, ``disk`` a raw image.

    ``share`` is the directory that is its root by virtio-fs. ``program`` runs once it is up; if
    empty, the image's own.
    """

    name: str
    filesystem: str
    kernel: Path | None = None
    disk: Path | None = None
    program: str = ""
    share: Path | None = None
    end_point: EndPoint = EndPoint.BOOTED

    def probe(self, config: BootConfig) -> None:
        """Raise Unsupported, with a hint, if it cannot be booted so from here."""
        if (config.machine, config.accel) == ("microvm", "tcg"):
            raise Unsupported(
                "a microvm without KVM has no clock that OSv knows: it would halt",
                "take the machine pc or q35, or a host with KVM",
            )
        if self.filesystem == "virtiofs" and (not config.machine or config.icount):
            raise Unsupported(
                f"guest {self.name} has its root on virtio-fs, which needs QEMU and real time",
                "add it with an image of ROFS or ZFS",
            )
        if config.protocol == "disk":
            if self.disk is None or not images.disk(self.disk).boots:
                raise Unsupported(
                    f"guest {self.name} has no boot loader on a disk",
                    "add an image that scripts/build made without --create-disk",
                )
            return
        if self.kernel is None:
            raise Unsupported(
                f"guest {self.name} has no kernel for the protocol {config.protocol}",
                "add it with --kernel loader-stripped.elf, or boot it by the protocol disk",
            )
        if config.protocol == "kernel":
            raise Unsupported(
                "OSv has no real-mode entry for firmware to jump into: its vmlinuz.bin has none",
                "take the protocol pvh, or disk",
            )
        what = images.kernel(self.kernel)
        if what.bzimage or (config.protocol == "pvh" and not what.pvh):
            raise Unsupported(
                f"guest {self.name}'s kernel has no entry for the protocol {config.protocol}",
                "add it with --kernel loader-stripped.elf of OSv 0.54 or newer",
            )

    def boot(self, config: BootConfig, directory: Path) -> BootSpec:
        """Its images as they are; booted from disk, a copy of the image with a command line in it.

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
                f"guest {self.name} has no directory for its root on virtio-fs",
                "add it with --image DIR",
            )
        return self.share

    def read(self, config: BootConfig, lines: Sequence[Line], memory: Path | None) -> Reading:
        """Its boot chart, whose events name the spans that they end."""
        if config.chart == "memory" and memory is not None:
            hertz = 1e9 if config.icount else clock.tsc_hertz()
            spans = osv_chart.spans(osv_chart.remembered(memory), hertz)
            return Reading("the guest's time-stamp counter", tuple(spans), (), self._fault(spans))
        spans, anchors = osv_chart.printed(lines)
        return Reading("OSv's clock, to 10 µs", tuple(spans), tuple(anchors), self._fault(spans))

    def _fault(self, spans: Sequence[Step]) -> str | None:
        """OSv goes on without a root that it cannot mount: then the chart lacks an event."""
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
    """Raise Failed if ``kernel`` is not a whole kernel of OSv for x86-64."""
    images.kernel(kernel)
    if osv_chart.MARK not in kernel.read_bytes():
        raise Failed(f"kernel {kernel} is not OSv's", "name its loader-stripped.elf")


def check_disk(disk: Path, filesystem: str) -> None:
    """Raise Failed if ``disk`` is not a whole raw image whose second partition is such a root.

    OSv looks there, and of ROFS its chart does not tell whether it found any.
    """
    images.check_root(disk, filesystem)
    found = images.disk(disk).volumes
    if not any(volume.filesystem == filesystem and volume.partition == 2 for volume in found):
        raise Failed(
            f"image {disk} holds {filesystem}, but not in its second partition",
            "OSv looks for its root there alone; scripts/build lays images so",
        )


def _own_program(disk: Path | None) -> str:
    """What an image's own command line runs: its words from the first that is no option on."""
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
    """A copy of ``disk`` whose boot loader passes ``arguments``. Raises Failed if they are long."""
    line = arguments.encode() + b"\0"
    if len(line) > _COMMAND_LINE_SIZE:
        raise Failed(
            f"a command line of {len(line)} bytes is too long for OSv's disk", "shorten it"
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
