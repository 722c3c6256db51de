"""Reads a container's bundle, and adds a pod's files to it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

_FILES = {"/etc/hostname": "hostname", "/etc/hosts": "hosts", "/etc/resolv.conf": "resolv.conf"}
_SHM = "/dev/shm"  # noqa: S108 - the container's


@dataclass(frozen=True)
class Bundle:
    """``shares_pids``: its processes may outlive its first. ``systemd``: its cgroup is a unit."""

    shares_pids: bool
    has_start_hooks: bool
    has_stop_hooks: bool
    systemd: bool
    rootfs: Path


def read(directory: Path) -> Bundle:
    """Read config.json. Raises OSError, ValueError."""
    spec = msgspec.json.decode((directory / "config.json").read_bytes())
    linux, hooks = spec.get("linux") or {}, spec.get("hooks") or {}
    spaces = linux.get("namespaces") or ()
    own = any(each["type"] == "pid" and not each.get("path") for each in spaces)
    path = linux.get("cgroupsPath") or ""
    root = Path((spec.get("root") or {}).get("path") or "rootfs")
    return Bundle(
        shares_pids=not own,
        has_start_hooks=bool(hooks.get("poststart")),
        has_stop_hooks=bool(hooks.get("poststop")),
        systemd=path.count(":") == 2 and not path.startswith("/"),
        rootfs=directory / root,
    )


def join(directory: Path, files: Path, *, has_shm: bool) -> None:
    """Give a pod's container the pod's /etc/hosts, /etc/hostname, /etc/resolv.conf and /dev/shm.
    containerd mounts its own if it makes the sandbox. What the bundle mounts there stays. Raises
    OSError, ValueError.
    """
    file = directory / "config.json"
    spec = msgspec.json.decode(file.read_bytes())
    mounts: list[dict[str, Any]] = spec.setdefault("mounts", [])
    access = "ro" if (spec.get("root") or {}).get("readonly") else "rw"
    taken = {Path(each["destination"]) for each in mounts}
    for destination, name in _FILES.items():
        if Path(destination) not in taken:
            mounts.append(_bind(destination, files / name, access))
    if has_shm:
        for place, each in enumerate(mounts):
            if Path(each["destination"]) == Path(_SHM) and each.get("type") == "tmpfs":
                mounts[place] = _bind(_SHM, files / "shm", "rw")
    file.write_bytes(msgspec.json.encode(spec))


def _bind(destination: str, source: Path, access: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": str(source),
            "options": ["rbind", "rprivate", access]}  # fmt: skip
