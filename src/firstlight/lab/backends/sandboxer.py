"""Programs that start one command in a sandbox, with no image: bubblewrap, nsjail and podman.

Each runs the static payload in a root file system made of it alone, in namespaces of its own,
with a network that has only loopback.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from firstlight.errors import WITH_SUDO, Unsupported
from firstlight.host import cgroups
from firstlight.host.mounts import unmount_below
from firstlight.host.workspace import Workspace
from firstlight.lab.backends import Execute, Prepared
from firstlight.model import EndPoint
from firstlight.native import native

_OPTIONS = {
    "bwrap": (
        "--unshare-all", "--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL",
        "--ro-bind", "{root}", "/", "--proc", "/proc", "--dev", "/dev",
        "--tmpfs", "/tmp",  # noqa: S108 - inside
    ),
    "podman": (
        "--root={state}/storage", "--runroot={state}/run", "--cgroup-manager=cgroupfs",
        "--events-backend=none", "--runtime=runc", "run", "--rm", "--interactive",
        "--network=none", "--cgroup-parent=/{group}", "--log-driver=none",
        "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", "--rootfs", "{root}",
    ),
    "nsjail": (
        "--mode", "o", "--really_quiet", "--chroot", "{root}", "--user", "65534",
        "--group", "65534", "--time_limit", "0", "--rlimit_as", "soft", "--",
    ),
}  # fmt: skip
_NOTES = {
    "bwrap": "bwrap sets no limits and has no network but loopback",
    "nsjail": "nsjail has a user namespace, sets no cgroup, and has no network but loopback",
    "podman": "podman runs by runc without logs and events, and has no network but loopback",
}
PROGRAMS = tuple(_OPTIONS)


@dataclass(frozen=True)
class Sandboxer:
    """One of PROGRAMS, with the payload as its command."""

    program: str
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION

    @property
    def name(self) -> str:
        """The program's name."""
        return self.program

    @property
    def note(self) -> str | None:
        """The work that others do and this does not."""
        return _NOTES[self.program]

    def probe(self) -> None:
        """Needs the program, and root as all others do."""
        if os.geteuid() != 0:
            raise Unsupported("making namespaces needs root", WITH_SUDO)
        if not shutil.which(self.program):
            raise Unsupported(f"{self.program} is not installed", "install it")

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """A root file system for all; what a start makes ends with its process."""
        root = workspace.directory / "sandboxed"
        # Of one letter: podman refuses a runroot of more than 50 characters.
        state = workspace.directory / self.program[0]
        group = cgroups.name(workspace.run)
        _make_root(root)
        state.mkdir(exist_ok=True)
        options = [
            word.format(root=root, state=state, group=group) for word in _OPTIONS[self.program]
        ]
        program = str(shutil.which(self.program))
        argv = (program, *options, "/payload", "ready")
        try:
            yield Prepared([Execute(argv, dict(workspace.environment))] * instances)
        finally:
            unmount_below(state)
            shutil.rmtree(state, ignore_errors=True)
            cgroups.remove(group)


def _make_root(root: Path) -> None:
    if root.exists():
        return
    for name in ("proc", "dev", "tmp", "etc", "run", "sys"):
        (root / name).mkdir(parents=True)
    shutil.copy(native("payload"), root / "payload")
