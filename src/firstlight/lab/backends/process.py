"""The floor: clone and exec of the payload, plain or into new namespaces."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from firstlight.errors import WITH_SUDO, Unsupported
from firstlight.host.workspace import Workspace
from firstlight.lab.backends import Execute, Prepared
from firstlight.model import EndPoint
from firstlight.native import native

FLAGS = {
    "none": 0, "uts": 0x04000000, "ipc": 0x08000000, "user": 0x10000000, "pid": 0x20000000,
    "mount": 0x00020000, "net": 0x40000000,
}  # fmt: skip
"""CLONE_NEW… of ``linux/sched.h``."""
NAMESPACES = (*FLAGS, "all")


@dataclass(frozen=True)
class Process:
    """A clone3 with the flags of ``namespaces`` (NAMESPACES), then exec, by a small C program."""

    namespaces: str = "none"
    name: str = "process"
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION
    note: str | None = None

    def probe(self) -> None:
        """Needs root, which may make namespaces everywhere."""
        if os.geteuid() != 0:
            raise Unsupported("making namespaces needs root", WITH_SUDO)

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """Nothing to prepare: namespaces end with their process."""
        payload = str(native("payload"))
        flags = sum(FLAGS.values()) if self.namespaces == "all" else FLAGS[self.namespaces]
        argv = (payload, "clone", str(flags), payload, "ready")
        yield Prepared([Execute(argv, workspace.environment)] * instances)
