"""Root file systems assembled from single files of the host, as detached mounts."""

import ctypes
import os
import stat
import threading
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from firstlight.errors import Failed

_MOVE_MOUNT, _OPEN_TREE = 429, 428  # the same on all architectures
_NEW_MOUNTS = 0x20000
_PRIVATE, _RECURSIVE_MOUNT = 0x40000, 0x4000
_CLONE, _RECURSIVE, _CLOEXEC = 1, 0x8000, 0x80000
_EMPTY_PATH = 4
_HERE = -100
_PLACE = "/tmp"  # noqa: S108 (in a mount namespace that nobody else sees)

_libc = ctypes.CDLL(None, use_errno=True)


def assemble(files: Mapping[str, Path], directories: tuple[str, ...], most: int) -> int:
    """Make a detached mount with these files, by their paths in it, and these empty directories.

    Each must be a regular file of at most ``most`` bytes; it is bind-mounted, not copied or opened.
    Returns a descriptor. Blocks. Raises Failed.
    """
    outcome: list[int | BaseException] = []

    def work() -> None:
        try:
            outcome.append(_assemble(files, directories, most))
        except BaseException as error:  # the caller's thread raises it
            outcome.append(error)

    # Run in a thread that leaves the mount namespace and then ends.
    thread = threading.Thread(target=work, name="assemble")
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _assemble(files: Mapping[str, Path], directories: tuple[str, ...], most: int) -> int:
    _check("unshare the mounts", _libc.unshare(_NEW_MOUNTS))
    _check("unshare the mounts",
           _libc.mount(None, b"/", None, _RECURSIVE_MOUNT | _PRIVATE, None))  # fmt: skip
    opened: dict[str, int] = {}
    try:
        for inside, path in files.items():
            opened[inside] = _clone(path)
            _check_file(path, os.fstat(opened[inside]), most)
        _check("mount a tmpfs", _libc.mount(b"tmpfs", _PLACE.encode(), b"tmpfs", 0, b"mode=755"))
        place = Path(_PLACE)
        for name in directories:
            (place / name).mkdir(parents=True, exist_ok=True)
        for inside, descriptor in opened.items():
            target = place / PurePosixPath(inside).relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
            _syscall(f"bind {inside}", _MOVE_MOUNT, descriptor, b"", _HERE, os.fsencode(target),
                     _EMPTY_PATH)  # fmt: skip
        return _syscall("clone the tree", _OPEN_TREE, _HERE, _PLACE.encode(),
                        _CLONE | _RECURSIVE | _CLOEXEC)  # fmt: skip
    finally:
        for descriptor in opened.values():
            os.close(descriptor)


def _clone(path: Path) -> int:
    return _syscall(f"open {path}", _OPEN_TREE, _HERE, os.fsencode(path), _CLONE | _CLOEXEC)


def _check_file(path: Path, status: os.stat_result, most: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket",
                 stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}  # fmt: skip
        kind = kinds.get(stat.S_IFMT(status.st_mode), "no regular file")
        raise Failed(f"{path} is {kind}", "give the path of a regular file")
    if status.st_size > most:
        raise Failed(
            f"{path} is too large: {status.st_size} bytes", f"give a file of at most {most} bytes"
        )


def _check(what: str, result: int) -> int:
    if result < 0:
        raise Failed(f"cannot {what}: {os.strerror(ctypes.get_errno())}")
    return result


def _syscall(what: str, number: int, *arguments: bytes | int) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _check(what, int(_libc.syscall(ctypes.c_long(number), *wide)))
