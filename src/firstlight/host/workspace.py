"""The sandbox of a run: namespaces that play the host, so that the host itself is not changed.

The kernel destroys them, with their links and mounts, when the run's last process ends, however it
ends. Cgroups and processes, which may outlive them, carry the run's name for ``clean``.
"""

import ctypes
import errno
import os
import shutil
import traceback
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

from pyroute2 import IPRoute

from firstlight.errors import WITH_ADMIN, WITH_SUDO, Failed, Unsupported
from firstlight.host import cgroups
from firstlight.host.ownership import claim, start_time

STATE = Path("/run/firstlight")
DISK = Path("/var/tmp/firstlight")  # noqa: S108 - holds one directory per run, which only root can enter
_TRIES = 9
_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_libc = ctypes.CDLL(None, use_errno=True)
Made = TypeVar("Made")


@dataclass(frozen=True)
class Workspace:
    """Where a run works, inside its own network and mount namespaces.

    ``directory`` is a private tmpfs that dies with the run. ``run`` is the run's name, which must
    be part of everything that outlives a process (a cgroup, a container id). ``environment`` is
    passed to every start and marks its processes as this run's. ``outside`` is a descriptor of the
    network namespace that the run was started in.
    """

    directory: Path
    run: str
    environment: dict[str, str] = field(default_factory=dict)
    outside: int = -1
    _lasting: ExitStack = field(default_factory=ExitStack, compare=False)
    _made: dict[Hashable, object] = field(default_factory=dict, compare=False)

    def once(self, key: Hashable, make: Callable[[], AbstractContextManager[Made]]) -> Made:
        """The result of ``make``, called at the first request for this key; it is released with the
        run.

        After a failure, further requests fail at once with the same error.
        """
        if key not in self._made:
            try:
                self._made[key] = self._lasting.enter_context(make())
            except Failed as error:
                self._made[key] = error
        made = self._made[key]
        if isinstance(made, Failed):
            raise made
        return cast("Made", made)


@contextmanager
def sandbox(run: str, *, on_disk: bool = False) -> Iterator[Workspace]:
    """Move this thread into new network and mount namespaces, and yield a workspace there.

    The workspace is a tmpfs; or, ``on_disk``, a directory that is cold when the page cache is
    dropped. Meanwhile this thread has the usual umask: what is measured inherits it, and other
    users may read the root file systems. The thread stays in the namespaces afterwards. Raises
    Unsupported.
    """
    state, disk = STATE / run, DISK / run
    if os.geteuid() != 0:
        raise Unsupported("measuring needs root", WITH_SUDO)
    owner = f"{os.getpid()} {start_time(os.getpid())}"
    lock = _claim(state)
    outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    lasting = ExitStack()
    mask = None
    try:
        unshare(_CLONE_NEWNS | _CLONE_NEWNET)
        mask = os.umask(0o022)  # of this thread alone, after that
        _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
        with IPRoute() as netlink:
            netlink.link("set", index=1, state="up")
        work = state / "work"
        work.mkdir()
        if on_disk:
            make_directory(disk, mode=0o700)
            _mount(str(disk), str(work), None, _MS_BIND)
        else:
            _mount("tmpfs", str(work), "tmpfs", 0)
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "FIRSTLIGHT_RUN": run,
            "FIRSTLIGHT_LAB": owner.replace(" ", ":"),
        }
        with lasting:
            try:
                yield Workspace(work, run, environment, outside, lasting)
            except BaseException as error:
                # What an interrupt left half entered is removed now, while its place is there.
                traceback.clear_frames(error.__traceback__)
                raise
    finally:
        if mask is not None:
            os.umask(mask)
        os.close(outside)
        cgroups.remove(cgroups.name(run))
        _libc.umount2(os.fsencode(state / "work"), 2)
        for directory in (disk, state):
            shutil.rmtree(directory, ignore_errors=True)
        remove_empty()
        os.close(lock)


def _claim(state: Path) -> int:
    """Make a run's directory and claim it. Raises Unsupported."""
    try:
        make_directory(state, mode=0o755)
        try:
            return claim(state)
        except OSError:
            shutil.rmtree(state, ignore_errors=True)
            raise
    except OSError as error:
        remove_empty()
        raise Unsupported(
            f"cannot make {state}: {error.strerror}",
            f"mount a tmpfs at {STATE.parent}, where each run has a directory",
        ) from error


def make_directory(directory: Path, mode: int) -> None:
    """Make a directory of a run, whose parent the end of another run may remove meanwhile."""
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):
            directory.mkdir(mode=mode, parents=True)
            return
    directory.mkdir(mode=mode, parents=True)


def remove_empty() -> None:
    """Remove the directories of all runs if there is none left."""
    for directory in (DISK, STATE):
        with suppress(OSError):
            directory.rmdir()


def unshare(flags: int) -> None:
    """unshare(2). Raises Unsupported."""
    if _libc.unshare(flags):
        raise Unsupported(
            f"cannot create namespaces for the run: {os.strerror(ctypes.get_errno())}",
            WITH_ADMIN,
        )


def _mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    if _libc.mount(*words, ctypes.c_ulong(flags), None):
        number = ctypes.get_errno()
        what = f"mount {kind or source} at" if kind or source else "make private the mounts of"
        hint = "run firstlight where / is a mount point: in no chroot, and on Linux, not on gVisor"
        raise Unsupported(
            f"cannot {what} {target}: {os.strerror(number)}",
            WITH_ADMIN if number in (errno.EPERM, errno.EACCES) else hint,
        )
