"""Any kernel or disk that a user brings: ready when its console says what a pattern finds.

Its log bears no time, so its spans are the host's: each ends when a line of its console arrived,
and is named by it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from firstlight.errors import NotApplicable, Unsupported
from firstlight.lab.guests import Boot, Line, Reading, Wanted, clock, images
from firstlight.model import EndPoint, Step

_PLACEHOLDERS = re.compile(r"\{(address|ip|prefix|gateway|console)\}")
_NAME_CHARACTERS = 72


@dataclass(frozen=True)
class Generic:
    """A guest whose console line that ``ready`` finds (POSIX extended) is its end point.

    A ``kernel`` boots by the protocol that its format is for, a ``disk`` alone by its boot loader.
    In ``arguments`` {ip}, {prefix}, {address} (both), {gateway} and {console} (serial or vga) stand
    for what a hypervisor gives it.
    """

    name: str
    ready: str
    kernel: Path | None = None
    disk: Path | None = None
    arguments: str = ""
    filesystem: str = "unknown"
    writable: bool = True
    end_point: EndPoint = EndPoint.BOOTED

    def probe(self, wanted: Wanted) -> None:
        """Raise Unsupported, with a hint, if it cannot be booted so from here."""
        if wanted.chart != "console":
            raise Unsupported(
                f"guest {self.name} leaves no boot chart in memory", "take the chart console"
            )
        if wanted.icount:
            raise NotApplicable(
                f"guest {self.name} stamps nothing by a clock of its own, which alone is counted",
                "leave icount off",
            )
        if wanted.protocol == "disk":
            if self.disk is None or not images.disk(self.disk).boots:
                raise Unsupported(
                    f"guest {self.name} has no boot loader on a disk", "boot it by its kernel"
                )
            return
        if self.kernel is None:
            raise Unsupported(
                f"guest {self.name} has no kernel for the protocol {wanted.protocol}",
                "add it with --kernel, or boot it by the protocol disk",
            )
        what = images.kernel(self.kernel)
        if what.bzimage != (wanted.protocol == "kernel"):
            raise Unsupported(
                f"guest {self.name}'s kernel is {'a bzImage' if what.bzimage else 'an ELF file'}, "
                f"which the protocol {wanted.protocol} does not boot",
                "a bzImage boots by the protocol kernel, an ELF file by pvh or direct",
            )
        if wanted.protocol == "pvh" and not what.pvh:
            raise Unsupported(
                f"guest {self.name}'s kernel has no PVH entry", "it needs the protocol direct"
            )

    def boot(self, wanted: Wanted, directory: Path) -> Boot:
        """Its files as they are. Raises Failed for one that is missing, truncated or foreign."""
        del directory
        if self.kernel is not None:
            images.kernel(self.kernel)
        if self.disk is not None:
            images.disk(self.disk)
        ip, _, prefix = wanted.address.partition("/")
        values = {"address": wanted.address, "ip": ip, "prefix": prefix,
                  "gateway": wanted.gateway, "console": wanted.console}  # fmt: skip
        return Boot(
            kernel=None if wanted.protocol == "disk" else self.kernel,
            arguments=_PLACEHOLDERS.sub(lambda hit: values[hit[1]], self.arguments),
            disk=self.disk,
            writable=self.writable,
            ready=self.ready,
        )

    def read(self, wanted: Wanted, lines: Sequence[Line], memory: Path | None) -> Reading:
        """From each line of its console to the next, as the host heard them."""
        del wanted, memory
        spans = [
            Step(f"line {line.text.strip()[:_NAME_CHARACTERS]}", before.stamp, line.stamp)
            for before, line in pairwise(lines)
            if line.text.strip()
        ]
        return Reading(clock.HOST, tuple(spans))
