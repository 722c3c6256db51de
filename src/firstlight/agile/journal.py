"""Records what outlives a runtime's processes, so that the next start can remove it.

Most things end with the processes that hold them: namespaces with their links and mounts, instances
with their parent. The few others are recorded before they are made: the top cgroups, the nftables
table, the gateway's link and the mounts of functions' roots. One line each, a JSON array.
"""

import fcntl
import json
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

from firstlight.agile.config import remove_directory
from firstlight.agile.functions import mounts
from firstlight.agile.network import networks
from firstlight.agile.parts import cgroups
from firstlight.errors import Failed, longer

_ELSEWHERE = "make room there, or name another state directory in the file of --config"
_LOCK_SECONDS, _RETRY_SECONDS = longer(1.0), 0.02


class Journal:
    """The journal of a runtime. The lock on it shows whether the runtime is alive."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "journal"
        self._descriptor = -1

    def open(self, adopt: bool = False) -> None:
        """Take it over, and remove what its last owner left, or ``adopt`` it. Raises Failed."""
        until = time.monotonic() + _LOCK_SECONDS
        while not self._lock(time.monotonic() > until):
            self._close()
            time.sleep(_RETRY_SECONDS)
        if adopt:
            return
        try:
            recover(self._path)
            os.ftruncate(self._descriptor, 0)
        except BaseException:
            self._close()
            raise

    def _lock(self, last: bool) -> bool:
        """Lock the journal; False if it is locked, or was replaced at its path.

        A program that a killed runtime was starting shares the lock until it has executed. The last
        try raises Failed.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _check_own(self._path.parent)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            self._descriptor = os.open(self._path, flags, 0o600)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not last:
                return False  # the directory was removed, with that of another runtime
            raise Failed(
                f"cannot open the journal {self._path}: {error.strerror}", _ELSEWHERE
            ) from error
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid or status.st_mode & 0o022:
            self._close()
            raise Failed(
                f"the journal {self._path} can be changed by other users", f"rm {self._path}"
            )
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.fstat(self._descriptor).st_ino == self._path.stat().st_ino
        except BlockingIOError:
            if not last:
                return False
            self._close()
            raise Failed(
                f"another runtime uses {self._path.parent}",
                "agile up --replace takes over from it, agile down ends it; or choose another name",
            ) from None
        except FileNotFoundError:
            return False

    def record(self, kind: str, *words: str) -> None:
        """Record what is about to be made. It must not be made if this raises Failed."""
        line = json.dumps([kind, *words]).encode() + b"\n"
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            raise Failed(
                f"cannot write the journal {self._path}: {error.strerror}", _ELSEWHERE
            ) from error
        if written != len(line):
            raise Failed(f"cannot write the journal {self._path}: the disk is full", _ELSEWHERE)

    def leave(self) -> None:
        """Leave everything recorded to the next runtime."""
        self._close()

    def close(self) -> None:
        """Delete the journal, when everything recorded is gone."""
        with suppress(OSError):
            self._path.unlink()
        remove_directory(self._path.parent)
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def is_owned(directory: Path) -> bool:
    """Whether a live runtime has this directory's journal."""
    try:
        descriptor = os.open(directory / "journal", os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _check_own(directory: Path) -> None:
    """A journal that others can write to could list what is not ours to remove. Raises Failed."""
    real = Path(os.path.realpath(directory))
    for path in (directory, *directory.parents, real, *real.parents):
        status = path.lstat()
        link = stat.S_ISLNK(status.st_mode) and path != directory
        sticky = status.st_mode & stat.S_ISVTX and path not in (directory, real)
        shared = status.st_mode & 0o022 and not sticky
        if (not link and (not stat.S_ISDIR(status.st_mode) or shared)) or status.st_uid != 0:
            raise Failed(f"other users can change {path}, of the state directory {directory}",
                         f"chown root {path}; chmod go-w {path}")  # fmt: skip


def recover(path: Path) -> list[str]:
    """Remove what a journal lists; returns the list. Nothing was made for a truncated last line."""
    removed = []
    for line in path.read_text().splitlines():
        try:
            kind, *words = json.loads(line)
        except ValueError:
            continue
        if kind == "cgroup":
            cgroups.remove_tree(Path(words[0]))
        elif kind == "network":
            networks.remove(words[0], words[1])
        elif kind == "mounts":
            mounts.remove(Path(words[0]))
        removed.append(f"{kind} {' '.join(words)}")
    return removed
