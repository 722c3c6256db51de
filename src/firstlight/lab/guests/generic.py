"""Any kernel or disk of the user's: ready when a console line matches a pattern.

Its log has no stamps, so its spans are on the host's clock: each ends when a console line arrives,
and has that line as its name.
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
    """A guest whose end point is the console line that matches ``ready`` (POSIX extended).

    A ``kernel`` boots by the protocol of its format, with its ``initrd`` if it has one, a ``disk``
    without one by its boot loader.
    In ``arguments`` {ip}, {prefix}, {address} (both), {gateway} and {console} (serial or vga) are
    replaced.
    """

    name: str
    ready: str
    kernel: Path | None = None
    disk: Path | None = None
    arguments: str = ""
    filesystem: str = "unknown"
    writable: bool = True
    initrd: Path | None = None
    end_point: EndPoint = EndPoint.BOOTED

    def probe(self, config: BootConfig) -> None:
        """Raise Unsupported if it cannot be booted in this way here."""
        if config.chart != "console":
            raise Unsupported(
                f"guest {self.name} has no boot chart in memory", "use the chart console"
            )
        if config.icount:
            raise NotApplicable(
                f"guest {self.name} has no clock of its own; --icount needs one",
                "leave out --icount",
            )
        if config.protocol == "disk":
            if self.disk is None or not images.disk(self.disk).boots:
                raise Unsupported(
                    f"guest {self.name} has no disk with a boot loader", "boot its kernel instead"
                )
            return
        if self.kernel is None:
            raise Unsupported(
                f"guest {self.name} has no kernel for the protocol {config.protocol}",
                "add it with --kernel, or use the protocol disk",
            )
        what = images.kernel(self.kernel)
        if what.bzimage != (config.protocol == "kernel"):
            raise Unsupported(
                f"guest {self.name}'s kernel is {'a bzImage' if what.bzimage else 'an ELF file'}, "
                f"which the protocol {config.protocol} does not boot",
                "a bzImage needs the protocol kernel, an ELF file pvh or direct",
            )
        if config.protocol == "pvh" and not what.pvh:
            raise Unsupported(
                f"guest {self.name}'s kernel has no PVH entry", "use the protocol direct"
            )

    def boot(self, config: BootConfig, directory: Path) -> BootSpec:
        """Its files as they are. Raises Failed if one is missing, truncated or of another kind."""
        del directory
        if self.kernel is not None:
            images.kernel(self.kernel)
        if self.disk is not None:
            images.disk(self.disk)
        if self.initrd is not None:
            images.initramfs(self.initrd)
        ip, _, prefix = config.address.partition("/")
        values = {"address": config.address, "ip": ip, "prefix": prefix,
                  "gateway": config.gateway, "console": config.console}  # fmt: skip
        return BootSpec(
            kernel=None if config.protocol == "disk" else self.kernel,
            initrd=None if config.protocol == "disk" else self.initrd,
            arguments=_PLACEHOLDERS.sub(lambda hit: values[hit[1]], self.arguments),
            disk=self.disk,
            writable=self.writable,
            ready=self.ready,
        )

    def read(self, config: BootConfig, lines: Sequence[Line], memory: Path | None) -> Reading:
        """A span from each console line to the next, as the host read them."""
        del config, memory
        spans = [
            Step(f"line {line.text.strip()[:_NAME_CHARACTERS]}", before.stamp, line.stamp)
            for before, line in pairwise(lines)
            if line.text.strip()
        ]
        return Reading(clock.HOST, tuple(spans))
