"""Finds and removes what killed runs left, and nothing else.

What the kernel does not end with a run's last process carries the run's name. A run is alive while
the process in ``/run/firstlight/RUN/owner`` ("pid starttime pid-namespace") is; one of another PID
namespace holds a lock on this file. This directory is made first and removed last, so it exists as
long as anything else of the run.
"""

import errno
import os
import re
import select
import shutil
import signal
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fcntl import LOCK_NB, LOCK_SH, flock, ioctl
from functools import partial
from pathlib import Path

from pyroute2 import netns

from firstlight.errors import WITH_SUDO, Failed, FirstlightError, Unsupported, longer
from firstlight.host import cgroups, mounts
from firstlight.host.mounts import unmount_below
from firstlight.host.ownership import SCRATCH, pid_namespace, temporary
from firstlight.host.workspace import DISK, STATE, remove_empty

_PROC = Path("/proc")
_NAMED = Path("/run/netns")
_BLOCK = Path("/sys/block")
_LOOP_CLR_FD, _LOOP_GET_STATUS64 = 0x4C01, 0x4C05
_LOOP_INFO = struct.Struct("56x 64s 112x")  # loop_info64: only lo_file_name
_OF_SCRATCH = re.compile("owner|work")
_OF_WATCH = re.compile(r"window\.\d+\.(events|text|stacks)|watch-\d{8}T\d{6}\.\d+")
_EXIT_SECONDS = longer(5.0)
_LOOKS = 50
_ROUNDS = 3  # a process may fork during a search: the next round finds its child
_STARTING_SECONDS = longer(10.0)  # a run makes its directory, then writes its owner


@dataclass(frozen=True)
class Leftover:
    """Something that a killed run left: a process, a cgroup, a loop device, ….

    ``remove`` raises FirstlightError or OSError; it succeeds if the thing is already gone.
    """

    kind: str
    name: str
    remove: Callable[[], None] = field(compare=False)


@dataclass(frozen=True)
class Cleaned:
    """What ``clean`` removed, and what it could not remove, with reasons."""

    removed: list[Leftover]
    failed: list[tuple[Leftover, str]]


def leftovers() -> list[Leftover]:
    """What dead runs left, in an order in which it can be removed. Raises Unsupported."""
    if os.geteuid() != 0:
        raise Unsupported("only root can find what runs left", WITH_SUDO)
    runs = _runs()
    dead = {run for run, alive in runs.items() if not alive}
    doomed = {pid: name for pid in _pids() if (name := _doomed(pid, dead))}
    return [
        *(
            Leftover("process", f"{pid} ({name})", partial(_kill, pid, dead))
            for pid, name in doomed.items()
        ),
        *(
            Leftover("cgroup", group, partial(cgroups.remove, group))
            for group in _cgroups(runs, set(doomed))
        ),
        *_loop_devices(runs),
        *_named_namespaces(dead),
        *(
            Leftover("directory", str(base / run), partial(_remove_directory, base / run))
            for base in (DISK, STATE)  # STATE last: its directory identifies the run
            for run in sorted(dead)
            if (base / run).exists()
        ),
        *_scratch(),
        *_of_watches(),
        *(
            Leftover("directory", str(directory), mounts.remove_unused)
            for directory in ([] if any(runs.values()) else mounts.made())
        ),
    ]


def clean() -> Cleaned:
    """Remove what dead runs left, in several rounds. Raises Unsupported without root."""
    removed: list[Leftover] = []
    failed: dict[str, tuple[Leftover, str]] = {}
    for _ in range(_ROUNDS):
        remaining = [leftover for leftover in leftovers() if leftover.name not in failed]
        if not remaining:
            break
        for leftover in remaining:
            try:
                leftover.remove()
                removed.append(leftover)
            except (FirstlightError, OSError) as error:
                failed[leftover.name] = leftover, str(error)
    remove_empty()
    return Cleaned(removed, list(failed.values()))


def _runs() -> dict[str, bool]:
    """Each run that has a directory, and whether it is alive."""
    directories = STATE.iterdir() if STATE.is_dir() else ()
    return {path.name: _is_owned(path) for path in directories if path.is_dir()}


