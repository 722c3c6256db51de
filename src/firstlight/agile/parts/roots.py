"""Root file systems as detached mounts."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import Struct

from firstlight.errors import Failed, Unsupported

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_OPEN_TREE, _FSOPEN, _FSCONFIG, _FSMOUNT = 428, 430, 431, 432  # the same on all architectures
_OPENAT2, _NO_MAGIC_LINKS, _IN_ROOT = 437, 2, 16
_CLONE, _RECURSIVE, _CLOEXEC = 1, 0x8000, 0x80000
_SET_STRING, _CREATE = 1, 6
_HERE = -100
_HEAD, _INTERPRETER = 4096, 3
_MACHINES = {"x86_64": 62, "aarch64": 183}  # of 64 bits; see elf.h
_OTHERS = {"i386": 3, "arm": 40, "ppc64": 21, "s390x": 22, "riscv64": 243, "mips": 8}
_ELF, _SEGMENT = Struct("=32xQ14xHH"), Struct("=I4xQ16xQ")
_HOW = Struct("=QQQ")  # flags, mode, resolve; openat2(2)
MOUNT_POINTS = ("proc", "dev", "tmp")

_syscall = ctypes.CDLL(None, use_errno=True).syscall


@contextmanager
def readable(rootfs: str) -> Iterator[None]:
    """Raise a path's or disk's OSError as Failed. Raises Failed."""
    try:
        yield
    except OSError as error:
        name = f": {str(error.filename)[-80:]}" if error.filename is not None else ""
        raise Failed(f"cannot look into {rootfs[:200]}: {error.strerror}{name}") from error


def open_root(rootfs: Path, skeleton: Path) -> int:
    """Make a detached mount of a directory, with the mount points that an instance needs.

    If the tree lacks some, it is overlaid on ``skeleton`` and not changed. Returns a descriptor.
    Raises Failed.
    """
    if not rootfs.is_dir():
        raise Failed(f"the root file system {rootfs} is not a directory",
                     "give the path of an unpacked root file system")  # fmt: skip
    for name in MOUNT_POINTS:
        if not is_mountable(rootfs / name):
            raise Failed(f"{name} in the root file system {rootfs} is not a directory",
                         "make it one: something is mounted there")  # fmt: skip
    if (etc := inside(rootfs, "/etc")) and (name := _mounted(rootfs, etc)):
        raise Failed(f"etc in the root file system {rootfs} leads to /{name}, which each instance "
                     "has of its own", "make it a directory")  # fmt: skip
    try:
        return _open(rootfs, skeleton)
    except Failed as error:
        if mount := _unbindable(rootfs):
            raise Failed(f"{rootfs} is in the mount {mount}, which is unbindable",
                         f"mount --make-private {mount}") from error  # fmt: skip
        raise


def _open(rootfs: Path, skeleton: Path) -> int:
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


def _unbindable(path: Path) -> str:
    """Where the mount of a path is mounted, if nothing of it may be mounted elsewhere."""
    opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        mount = mount_id(opened)
    finally:
        os.close(opened)
    lines = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return next((each[4] for each in lines if each[0] == mount and "unbindable" in each), "")


def mount_id(descriptor: int) -> str:
    """The number of the mount that a descriptor is in, as in mountinfo; see proc_pid_fdinfo(5).

    Raises Unsupported.
    """
    words = Path(f"/proc/self/fdinfo/{descriptor}").read_text().split()
    if "mnt_id:" not in words:
        raise Unsupported("this kernel does not say in which mount a file is",
                          "run it on Linux itself: gVisor, for one, is none")  # fmt: skip
    return words[words.index("mnt_id:") + 1]


def is_mountable(point: Path) -> bool:
    """Whether a mount point is a directory, and no link to one, or can be added."""
    return not os.path.lexists(point) or (point.is_dir() and not point.is_symlink())


def _mounted(rootfs: Path, path: Path) -> str:
    """The mount point that a path of the root file system is at or below, or nothing."""
    parts = path.resolve().relative_to(rootfs.resolve()).parts
    return parts[0] if parts and parts[0] in MOUNT_POINTS else ""


def find(rootfs: Path, command: str, directory: str = "/") -> Path | None:
    """The path on the host of a command; None if it depends on a start's PATH or on a link."""
    if "/" in command:
        return inside(rootfs, str(Path("/") / directory / command))
    for name in PATH.split(":"):
        path = inside(rootfs, f"{name}/{command}")
        if path and path.is_file() and path.stat().st_mode & 0o111:
            return path
    return None


