"""The control groups of a run, on version 1, version 2 and hybrid hosts."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from firstlight.errors import Failed, longer

_ROOT = Path("/sys/fs/cgroup")
PREFIX = "firstlight-"
_EMPTY_SECONDS = longer(5.0)  # a killed process stays until the kernel has torn it down
_RETRY_SECONDS = 0.01


@cache
def is_unified() -> bool:
    """Whether the host has cgroup version 2 only. Cached: a run may mount over the hierarchy."""
    return (_ROOT / "cgroup.controllers").exists()


def name(run: str) -> str:
    """The top cgroup of a run."""
    return f"{PREFIX}{run}"


def hierarchies() -> list[Path]:
    """The mount point of each hierarchy."""
    kinds = ("cgroup", "cgroup2")
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return [Path(mount[1]) for mount in mounts if mount[2] in kinds]


def remove(group: str) -> None:
    """Kill all processes in a top cgroup, in every hierarchy, and remove it. Raises Failed."""
    tops = [top for hierarchy in hierarchies() if (top := hierarchy / group).is_dir()]
    until = time.monotonic() + _EMPTY_SECONDS
    while tops:
        for process in {process for top in tops for process in _processes(top)}:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        tops = [top for top in tops if not _try_remove(top)]
        if tops and time.monotonic() > until:
            raise Failed(
                f"cannot remove cgroup {tops[0]}: it is busy", "remove it later: firstlight clean"
            )


def _try_remove(top: Path) -> bool:
    try:
        for directory, _, _ in os.walk(top, topdown=False):
            Path(directory).rmdir()
    except OSError:
        time.sleep(_RETRY_SECONDS)
        return False
    return True


def _processes(top: Path) -> Iterator[int]:
    for directory, _, _ in os.walk(top):
        with suppress(FileNotFoundError):
            yield from map(int, (Path(directory) / "cgroup.procs").read_text().split())