def _is_owned(directory: Path) -> bool:
    owner = directory / "owner"
    try:
        pid, started, *namespace = owner.read_text().split()
    except (FileNotFoundError, ValueError):
        with suppress(FileNotFoundError):
            age = abs(time.time() - directory.stat().st_ctime)  # the clock may be set back
            return age < _STARTING_SECONDS
        return False
    if namespace and namespace[0] != str(pid_namespace()):
        return _is_locked(owner)
    return _is_alive(pid, started)


def _is_locked(file: Path) -> bool:
    try:
        with file.open() as opened:
            flock(opened, LOCK_SH | LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def _is_alive(pid: str, started: str) -> bool:
    """Whether this process runs. A zombie does not; the start time detects a reused pid."""
    try:
        fields = _stat(pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields[0] not in {"Z", "X"} and fields[19] == started


def _stat(pid: str | int) -> list[str]:
    """The fields of /proc/PID/stat after the name: state is 0, parent 1, start time 19, size of
    its memory 20, end of its environment 48.
    """
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _pids() -> Iterator[int]:
    """All processes except this one and its ancestors."""
    own = {0}
    pid = os.getpid()
    while pid:
        own.add(pid)
        pid = int(_stat(pid)[1])
    yield from sorted({int(path.name) for path in _PROC.iterdir() if path.name.isdigit()} - own)


def _doomed(pid: int, dead: set[str]) -> str | None:
    """The name of a process that belongs to a dead run, else None.

    The process has the run in its environment, or is in the run's mount namespace, where the
    run's work directory is mounted. If the run has no directory, the pid of its lab decides; that
    pid means nothing in another PID namespace.
    """
    process = _PROC / str(pid)
    try:
        name = (process / "comm").read_text(errors="replace").strip()
        run, lab, started = _labels(_environment(pid))
        if run is None:
            mounts = (process / "mountinfo").read_text()
            works = re.findall(rf" {re.escape(str(STATE))}/([^/\s]+)/work ", mounts)
            return name if dead.intersection(works) else None
        if (STATE / run).exists():
            return name if run in dead else None
        same_namespace = (process / "ns/pid").readlink() == (_PROC / "self/ns/pid").readlink()
    except OSError:
        return None
    return name if same_namespace and not _is_alive(lab, started) else None


def _environment(pid: int) -> bytes:
    """The environment that a process was started with, as NAME=VALUE and NUL.

    While a process is in execve the kernel shows none: retries for 50 ms at most.
    """
    for _ in range(_LOOKS):
        environment = (_PROC / str(pid) / "environ").read_bytes()
        if environment or not _is_executing(pid):
            break
        time.sleep(0.001)
    return environment


def _is_executing(pid: int) -> bool:
    """Whether it has memory but does not yet know where its environment ends: proc(5)."""
    fields = _stat(pid)
    return fields[20] != "0" == fields[48]


def _labels(environment: bytes) -> tuple[str | None, str, str]:
    """The run that a process belongs to, and the pid and start time of its lab."""
    words = (word.partition("=") for word in environment.decode(errors="replace").split("\0"))
    variables = {name: value for name, _, value in words}
    lab, _, started = variables.get("FIRSTLIGHT_LAB", "").partition(":")
    return (variables.get("FIRSTLIGHT_RUN") if lab.isdigit() else None), lab, started


def _kill(pid: int, dead: set[str]) -> None:
    """Kill a process, after checking it again by a pidfd, so that its pid cannot be reused."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not _doomed(pid, dead):
            return
        signal.pidfd_send_signal(process, signal.SIGKILL)
        waiting = select.poll()
        waiting.register(process, select.POLLIN)
        if not waiting.poll(_EXIT_SECONDS * 1000):
            raise Failed(
                f"process {pid} is still there {_EXIT_SECONDS:.0f} s after SIGKILL",
                f"cat /proc/{pid}/stack shows where it waits",
            )
    except ProcessLookupError:
        return
    finally:
        os.close(process)


def _cgroups(runs: dict[str, bool], doomed: set[int]) -> list[str]:
    """Top cgroups of dead runs. Without a run's directory: those with doomed processes only."""
    groups: dict[str, set[int]] = {}
    for hierarchy in cgroups.hierarchies():
        for top in hierarchy.glob(f"{cgroups.PREFIX}*"):
            held = groups.setdefault(top.name, set())
            for directory, _, _ in os.walk(top):
                with suppress(OSError):
                    held.update(map(int, Path(directory, "cgroup.procs").read_text().split()))
    return [
        group
        for group, held in sorted(groups.items())
        if not runs.get(group.removeprefix(cgroups.PREFIX), not held <= doomed)
    ]


def _loop_devices(runs: dict[str, bool]) -> Iterator[Leftover]:
    for device in sorted(_BLOCK.glob("loop*")):
        run = _backing_run(device)
        if run and not runs.get(run, False):
            yield Leftover("loop device", f"/dev/{device.name}", partial(_detach, device, run))


def _backing_run(device: Path) -> str | None:
    """The run whose directory contains the file behind a loop device.

    When the run's mount namespace is gone the kernel no longer knows the file's full path; only
    the name that was set with the device is left.
    """
    try:
        backing = (device / "loop/backing_file").read_text().strip()
        with _opened(device) as node:
            status = ioctl(node, _LOOP_GET_STATUS64, bytes(_LOOP_INFO.size))
    except OSError:
        return None
    given = _LOOP_INFO.unpack(status)[0].partition(b"\0")[0].decode(errors="replace")
    files = (Path(name) for name in (backing, given))
    return next((file.relative_to(STATE).parts[0] for file in files if STATE in file.parents), None)


def _detach(device: Path, run: str) -> None:
    if _backing_run(device) != run:
        return
    with _opened(device) as node:
        try:
            ioctl(node, _LOOP_CLR_FD)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise


@contextmanager
def _opened(device: Path) -> Iterator[int]:
    node = os.open(f"/dev/{device.name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield node
    finally:
        os.close(node)


def _named_namespaces(dead: set[str]) -> Iterator[Leftover]:
    """Named namespaces of dead runs: rare, as runs name them in their own mount namespaces."""
    for name in sorted(_NAMED.glob("fl-*")):
        run = name.name.removeprefix("fl-")
        if any(run == gone or run.startswith(f"{gone}-") for gone in dead):
            yield Leftover("network namespace", name.name, partial(netns.remove, name.name))


def _scratch() -> Iterator[Leftover]:
    """Scratch directories whose owners have ended."""
    for directory in _temporary(f"{SCRATCH}*", _OF_SCRATCH):
        if not _is_owned(directory):
            remove = partial(shutil.rmtree, directory, ignore_errors=True)
            yield Leftover("directory", str(directory), remove)


def _of_watches() -> Iterator[Leftover]:
    """Directories of ``firstlight watch`` up to 0.2, which are left if it is killed.

    They name no owner, so none is removed while a watch is running.
    """
    directories = _temporary("firstlight-watch-*", _OF_WATCH)
    if directories and not any(_is_watch(pid) for pid in _pids()):
        for directory in directories:
            remove = partial(shutil.rmtree, directory, ignore_errors=True)
            yield Leftover("directory", str(directory), remove)


def _temporary(pattern: str, content: re.Pattern[str]) -> list[Path]:
    """Temporary directories of our user alone that contain nothing but ``content``."""
    try:
        matching = sorted(temporary().glob(pattern))
    except Failed:  # none that could be removed
        return []
    return [directory for directory in matching if _is_ours(directory, content)]


def _is_ours(directory: Path, content: re.Pattern[str]) -> bool:
    try:
        status = directory.lstat()
        names = [entry.name for entry in directory.iterdir()]
    except OSError:
        return False
    return (
        stat.S_ISDIR(status.st_mode)
        and stat.S_IMODE(status.st_mode) == 0o700
        and status.st_uid == os.geteuid()
        and all(map(content.fullmatch, names))
    )


def _is_watch(pid: int) -> bool:
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"watch" in words and any(Path(os.fsdecode(word)).name == "firstlight" for word in words)


def _remove_directory(directory: Path) -> None:
    unmount_below(directory)
    if f" {directory}/" in (_PROC / "self/mountinfo").read_text():
        raise Failed(f"something is still mounted in {directory}", "unmount it and clean again")
    with suppress(FileNotFoundError):
        shutil.rmtree(directory)
