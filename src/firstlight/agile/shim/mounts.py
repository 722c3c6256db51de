"""Mounts what containerd requests, by the kernel's flags and options."""

import ctypes
import errno
import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from firstlight.errors import Failed

_libc = ctypes.CDLL(None, use_errno=True)
_BIND, _REMOUNT, _RDONLY, _DETACH = 0x1000, 0x20, 0x1, 2
_FLAGS = {
    "ro": (_RDONLY, True), "rw": (_RDONLY, False), "nosuid": (0x2, True), "suid": (0x2, False),
    "nodev": (0x4, True), "dev": (0x4, False), "noexec": (0x8, True), "exec": (0x8, False),
    "sync": (0x10, True), "async": (0x10, False), "dirsync": (0x80, True),
    "noatime": (0x400, True), "atime": (0x400, False), "nodiratime": (0x800, True),
    "diratime": (0x800, False), "relatime": (0x200000, True), "norelatime": (0x200000, False),
    "strictatime": (0x1000000, True), "nostrictatime": (0x1000000, False),
    "bind": (_BIND, True), "rbind": (_BIND | 0x4000, True), "defaults": (0, True),
}  # fmt: skip
_PROPAGATION = {
    "private": 0x40000, "rprivate": 0x44000, "shared": 0x100000, "rshared": 0x104000,
    "slave": 0x80000, "rslave": 0x84000, "unbindable": 0x20000, "runbindable": 0x24000,
}  # fmt: skip
_PAGE = os.sysconf("SC_PAGESIZE")


def mount(kind: str, source: str, target: Path, options: Iterable[str]) -> None:
    """Options, read as mount(8) does. Raises Failed."""
    flags, data, propagation = 0, [], []
    for option in options:
        if option in _FLAGS:
            flag, is_set = _FLAGS[option]
            flags = flags | flag if is_set else flags & ~flag
        elif option in _PROPAGATION:
            propagation.append(_PROPAGATION[option])
        else:
            data.append(option)
    with ExitStack() as held:
        text = ",".join(data)
        if len(text) >= _PAGE:
            text = ",".join(_shorten(option, held) for option in data)
        _mount(source, target, kind, flags, text)
    if flags & _BIND and flags & ~(_BIND | 0x4000):
        _mount("", target, "", flags | _REMOUNT, "")
    for flag in propagation:
        _mount("", target, "", flag, "")


def _shorten(option: str, held: ExitStack) -> str:
    """Name overlay's layers relative to their common directory, because the kernel accepts one page
    of options.
    """
    name, separator, value = option.partition("=")
    layers = value.split(":")
    if name != "lowerdir" or len(layers) < 2:
        return option
    common = os.path.commonpath(layers)
    directory = os.open(common, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    held.callback(os.close, directory)
    short = (f"/proc/self/fd/{directory}{each.removeprefix(common)}" for each in layers)
    return name + separator + ":".join(short)


def _mount(source: str, target: Path, kind: str, flags: int, data: str) -> None:
    words = (os.fsencode(word) or None for word in (source, str(target), kind))
    if _libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(data) or None):
        number = ctypes.get_errno()
        raise Failed(f"cannot mount {kind or source} at {target}: {os.strerror(number)}")


def unmount(target: Path) -> None:
    """Unmount everything that is mounted there."""
    while not _libc.umount2(os.fsencode(target), _DETACH):
        pass
    if (number := ctypes.get_errno()) not in (errno.EINVAL, errno.ENOENT):
        raise Failed(f"cannot unmount {target}: {os.strerror(number)}")
