"""Verifies a process's confinement from outside, without trusting the process."""

import ctypes
import errno
import os
from dataclasses import dataclass

from firstlight.errors import Failed

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
WANTED = {
    **dict.fromkeys(_SETS, "0" * 16),
    "Groups": "",
    "NoNewPrivs": "1",
    "Seccomp": "2",
    "Threads": "1",
    "TracerPid": "0",
}
"""Lines of /proc/PID/status of a process without rights."""
_KCMP = 312 if os.uname().machine == "x86_64" else 272
_SHARED = {1: "memory", 2: "descriptors", 3: "directories", 4: "signal handlers"}
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_FLAGS, _EXITING = 6, 4  # the ninth field of proc_pid_stat(5), without pid and name; PF_EXITING
_MOST = 1 << 16
_CONTROLLERS = {"cpu", "memory", "pids", ""}


class Unconfined(Failed):
    """A process is not confined as required, or shares something with its forks."""


@dataclass(frozen=True)
class Expected:
    """A confinement: identity, number of seccomp filters, namespaces and cgroups by name."""

    uid: int
    gid: int
    filters: int
    namespaces: dict[str, str]
    cgroups: dict[str, str]


def namespaces(pid: int) -> dict[str, str]:
    """The namespaces of a process by name, with the kernel's numbers. Raises OSError."""
    return {name: _link(pid, name) for name in NAMESPACES}


def cgroups(pid: int) -> dict[str, str]:
    """The cgroup of a process in each limiting hierarchy. Raises OSError."""
    lines = [line.split(":", 2) for line in _read(f"/proc/{pid}/cgroup").splitlines()]
    return {
        names: path for _, names, path in lines if not _CONTROLLERS.isdisjoint(names.split(","))
    }


def status(pid: int) -> dict[str, str]:
    """The lines of /proc/PID/status by key. Raises OSError."""
    lines = _read(f"/proc/{pid}/status").splitlines()
    return {key: text.strip() for key, _, text in (line.partition(":") for line in lines)}


def handles(pid: int, signal: int) -> bool:
    """Whether a process handles a signal, or blocks it to wait for it."""
    try:
        fields = status(pid)
        masks = [int(fields[name], 16) for name in ("SigCgt", "SigBlk")]
    except (OSError, KeyError, ValueError):
        return True
    return any(mask >> (signal - 1) & 1 for mask in masks)


def check_alive(pid: int) -> None:
    """Raise OSError if a process is ending: it loses its memory and cgroup before it ends."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if int(fields[_FLAGS]) & _EXITING:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))


def filters(pid: int) -> int:
    """The number of seccomp filters of a process. Raises OSError."""
    return int(status(pid)["Seccomp_filters"])


def differences(pid: int, expected: Expected) -> list[str]:
    """The differences of a process from its expected confinement. Raises OSError."""
    have = status(pid)
    wanted = {
        **WANTED,
        "Uid": "\t".join([str(expected.uid)] * 4),
        "Gid": "\t".join([str(expected.gid)] * 4),
        "Seccomp_filters": str(expected.filters),
        "NSsid": have["NSpid"],
        "NSpgid": have["NSpid"],
    }
    differing = [
        f"{key} is {have.get(key)}" for key, text in wanted.items() if have.get(key) != text
    ]
    spaces = namespaces(pid)
    spaces["pid_for_children"] = _link(pid, "pid_for_children")
    for name, link in spaces.items():
        if link != expected.namespaces[name.removesuffix("_for_children")]:
            differing.append(f"its {name} namespace differs")
    if cgroups(pid) != expected.cgroups:
        differing.append("its cgroup differs")
    return differing


def shared(pid: int, parent: int) -> list[str]:
    """What a process shares with its maker, by kcmp(2). Raises OSError."""
    shared_kinds = []
    for kind, name in _SHARED.items():
        order = _syscall(ctypes.c_long(_KCMP), parent, pid, kind, 0, 0)
        if order < 0:
            raise OSError(ctypes.get_errno(), f"kcmp: {os.strerror(ctypes.get_errno())}")
        if order == 0:
            shared_kinds.append(f"it shares its parent's {name}")
    return shared_kinds


def check(what: str, pid: int, expected: Expected, parent: int) -> None:
    """Raise Unconfined if a process is not confined as expected, Failed if it is gone."""
    try:
        faults = differences(pid, expected) + shared(pid, parent)
        if faults:
            check_alive(pid)
    except OSError as error:
        raise Failed(f"{what} ended before it was ready: {error.strerror}") from error
    if faults:
        raise Unconfined(f"{what} is not confined: {', '.join(faults)}",
                         "the import must not change os.fork or the runtime's module")  # fmt: skip


def _link(pid: int, namespace: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{namespace}")  # noqa: PTH115 (a path costs four times that)


def _read(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, _MOST).decode(errors="replace")  # a name can be any bytes
    finally:
        os.close(descriptor)
