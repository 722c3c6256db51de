"""The probe: firstlight's minimal guest (``contrib/probe-guest/``). No other can be faster.

It does each step once that a guest must do to serve, and stamps it by its time-stamp counter. The
end point is the line ``firstlight probe ready``; the log follows, so printing it costs no start.
"""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface
from pathlib import Path

from firstlight.errors import Unsupported
from firstlight.lab.guests import BootConfig, BootSpec, BuiltInGuest, Line, Reading, probe_images
from firstlight.model import EndPoint, Step
from firstlight.native import native

FILESYSTEMS = ("erofs", "none")
STEPS = ("disk read", "entry", "console", "pci", "virtio", "block", "net", "rng", "mount", "packet")
"""The names of its spans; also ``firmware``, if its counter began with the VM."""

_VERBOSE_LINES = 100
_COUNTED_HERTZ = 10**9  # with counted instructions a tick is a nanosecond (QEMU's icount_get)
_PLAUSIBLE_HERTZ = range(10**8, 10**11)
_TICKS = r"(\d{1,17})"
_READY = re.compile(f"firstlight probe ready {_TICKS}")
_SPAN = re.compile(f"probe ({'|'.join(STEPS)}) {_TICKS} {_TICKS}")
_CLOCK = re.compile(r"probe clock (\d{1,12}) (\w+) (\S+)")
_END = re.compile(rf"probe end \d+ {_TICKS}")


@dataclass(frozen=True)
class Probe:
    """The probe with a read-only EROFS image, or ``none``.

    With ``packet`` its end point is the gateway's reply to an echo request, and a VM without an
    interface fails; otherwise it is the end of its boot. ``lines`` more lines of 66 characters are
    printed, as by a verbose kernel.
    """

    filesystem: str = "erofs"
    packet: bool = True
    lines: int = 0

    @property
    def name(self) -> str:
        """``probe``."""
        return "probe"

    @property
    def end_point(self) -> EndPoint:
        """First packet, or end of boot."""
        return EndPoint.FIRST_PACKET if self.packet else EndPoint.BOOTED

    def to_first_packet(self) -> "Probe":
        """The same, ready when the gateway has answered an echo request."""
        return replace(self, packet=True)

    def probe(self, config: BootConfig) -> None:
        """Raise Unsupported if it cannot be booted here. It boots by every protocol."""
        del config
        if self.filesystem not in FILESYSTEMS:
            raise Unsupported(
                f"the probe cannot mount {self.filesystem}", f"valid: {', '.join(FILESYSTEMS)}"
            )
        if self.filesystem == "erofs" and not shutil.which("mkfs.erofs"):
            raise Unsupported("mkfs.erofs is not installed", "apt-get install erofs-utils")

    def boot(self, config: BootConfig, directory: Path) -> BootSpec:
        """Its kernel, and an image with one small file. Raises Failed if it cannot be made.

        For the protocol ``disk`` the image begins with the kernel's boot loader.
        """
        arguments = self._arguments(config)
        disk = probe_images.root(directory) if self.filesystem == "erofs" else None
        kernel: Path | None = native("guest/probe")
        if config.protocol == "kernel":
            kernel = probe_images.bzimage(directory)
        elif config.protocol == "disk":
            address = IPv4Interface(config.address).ip
            disk = probe_images.bootable(disk, arguments, directory / f"probe-{address}.img")
            kernel = None
        return BootSpec(
            kernel=kernel, arguments=arguments, disk=disk,
            ready=r"^firstlight probe ready [0-9]+$", last=r"^probe (end|failed) ",
        )  # fmt: skip

    def _arguments(self, config: BootConfig) -> str:
        words = [f"console={config.console}"]
        if self.filesystem == "erofs":
            words += [f"file=/{probe_images.FILE}", f"sum={probe_images.SUM:#x}"]
        if self.packet:
            words += [f"ip={IPv4Interface(config.address).ip}", f"gw={config.gateway}"]
        if self.lines:
            words.append(f"lines={self.lines}")
        return " ".join(words)

    def read(self, config: BootConfig, lines: Sequence[Line], memory: Path | None) -> Reading:
        """Its spans in order: ``console`` once per line of text, the others once.

        Its clock begins at its first instruction; or, under TCG, where the counter begins with the
        VM, at the VM's start, and the first span is ``firmware``. Without the line that gives the
        counter's frequency there are no spans.
        """
        del memory
        clock = _last(_CLOCK, lines)
        hertz = _COUNTED_HERTZ if config.icount else int(clock[1]) if clock else 0
        if hertz not in _PLAUSIBLE_HERTZ:
            return Reading("a time-stamp counter of unknown frequency")
        hits = [hit for line in lines if (hit := _SPAN.fullmatch(line.text))]
        ticks = [(hit[1], int(hit[2]), int(hit[3])) for hit in hits]
        begins_with_machine = config.icount or (clock is not None and clock[3].startswith("TCG"))
        zero = 0 if begins_with_machine else min((start for _, start, _ in ticks), default=0)
        if begins_with_machine and ticks:
            ticks.insert(0, ("firmware", 0, ticks[0][1]))

        def since(stamp: int) -> int:
            return (stamp - zero) * 10**9 // hertz

        rate = "one nanosecond per instruction" if config.icount or not clock else f"by {clock[2]}"
        return Reading(
            f"the guest's time-stamp counter, its rate {rate}",
            tuple(Step(name, since(a), since(b)) for name, a, b in ticks if a <= b),
            tuple((line.stamp, since(stamp)) for line, stamp in _stamped(lines) if stamp >= zero),
        )


def _stamped(lines: Sequence[Line]) -> list[tuple[Line, int]]:
    """The lines that carry the guest's time at printing."""
    hits = [(line, _READY.fullmatch(line.text) or _END.fullmatch(line.text)) for line in lines]
    return [(line, int(hit[1])) for line, hit in hits if hit]


def _last(pattern: re.Pattern[str], lines: Sequence[Line]) -> re.Match[str] | None:
    return next((hit for line in reversed(lines) if (hit := pattern.fullmatch(line.text))), None)


def _make(filesystem: str, verbose: bool) -> Probe:
    return Probe(filesystem, packet=False, lines=_VERBOSE_LINES if verbose else 0)


BUILT_IN = BuiltInGuest("probe", _make, "erofs")
