"""Files: read within bounds, and written whole or not at all."""

import errno
import os
import select
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firstlight.errors import longer

_TO_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_PIPE_SECONDS = longer(10.0)
"""How long is waited for what a pipe's writer does next."""


def open_regular(path: Path, flags: int = 0) -> int:
    """Open a regular file to be read; returns a descriptor. Raises OSError, also for others:
    opening a FIFO may wait, and reading a device may never end.
    """
    descriptor = os.open(path, _TO_READ | flags)
    if stat.S_ISREG(mode := os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, "it is not a regular file", path)


def read_regular(path: Path, most: int) -> bytes:
    """The content of a regular file. Raises OSError, also for one of more than ``most`` bytes."""
    with os.fdopen(open_regular(path), "rb") as file:
        return _bounded(path, file.read(most + 1), most)


def read_given(path: Path, most: int) -> bytes:
    """The content of a file that a command's caller names: as ``read_regular``, or of a pipe, as of
    a shell's ``<(…)``. Raises OSError, also if nobody writes to the pipe for 10 s.
    """
    if not path.is_fifo():
        return read_regular(path, most)
    ready, content = select.poll(), b""
    with os.fdopen(os.open(path, _TO_READ), "rb", buffering=0) as pipe:
        ready.register(pipe, select.POLLIN)
        while len(content) <= most:
            if not ready.poll(1000 * _PIPE_SECONDS):
                raise OSError(errno.ETIMEDOUT, "it is a pipe to which nobody writes", path)
            part = pipe.read(most + 1 - len(content))
            if part == b"":
                break
            content += part or b""  # None where another reader was quicker
    return _bounded(path, content, most)


def _bounded(path: Path, content: bytes, most: int) -> bytes:
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is longer than {most} bytes", path)
    return content


def write_whole(path: Path, content: bytes | memoryview, mode: int | None = None) -> None:
    """Write the whole file or nothing, even when killed; it replaces one that is there.

    ``mode`` applies whatever the umask is. One process at a time may write a path; a killed one
    leaves ``unfinished(path)``. It is not flushed: a crash of the host may lose it. Raises OSError.
    """
    new = unfinished(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(new, flags, 0o666 if mode is None else 0o600)
    try:
        with naming(path), os.fdopen(descriptor, "wb") as file:
            if mode is not None:  # also where a killed process has left one of another mode
                os.fchmod(file.fileno(), mode)
            file.write(content)
        new.rename(path)
    except OSError:
        new.unlink(missing_ok=True)  # or the write's error would be hidden
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let the error of a failed write name the file, as that of a failed open does."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or os.fspath(path)
        raise


def unfinished(path: Path) -> Path:
    """Where the file is written before it gets its name."""
    return path.with_name(f"{path.name}.part")
