"""Ways to mount an instance's root file system (``native/lab/rootmount.c``)."""

import errno
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path

from firstlight.errors import Failed, UnknownName, Unsupported, longer
from firstlight.native import native

TECHNIQUES = ("bind", "overlay", "tmpfs", "squashfs", "erofs")

_LOOP_CONTROL = Path("/dev/loop-control")
_LOOP_CTL_REMOVE = 0x4C81
_RELEASE_SECONDS = longer(5)
_BLOCK = Path("/sys/block")
MAKERS = {
    "squashfs": ("mksquashfs", "squashfs-tools"),
    "erofs": ("mkfs.erofs", "erofs-utils"),
}


def probe(technique: str) -> None:
    """Raise Unsupported if root file systems cannot be mounted in this way here."""
    if technique not in TECHNIQUES:
        raise UnknownName("root file system", technique, TECHNIQUES)
    if technique != "bind" and not _kernel_has(technique):
        raise Unsupported(
            f"this kernel has no {technique} file system",
            f"modprobe {technique}, or leave {technique} out",
        )
    if technique not in MAKERS:
        return
    maker, package = MAKERS[technique]
    if not shutil.which(maker):
        raise Unsupported(f"{maker} is not installed", f"apt-get install {package}")
    if not _LOOP_CONTROL.exists():
        raise Unsupported(
            f"{technique} needs loop devices, but {_LOOP_CONTROL} is missing", "modprobe loop"
        )


def _kernel_has(kind: str) -> bool:
    listed = [line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()]
    if kind in listed:
        return True
    modprobe = shutil.which("modprobe", path="/usr/sbin:/sbin")
    return (
        modprobe is not None
        and not subprocess.run(
            [modprobe, "--dry-run", "--quiet", kind], capture_output=True
        ).returncode
    )  # mount(2) loads the module


def prepare(technique: str, tree: Path, directory: Path) -> Path:
    """What ``wrap`` mounts: the tree itself, or an image of it, made once per directory."""
    if technique not in MAKERS:
        return tree
    image = directory / f"{tree.name}.{technique}"
    if not image.exists():
        maker, _ = MAKERS[technique]
        argv = {
            "squashfs": [maker, str(tree), str(image), "-noappend", "-no-progress", "-quiet"],
            "erofs": [maker, "--quiet", str(image), str(tree)],
        }[technique]
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode:
            image.unlink(missing_ok=True)
            raise Failed(f"{' '.join(argv)} failed: {done.stderr.strip()}")
    return image


def wrap(
    technique: str, lower: Path, target: Path, scratch: Path, argv: tuple[str, ...]
) -> tuple[str, ...]:
    """A command that mounts ``lower`` on ``target`` and then executes ``argv``.

    The mount is in the command's own mount namespace and ends with its last process. ``scratch`` is
    the overlay's upper directory; it is made if missing, its parent is not.
    """
    return (str(native("rootmount")), technique, str(lower), str(target), str(scratch), *argv)


@contextmanager
def returned_loops() -> Iterator[None]:
    """On exit, remove the loop devices that the kernel has added.

    The kernel adds one whenever none is free, and keeps it. A device that is still in use after a
    few seconds belongs to another program and stays.
    """
    before = _loops()
    try:
        yield
    finally:
        _remove(_loops() - before)


def _loops() -> set[int]:
    return {int(path.name.removeprefix("loop")) for path in _BLOCK.glob("loop[0-9]*")}


def _remove(loops: set[int]) -> None:
    deadline = time.monotonic() + _RELEASE_SECONDS
    while loops and time.monotonic() < deadline:
        loops = {loop for loop in loops if not _try_remove(loop)}
        if loops:
            time.sleep(0.01)  # an unmount frees its device with a delay


def _try_remove(loop: int) -> bool:
    with _LOOP_CONTROL.open("rb") as control:
        try:
            ioctl(control, _LOOP_CTL_REMOVE, loop)
        except OSError as error:
            return error.errno == errno.ENODEV
    return True
