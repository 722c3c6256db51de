"""Who owns a directory, so that ``clean`` removes it once its owner has ended, however it ended."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firstlight.errors import Failed

SCRATCH = "firstlight-scratch-"


def temporary() -> Path:
    """The directory for temporary files. Raises Failed."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        raise Failed(
            "temporary files can be written neither to TMPDIR nor to /tmp or /var/tmp",
            "mount a tmpfs at /tmp, or name another directory in TMPDIR",
        ) from None


@contextmanager
def scratch(parent: Path | None = None) -> Iterator[Path]:
    """An empty directory in ``parent``, by default the temporary directory, for this block.

    Raises Failed.
    """
    with tempfile.TemporaryDirectory(
        prefix=SCRATCH, dir=parent or temporary(), ignore_cleanup_errors=True
    ) as directory:
        lock = claim(Path(directory))
        try:
            (work := Path(directory, "work")).mkdir()
            yield work
        finally:
            os.close(lock)


def claim(directory: Path) -> int:
    """Write the owner of a directory, this process, into it; returns a lock on that file.

    In another PID namespace only the lock shows that the owner is alive. Raises OSError.
    """
    lock = os.open(directory / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    owner = f"{os.getpid()} {start_time(os.getpid())} {pid_namespace()}"
    os.write(lock, owner.encode())
    return lock


def pid_namespace() -> int:
    """The identity of this process's PID namespace."""
    return Path("/proc/self/ns/pid").stat().st_ino


def start_time(pid: int) -> str:
    """When a process started, in clock ticks since boot; unique together with its pid."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
