"""Mount points that must exist on the host, for a run to mount over them.

Removing a directory unmounts it in every mount namespace. So concurrent runs share these
directories, and the last run removes those that runs have made.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from firstlight.host.commands import run
from firstlight.host.workspace import STATE

_LIST = STATE / "directories"
"""Lists the directories that runs have made, one per line; survives a killed run."""


@contextmanager
def mount_points(directories: Sequence[Path]) -> Iterator[None]:
    """Make the missing directories; on exit remove them if no other run is left."""
    STATE.mkdir(parents=True, exist_ok=True)
    lock = os.open(STATE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        for directory in directories:
            missing = [path for path in (directory, *directory.parents) if not path.exists()]
            if missing:
                with _LIST.open("a") as file:
                    file.writelines(f"{path}\n" for path in missing)
            directory.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        os.close(lock)
        remove_unused()


def made() -> list[Path]:
    """The directories made by runs that still exist, the deepest first."""
    lines = _LIST.read_text().splitlines() if _LIST.exists() else []
    existing = {path for path in map(Path, lines) if path.is_dir()}
    return sorted(existing, key=lambda path: (-len(path.parts), str(path)))


def remove_unused() -> None:
    """Remove these directories unless a run uses them. Directories that are not empty stay."""
    lock = os.open(STATE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for directory in made():
                with suppress(OSError):
                    directory.rmdir()
            _LIST.unlink(missing_ok=True)
    finally:
        os.close(lock)


def unmount_below(directory: Path) -> None:
    """Detach every mount below a directory, the innermost first. Raises Failed."""
    prefix = f"{directory}/"
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed([point for point in points if point.startswith(prefix)]):
        run("umount", "--lazy", point)
