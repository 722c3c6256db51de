"""The cgroups of instances, with their limits, on hosts with version 1, version 2 or both.

Making a cgroup takes tens of microseconds. Moving a process into it by ``cgroup.procs`` is slow,
because it waits for an RCU grace period. So instances are born in their cgroup (version 2) or move
themselves by ``tasks`` (version 1): see ``native/agile/sandbox.c``.
"""

import asyncio
import errno
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from firstlight.errors import WRITABLE_CGROUPS, Failed, Unsupported, longer

CONTROLLERS = ("cpu", "memory", "pids")
_ENABLED = "+cpu +memory +pids"
_PERIOD_US = 100_000
_OPTIONAL = (".swap.", ".memsw.", ".kmem.tcp.", ".oom.group")
_EMPTY_SECONDS = longer(10.0)
_RETRY_SECONDS = 0.01


@dataclass(frozen=True)
class Limits:
    """The limits of an instance: memory in bytes, CPUs, number of tasks."""

    memory: int
    cpus: float
    pids: int


@dataclass(frozen=True, eq=False)
class Cgroup:
    """An instance's cgroup in each hierarchy. Its processes may enter by ``descriptors``."""

    paths: tuple[Path, ...]
    descriptors: tuple[int, ...]
    memory: Path


class Cgroups:
    """The cgroups below a runtime's top cgroup, which is a path below each hierarchy's root."""

    def __init__(self, top: str) -> None:
        self._name = top
        self._serial = 0
        self._busy: list[Path] = []
        unified, self._hierarchies = _hierarchies()
        self.unified = unified
        if missing := [c for c in CONTROLLERS if not unified and c not in self._hierarchies]:
            raise Unsupported(
                f"cgroup controllers are missing: {', '.join(missing)}",
                "mount them, or boot with cgroup version 2",
            )
        self._tops = tuple(dict.fromkeys(path / self._name for path in self._hierarchies.values()))

    @property
    def tops(self) -> tuple[Path, ...]:
        """The runtime's top cgroup in each hierarchy."""
        return self._tops

    @property
    def tops_by_controller(self) -> tuple[Path, ...]:
        """As the node takes them: that of version 2, or one for each of CONTROLLERS, in this order.

        Controllers that are mounted together have the same one.
        """
        if self.unified:
            return self._tops
        return tuple(self._hierarchies[controller] / self._name for controller in CONTROLLERS)

    def check(self) -> None:
        """Raise Failed if a top cgroup exists: it belongs to something else."""
        for top in self._tops:
            if top.exists():
                raise Failed(f"the cgroup {top} already exists",
                             "configure another name, or remove it if nothing uses it")  # fmt: skip

    def open(self, adopt: bool = False) -> None:
        """Make the top cgroups; with ``adopt``, existing ones are taken over. Raises Failed."""
        made: list[Path] = []
        for top in self._tops if not adopt else ():
            level = root = Path(str(top).removesuffix(self._name))
            try:
                top.parent.mkdir(parents=True, exist_ok=True)
                top.mkdir()
                made.append(top)
                if self.unified:
                    for level in (root, *(root / part for part in _levels(self._name))):
                        _write(level / "cgroup.subtree_control", _ENABLED)
            except OSError as error:
                for each in made:
                    each.rmdir()
                hint = f"in a container, {WRITABLE_CGROUPS}" if error.errno == errno.EROFS else None
                if error.errno == errno.EBUSY:
                    hint = (f"move the processes of {level} into a cgroup below it: while "
                            "it has some, it gives no controllers")  # fmt: skip
                raise Failed(f"cannot make the cgroup {top}: {error.strerror}", hint) from error

    def adopt(self, number: int, entry_fds: bool = False) -> Cgroup:
        """An earlier runtime's cgroup, by its name. With ``entry_fds``, raises OSError."""
        self._serial = max(self._serial, number)
        paths = tuple(top / str(number) for top in self._tops)
        opened = self._open_entry_fds(paths) if entry_fds else ()
        return Cgroup(paths, opened, self._hierarchies["memory"] / self._name / str(number))

    def _open_entry_fds(self, paths: tuple[Path, ...]) -> tuple[int, ...]:
        flags = os.O_RDONLY | os.O_DIRECTORY if self.unified else os.O_WRONLY
        opened: list[int] = []
        try:
            for path in paths:
                opened += [os.open(path if self.unified else path / "tasks", flags)]
        except OSError:
            for descriptor in opened:
                os.close(descriptor)
            raise
        return tuple(opened)

    def of(self, pid: int) -> Cgroup:
        """The cgroup of an instance's process. Raises OSError."""
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            name = path.rpartition("/")[2]
            if name.isdecimal() and ("memory" in names.split(",") or (self.unified and not names)):
                return self.adopt(int(name))
        raise ProcessLookupError(errno.ESRCH, "it is in no cgroup of the runtime's")

    def remove_others(self, names: set[str]) -> None:
        """Remove an earlier runtime's cgroups that are not in use."""
        for top in self._tops:
            for entry in list(os.scandir(top)):
                if entry.is_dir() and entry.name.isdecimal():
                    self._serial = max(self._serial, int(entry.name))
                    if entry.name not in names and not _try_remove(Path(entry.path)):
                        _kill(Path(entry.path))
                        self._busy.append(Path(entry.path))

    def make(self, limits: Limits, entry_fds: bool = True) -> Cgroup:
        """Make a cgroup with its limits set; without ``entry_fds`` it is entered by name. Raises
        Failed.
        """
        self._retry_busy()
        self._serial += 1
        name = str(self._serial)
        paths = tuple(top / name for top in self._tops)
        try:
            for path in paths:
                path.mkdir()
            for file, text in self._settings(limits):
                _write(file, text)
            opened = self._open_entry_fds(paths) if entry_fds else ()
        except OSError as error:
            for path in paths:
                with suppress(OSError):
                    path.rmdir()
            raise Failed(
                f"cannot make a cgroup with {limits}: {error.filename}: {error.strerror}",
                "the limits must not exceed the host's",
            ) from error
        return Cgroup(paths, opened, self._hierarchies["memory"] / self._name / name)

    def _settings(self, limits: Limits) -> Iterator[tuple[Path, str]]:
        name = str(self._serial)
        top = {c: self._hierarchies[c] / self._name / name for c in CONTROLLERS}
        quota = max(1000, int(limits.cpus * _PERIOD_US))
        if self.unified:
            yield top["memory"] / "memory.max", str(limits.memory)
            yield top["memory"] / "memory.swap.max", "0"
            yield top["cpu"] / "cpu.max", f"{quota} {_PERIOD_US}"
            yield top["memory"] / "memory.oom.group", "1"
        else:
            yield top["memory"] / "memory.limit_in_bytes", str(limits.memory)
            yield top["memory"] / "memory.memsw.limit_in_bytes", str(limits.memory)
            yield top["memory"] / "memory.kmem.tcp.limit_in_bytes", str(limits.memory)
            yield top["cpu"] / "cpu.cfs_quota_us", str(quota)
        yield top["pids"] / "pids.max", str(limits.pids)

    @contextmanager
    def entry_fds(self, cgroup: Cgroup) -> Iterator[list[int]]:
        """Descriptors by which a process moves itself in; on version 2 this is ``cgroup.procs``,
        which is slow.
        """
        if not self.unified:
            yield list(cgroup.descriptors)
            return
        entry_fds = [os.open(path / "cgroup.procs", os.O_WRONLY) for path in cgroup.paths]
        try:
            yield entry_fds
        finally:
            for entry_fd in entry_fds:
                os.close(entry_fd)

    def ran_out_of_memory(self, cgroup: Cgroup) -> bool:
        """Whether the kernel killed a process in it because of its memory limit."""
        file = cgroup.memory / ("memory.events" if self.unified else "memory.oom_control")
        with suppress(OSError):
            words = [line.split() for line in file.read_text().splitlines()]
            return any(w[0] == "oom_kill" and w[1] != "0" for w in words)
        return False

    def remove(self, cgroup: Cgroup) -> None:
        """Remove a cgroup whose processes have ended; a busy one is tried again later."""
        for descriptor in cgroup.descriptors:
            os.close(descriptor)
        self._busy.extend(path for path in cgroup.paths if not _try_remove(path))

    def processes(self, cgroup: Cgroup) -> set[int]:
        """The pids of its processes. Raises OSError."""
        return _pids(cgroup.memory)

    def move(self, pid: int, cgroup: Cgroup) -> None:
        """Move a process in. May wait for a grace period of some 10 ms. Raises OSError."""
        for path in cgroup.paths:
            with open(f"{path}/{'cgroup.procs' if self.unified else 'tasks'}", "wb", 0) as file:  # noqa: PTH123 (half the cost)
                file.write(b"%d" % pid)

    def kill_now(self, cgroup: Cgroup) -> bool:
        """Kill its processes, in any hierarchy; returns whether there were any."""
        killed = [_kill(path) for path in cgroup.paths]
        return any(killed)

    async def kill(self, cgroup: Cgroup) -> None:
        """Kill its processes and wait until it is empty. Raises Failed after 10 s."""
        until = time.monotonic() + _EMPTY_SECONDS
        pause = 0.0002
        while self.kill_now(cgroup):
            await asyncio.sleep(pause)
            pause = min(2 * pause, _RETRY_SECONDS)
            if time.monotonic() > until:
                raise Failed(f"a process in {cgroup.memory} survives SIGKILL")

    def close(self) -> None:
        """Remove all. Raises Failed."""
        for top in self._tops:
            remove_tree(top)

    def _retry_busy(self) -> None:
        if self._busy:
            self._busy = [path for path in self._busy if not _try_remove(path)]