def check_command(
    rootfs: Path, command: str, uid: int = -1, directory: str = "/", shown: str = ""
) -> None:
    """Raise Failed if the root file system certainly has no such command that ``uid`` can execute.

    ``shown`` names the root in messages, if its path means nothing to the caller.
    """
    _check_open(rootfs, uid)
    name = shown or f"the root file system {rootfs}"
    where = inside(rootfs, directory)
    is_mounted = directory.strip("/") in MOUNT_POINTS
    if where is not None and not where.is_dir() and not is_mounted:
        raise Failed(f"{name} has no directory {directory} to work in",
                     "add it there, or name another")  # fmt: skip
    path = find(rootfs, command, directory)
    if path is None:
        return  # inside the root the kernel resolves it
    if not path.exists():
        raise Failed(f"{name} has no {command}", "add it there, or name another program")
    if not path.is_file():
        kind = "a directory" if path.is_dir() else "no regular file"
        raise Failed(f"{command} in {name} is {kind}", "name a program")
    if not path.stat().st_mode & 0o111:
        raise Failed(f"{command} in {name} is not executable",
                     f"give it the mode 0755, and update {shown}" if shown
                     else f"chmod a+rx {path}")  # fmt: skip
    _check_interpreter(rootfs, command, path, name)


def names(rootfs: Path, directory: str) -> list[str]:
    """List a directory of the root file system; links do not lead out of it. Raises Failed."""
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = _HOW.pack(os.O_DIRECTORY | os.O_CLOEXEC, 0, _IN_ROOT | _NO_MAGIC_LINKS)
        opened = _call(f"look into {directory}", _OPENAT2, root, os.fsencode(directory), how,
                       _HOW.size)  # fmt: skip
    finally:
        os.close(root)
    try:
        return os.listdir(opened)  # noqa: PTH208 (a path has no descriptor)
    finally:
        os.close(opened)


def inside(rootfs: Path, command: str) -> Path | None:
    """The host's path of a path in the root file system; None if it leads out of it, or cannot be
    followed, for a circle of links or a long name.
    """
    try:
        return _inside(rootfs, command)
    except (OSError, RuntimeError):  # RuntimeError: a circle, before Python 3.13
        return None


def _inside(rootfs: Path, command: str) -> Path | None:
    path, inside = rootfs, rootfs.resolve()
    for part in Path(command).parts[1:]:
        path = path / part
        if path.is_symlink():
            target = path.readlink()
            path = rootfs / target.relative_to("/") if target.is_absolute() else path.resolve()
        elif part != "..":
            continue
        if not path.resolve().is_relative_to(inside):
            return None
    return path


def _check_open(rootfs: Path, uid: int) -> None:
    status = rootfs.stat()
    if uid not in (-1, status.st_uid) and not status.st_mode & 0o001:
        raise Failed(f"user {uid} may not enter the root file system {rootfs}: its mode is "
                     f"{status.st_mode & 0o7777:04o}", f"chmod o+x {rootfs}")  # fmt: skip


def _check_interpreter(rootfs: Path, command: str, path: Path, name: str) -> None:
    """The interpreter of a script (its first line) or the loader of a program (its header)."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head.startswith(b"\x7fELF"):
        _check_machine(command, head, name)
        named = _loader(head)
    elif head.startswith(b"#!"):
        line = head[2:].split(b"\n")[0]
        if line.endswith(b"\r"):
            raise Failed(f"{command} in {name} has Windows' line ends, "
                         "which hide its interpreter", "convert it: sed -i 's/\\r$//'")  # fmt: skip
        named = os.fsdecode(line.split()[0]) if line.split() else ""
    else:
        raise Failed(f"{command} in {name} is neither a program nor "
                     "a script that names its interpreter",
                     "begin it with #! and a path")  # fmt: skip
    if named.startswith("/"):
        interpreter = inside(rootfs, named)
        if interpreter is not None and not interpreter.exists():
            raise Failed(f"{command} needs the interpreter {named}, which {name} does not have",
                         "add it there")  # fmt: skip


def _check_machine(command: str, head: bytes, name: str) -> None:
    """Raise Failed for a program of another architecture. Layout: elf(5)."""
    here = platform.machine()
    kind = int.from_bytes(head[18:20], "little" if head[5:6] == b"\1" else "big")
    if here in _MACHINES and (kind, head[4:5]) != (_MACHINES[here], b"\2"):
        names = {number: name for name, number in (*_MACHINES.items(), *_OTHERS.items())}
        raise Failed(f"{command} in {name} is a program for "
                     f"{names.get(kind, f'machine {kind}')}, and this machine is {here}",
                     f"use one that is built for {here}")  # fmt: skip


def _loader(head: bytes) -> str:
    """The interpreter of a 64-bit ELF program; empty if it has none. Layout: elf(5)."""
    if len(head) < _ELF.size or head[4] != 2:
        return ""
    offset, size, count = _ELF.unpack_from(head)
    for number in range(count):
        at = offset + number * size
        if at + _SEGMENT.size > len(head):
            break
        kind, begin, length = _SEGMENT.unpack_from(head, at)
        if kind == _INTERPRETER and begin + length <= len(head):
            return os.fsdecode(head[begin : begin + length].rstrip(b"\0"))
    return ""


def _escaped(path: Path) -> str:
    return "".join(f"\\{c}" if c in "\\:," else c for c in str(path))


def _call(what: str, number: int, *arguments: bytes | int | None) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(_syscall(ctypes.c_long(number), *wide))
    if result < 0:
        raise Failed(f"cannot {what}: {os.strerror(ctypes.get_errno())}")
    return result
