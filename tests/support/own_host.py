"""Namespaces in which a worker of pytest-xdist plays a host of its own.

Its links, ports, cgroups and names below /run meet no other worker's. Processes are the machine's.
"""

import os
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from firstlight.host import cgroups, workspace

_NAMESPACES = 0x00020000 | 0x40000000 | 0x02000000  # mounts, network, cgroups
_FURNISH = """
group=$1; shift
mount --make-rprivate /
for top do
    own=$(mktemp -d)
    mount --bind "$top/$group" "$own"
    umount "$top"
    mount --move "$own" "$top"
    rmdir "$own"
done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/lock
ip link set lo up
"""


def check() -> None:
    """Raise UsageError where workers could make no cgroups."""
    for hierarchy in cgroups.hierarchies():
        if not os.access(hierarchy, os.W_OK):
            raise pytest.UsageError(
                f"{hierarchy} is read-only, and each worker makes a cgroup of its own there: "
                "remount it read-write, or run without workers (-n 0)"
            )


def enter(worker: str) -> None:
    """Move this thread, and what it starts, to a host of its own."""
    hierarchies, group = cgroups.hierarchies(), f"{name(os.getppid())}/{worker}"
    for hierarchy in hierarchies:
        _join(hierarchy, group)
    workspace.unshare(_NAMESPACES)
    subprocess.run(["sh", "-ec", _FURNISH, "sh", group, *hierarchies], check=True)
    for hierarchy in hierarchies:  # on version 2 one that has processes cannot limit others
        _join(hierarchy, "tests")


def leave() -> None:
    """Remove what the workers of this process have left, when they have ended."""
    cgroups.remove(name(os.getpid()))


def name(controller: int) -> str:
    """The cgroup of all workers of a process."""
    return f"pytest-{controller}"


def _join(hierarchy: Path, group: str) -> None:
    above = hierarchy
    for part in group.split("/"):
        below = above / part
        below.mkdir(exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):  # version 1 has these empty
            if (above / file).exists() and not (below / file).read_text().strip():
                (below / file).write_text((above / file).read_text())
        if (above / "cgroup.controllers").exists() and part != "tests":
            for controller in (above / "cgroup.controllers").read_text().split():
                with suppress(OSError):  # it is in use elsewhere
                    (above / "cgroup.subtree_control").write_text(f"+{controller}")
        above = below
    (above / "cgroup.procs").write_text("0")