def remove_tree(top: Path) -> None:
    """Kill all processes in and below a cgroup, and remove it. Raises Failed if it stays busy."""
    until = time.monotonic() + _EMPTY_SECONDS
    while top.is_dir():
        below = (Path(entry) for entry in os.scandir(top) if entry.is_dir())
        for path in (*below, top):
            if not _try_remove(path):
                _kill(path)
        if time.monotonic() > until:
            raise Failed(f"cannot remove the cgroup {top}: it is busy",
                         "its cgroup.procs lists the processes")  # fmt: skip
        if top.is_dir():
            time.sleep(_RETRY_SECONDS)  # a killed process leaves once the kernel has torn it down


def _levels(name: str) -> list[Path]:
    """``a/b/c`` as ``a``, ``a/b``, ``a/b/c``."""
    path = Path(name)
    return [*reversed([parent for parent in path.parents if parent != Path()]), path]


def _kill(path: Path) -> bool:
    """Kill its processes; returns whether there were any.

    A pid may be reused after it was read: each process is held by a pidfd and looked up again
    first.
    """
    held: dict[int, int] = {}
    try:
        with suppress(OSError):
            for pid in _pids(path):
                with suppress(ProcessLookupError):
                    held[pid] = os.pidfd_open(pid)
            for pid in held.keys() & _pids(path) if held else ():
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(held[pid], signal.SIGKILL)
    finally:
        for descriptor in held.values():
            os.close(descriptor)
    return bool(held)


def _pids(path: Path) -> set[int]:
    with open(f"{path}/cgroup.procs", "rb", 0) as file:  # noqa: PTH123 (half the cost)
        return set(map(int, file.read().split()))


def _try_remove(path: Path) -> bool:
    try:
        path.rmdir()
    except OSError as error:
        return error.errno == errno.ENOENT
    return True


def _write(file: Path, text: str) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY)
    except FileNotFoundError:
        if any(part in file.name for part in _OPTIONAL):
            return  # this kernel does not account it
        raise
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error
    finally:
        os.close(descriptor)


def _hierarchies() -> tuple[bool, dict[str, Path]]:
    """Whether the controllers are version 2's, and where each is mounted."""
    mounted: dict[str, Path] = {}
    for line in Path("/proc/thread-self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2":
            have = (Path(where) / "cgroup.controllers").read_text().split()
            if all(controller in have for controller in CONTROLLERS):
                return True, dict.fromkeys(CONTROLLERS, Path(where))
        if kind == "cgroup":
            for controller in CONTROLLERS:
                if controller in options.split(","):
                    mounted.setdefault(controller, Path(where))
    return False, mounted
