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
from firstlight.lab.guests import BootConfig, BootSpec, Line, Reading, clock, images
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

    def probe(self, config: BootConfig) -> None:
        """Raise Unsupported, with a hint, if it cannot be booted so from here."""
        if config.chart != "console":
            raise Unsupported(
                f"guest {self.name} leaves no boot chart in memory", "take the chart console"
            )
        if config.icount:
            raise NotApplicable(
                f"guest {self.name} stamps nothing by a clock of its own, which alone is counted",
                "leave icount off",
            )
        if config.protocol == "disk":
            if self.disk is None or not images.disk(self.disk).boots:
                raise Unsupported(
                    f"guest {self.name} has no boot loader on a disk", "boot it by its kernel"
                )
            return
        if self.kernel is None:
            raise Unsupported(
                f"guest {self.name} has no kernel for the protocol {config.protocol}",
                "add it with --kernel, or boot it by the protocol disk",
            )
        what = images.kernel(self.kernel)
        if what.bzimage != (config.protocol == "kernel"):
            raise Unsupported(
                f"guest {self.name}'s kernel is {'a bzImage' if what.bzimage else 'an ELF file'}, "
                f"which the protocol {config.protocol} does not boot",
                "a bzImage boots by the protocol kernel, an ELF file by pvh or direct",
            )
        if config.protocol == "pvh" and not what.pvh:
            raise Unsupported(
                f"guest {self.name}'s kernel has no PVH entry", "it needs the protocol direct"
            )

    def boot(self, config: BootConfig, directory: Path) -> BootSpec:
        """Its files as they are. Raises Failed for one that is missing, truncated or foreign."""
        del directory
        if self.kernel is not None:
            images.kernel(self.kernel)
        if self.disk is not None:
            images.disk(self.disk)
        ip, _, prefix = config.address.partition("/")
        values = {"address": config.address, "ip": ip, "prefix": prefix,
                  "gateway": config.gateway, "console": config.console}  # fmt: skip
        return BootSpec(
            kernel=None if config.protocol == "disk" else self.kernel,
            arguments=_PLACEHOLDERS.sub(lambda hit: values[hit[1]], self.arguments),
            disk=self.disk,
            writable=self.writable,
            ready=self.ready,
        )

    def read(self, config: BootConfig, lines: Sequence[Line], memory: Path | None) -> Reading:
        """From each line of its console to the next, as the host heard them."""
        del config, memory
        spans = [
            Step(f"line {line.text.strip()[:_NAME_CHARACTERS]}", before.stamp, line.stamp)
            for before, line in pairwise(lines)
            if line.text.strip()
        ]
        return Reading(clock.HOST, tuple(spans))
