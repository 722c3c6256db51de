"""Sets up a node's mount namespace, so that nothing that components write remains.

For the first process of new mount, network, cgroup and PID namespaces.
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from firstlight.errors import Failed

_CGROUPS = Path("/sys/fs/cgroup")
_OVERLAID = tuple(path for path in map(Path, ("/etc", "/opt", "/var")) if path.is_dir())
_OWN = {"etc": "cni/net.d", "opt": "cni/bin", "var": "lib/cni"}
"""What the host has of other CNI plugins: a node begins without it."""
_FLAGS = ("rw", "ro", "xattr", "clone_children")


@dataclass(frozen=True)
class Hierarchy:
    """A cgroup hierarchy: where it is mounted, its file system and its options."""

    at: Path
    kind: str
    options: str


def hierarchies() -> list[Hierarchy]:
    """The host's hierarchies; to be read before they are covered."""
    hierarchies = {}  # by their mount points, where one may cover another
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            words = [] if kind == "cgroup2" else options.split(",")
            named = [word for word in words if word.startswith("name=")]
            controllers = [word for word in words if "=" not in word and word not in _FLAGS]
            chosen = ",".join(["none", *named] if named else controllers)
            at = Path(before.split()[4])
            hierarchies[at] = Hierarchy(at, kind, chosen)
    return list(hierarchies.values())


def enter(group: str, of: list[Hierarchy]) -> None:
    """Make a top cgroup in every hierarchy and move this process into it.

    A version 1 cpuset accepts no process before it has CPUs and memory nodes.
    """
    for hierarchy in of:
        top = hierarchy.at / group
        top.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if hierarchy.kind == "cgroup" and (top / name).exists():
                (top / name).write_text((hierarchy.at / name).read_text())
        (top / "cgroup.procs").write_text("0")


def make_room(group: str, of: list[Hierarchy]) -> None:
    """Move this process, now in a cgroup namespace, out of its root.

    Version 2: a cgroup with processes gives its children no controllers. These processes include
    the parent of the first one, which cannot see it.
    """
    for hierarchy in of:
        if hierarchy.kind == "cgroup2":
            leaf = hierarchy.at / group / "components"
            leaf.mkdir(exist_ok=True)
            (leaf / "cgroup.procs").write_text("0")


def private(work: Path, scratch: Path, of: list[Hierarchy]) -> None:
    """Give this mount namespace its own /proc, /sys, /run and others; ``work`` stays in place.

    /etc, /opt and /var show the host's files but those of its CNI plugins; writes go to
    ``scratch``.
    """
    mount("--make-rprivate", "/")
    mount("--make-shared", "/")  # containerd keeps network namespaces in mounts that it shares
    mount("-t", "proc", "proc", "/proc")
    mount("-t", "sysfs", "sysfs", "/sys")
    _remount_cgroups(of)
    for optional in (("bpf", "/sys/fs/bpf"), ("tracefs", "/sys/kernel/tracing")):
        subprocess.run(["mount", "-t", optional[0], optional[0], optional[1]], capture_output=True)
    held = os.open(work, os.O_PATH | os.O_DIRECTORY)
    for top in _OVERLAID:
        upper, changed = scratch / top.name, scratch / f"{top.name}.work"
        own = upper / _OWN[top.name]
        own.mkdir(parents=True)
        os.setxattr(own, "trusted.overlay.opaque", b"y")
        changed.mkdir()
        mount("-t", "overlay", "-o", f"lowerdir={top},upperdir={upper},workdir={changed}",
              "overlay", str(top))  # fmt: skip
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    work.mkdir(parents=True, exist_ok=True)
    mount("--no-canonicalize", "--rbind", f"/proc/self/fd/{held}", str(work), keep=held)
    os.close(held)
    Path("/run/netns").mkdir()


def uncover() -> None:
    """Show the host's directories again, in a mount namespace copied from another node's."""
    mount("--make-rprivate", "/")
    for top in (*_OVERLAID, Path("/run")):
        done = subprocess.run(["umount", "--lazy", top], capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"umount {top} failed: {done.stderr.strip()}")


def _remount_cgroups(of: list[Hierarchy]) -> None:
    """Remount each hierarchy, so that its root is that of this cgroup namespace."""
    if not any(hierarchy.at == _CGROUPS for hierarchy in of):
        mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(_CGROUPS))
    for hierarchy in sorted(of, key=lambda each: each.at):
        hierarchy.at.mkdir(exist_ok=True)
        options = ["-o", hierarchy.options] if hierarchy.options else []
        mount("-t", hierarchy.kind, *options, "cgroup", str(hierarchy.at))
        if hierarchy.kind == "cgroup2":
            _give_controllers(hierarchy.at)


def _give_controllers(root: Path) -> None:
    for controller in (root / "cgroup.controllers").read_text().split():
        (root / "cgroup.subtree_control").write_text(f"+{controller}")


def mount(*words: str, keep: int = -1) -> None:
    """mount(8), which inherits a descriptor named by a path. Raises Failed."""
    done = subprocess.run(["mount", *words], capture_output=True, text=True,
                          pass_fds=[keep] if keep >= 0 else [])  # fmt: skip
    if done.returncode:
        raise Failed(f"mount {' '.join(words)} failed: {done.stderr.strip()}")
