"""Small files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
