"""A root file system of busybox, for what is tested of instances by a shell."""

import shutil
from pathlib import Path

import pytest

from firstlight.agile import Function

PROGRAMS = (
    "sh",
    "cat",
    "env",
    "ls",
    "id",
    "printf",
    "readlink",
    "sleep",
    "stty",
    "tty",
    "seq",
    "kill",
)


def make(directory: Path) -> Path:
    """The root file system, in a directory of the test's. It has an empty /etc."""
    busybox = shutil.which("busybox")
    if not busybox:
        pytest.skip("busybox-static is missing")
    root = directory / "root"
    for name in ("bin", "proc", "dev", "tmp", "etc"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    for name in PROGRAMS:
        (root / "bin" / name).symlink_to("busybox")
    for path in (directory, *directory.parents[:2]):
        path.chmod(0o755)
    return root


def shell(root: Path, text: str, **more: object) -> Function:
    """A function that is a shell command."""
    return Function(rootfs=str(root), command=("/bin/sh", "-c", text), **more)  # type: ignore[arg-type]
