"""Directories that must be on the host for a run to mount something of its own over them.

To remove a directory unmounts it in every mount namespace, so the runs that go on side by side
share them, and the last one removes those that runs have made.
"""

import fcntl
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from firstlight.errors import Failed
from firstlight.host.workspace import STATE

_LIST = STATE / "directories"
"""Those that runs have made, a line each: it outlives a killed run."""


@contextmanager
def mount_points(directories: Sequence[Path]) -> Iterator[None]:
    """Make the directories that are missing; afterwards they are gone if no other run needs any."""
    STATE.mkdir(parents=True, exist_ok=True)
    lock = os.open(STATE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        for directory in directories:
            missing = [one for one in (directory, *directory.parents) if not one.exists()]
            if missing:
                with _LIST.open("a") as made_:
                    made_.writelines(f"{one}\n" for one in missing)
            directory.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        os.close(lock)
        remove_unused()


def made() -> list[Path]:
    """The directories that runs have made and that are still there, the deepest first."""
    lines = _LIST.read_text().splitlines() if _LIST.exists() else []
    there = {path for path in map(Path, lines) if path.is_dir()}
    return sorted(there, key=lambda one: (-len(one.parts), str(one)))


def remove_unused() -> None:
    """Remove those directories, if no run uses one; what the host has filled meanwhile stays."""
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
    """Detach every mount below a directory, the innermost first."""
    prefix = f"{directory}/"
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed([point for point in points if point.startswith(prefix)]):
        done = subprocess.run(["umount", "--lazy", point], capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"cannot unmount {point}: {done.stderr.strip()}")
