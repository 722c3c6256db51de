"""The floor: clone and exec of the payload, bare or into new namespaces."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from firstlight.errors import Unsupported
from firstlight.host.workspace import Workspace
from firstlight.lab.backends import Command
from firstlight.model import EndPoint, Point
from firstlight.native import native

NAMESPACES = ("none", "uts", "ipc", "user", "pid", "mount", "net", "all")
_ALL = "net,mount,pid,ipc,uts,user"


@dataclass(frozen=True)
class Process:
    """One clone3 with the flags of the axis ``namespaces``, then exec, by a small C program."""

    name: str = "process"
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION
    note: str | None = None

    def probe(self) -> None:
        """Only root makes namespaces everywhere."""
        if os.geteuid() != 0:
            raise Unsupported("making namespaces needs root", "run it with sudo")

    @contextmanager
    def prepared(
        self, point: Point, instances: int, workspace: Workspace
    ) -> Iterator[list[Command]]:
        """Nothing to prepare: the kernel ends the namespaces with their process."""
        asked = str(point["namespaces"])
        payload = str(native("payload"))
        flags = _ALL if asked == "all" else asked
        yield [
            Command((payload, "clone", flags, "--", payload, "ready"), workspace.environment)
        ] * instances
