"""Root file systems as detached mounts, from which templates are made."""

import ctypes
import os
from pathlib import Path

from firstlight.errors import Failed

_OPEN_TREE, _FSOPEN, _FSCONFIG, _FSMOUNT = 428, 430, 431, 432  # the same on all architectures
_CLONE, _RECURSIVE, _CLOEXEC = 1, 0x8000, 0x80000
_SET_STRING, _CREATE = 1, 6
_HERE = -100
MOUNT_POINTS = ("proc", "dev", "tmp")

_syscall = ctypes.CDLL(None, use_errno=True).syscall


def open_root(rootfs: Path, skeleton: Path) -> int:
    """A detached mount of the directory, with the mount points that an instance needs.

    If the tree lacks some, it is an overlay above ``skeleton``, and itself unchanged. Returns a
    descriptor. Raises Failed.
    """
    if not rootfs.is_dir():
        raise Failed(f"the root file system {rootfs} is not a directory",
                     "give the path of an unpacked root file system")  # fmt: skip
    if all((rootfs / name).is_dir() for name in MOUNT_POINTS):
        return _call(f"open the tree {rootfs}", _OPEN_TREE, _HERE, os.fsencode(rootfs),
                     _CLONE | _RECURSIVE | _CLOEXEC)  # fmt: skip
    for name in MOUNT_POINTS:
        (skeleton / name).mkdir(parents=True, exist_ok=True)
    layers = ":".join(_escaped(layer) for layer in (rootfs, skeleton))
    what = f"lay {rootfs} over {', '.join(MOUNT_POINTS)}"
    context = _call(what, _FSOPEN, b"overlay", 1)
    try:
        _call(what, _FSCONFIG, context, _SET_STRING, b"lowerdir", os.fsencode(layers), 0)
        _call(what, _FSCONFIG, context, _CREATE, None, None, 0)
        return _call(what, _FSMOUNT, context, 1, 0)
    finally:
        os.close(context)


def check_command(rootfs: Path, command: str) -> None:
    """Raise Failed if the root file system certainly has no such command."""
    path, inside = rootfs, rootfs.resolve()
    for part in Path(command).parts[1:]:
        path = path / part
        if path.is_symlink():
            target = path.readlink()
            path = rootfs / target.relative_to("/") if target.is_absolute() else path.resolve()
            if not path.resolve().is_relative_to(inside):
                return  # the kernel resolves it inside
    if not path.exists():
        raise Failed(f"the root file system {rootfs} has no {command}",
                     "add it, or give another root file system")  # fmt: skip
    if path.is_dir() or not path.stat().st_mode & 0o111:
        raise Failed(f"{command} in the root file system {rootfs} is not executable")


def _escaped(path: Path) -> str:
    return "".join(f"\\{c}" if c in "\\:," else c for c in str(path))


def _call(what: str, number: int, *arguments: bytes | int | None) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(_syscall(ctypes.c_long(number), *wide))
    if result < 0:
        raise Failed(f"cannot {what}: {os.strerror(ctypes.get_errno())}")
    return result
