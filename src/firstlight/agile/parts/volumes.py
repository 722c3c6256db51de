"""Volumes: files and directories of the host, and secrets, that instances see in their root.

They are mounted in the function's tree when it is made, by a thread in a separate mount namespace,
so the host does not see them. A path of the tree is never followed through a link. A writable
volume is an idmapped mount that belongs to the instance's user; on the host its files belong to the
directory's owner, who is never root.
"""

import ctypes
import errno
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from struct import Struct

from firstlight.agile.function import SECRETS, Function, Volume
from firstlight.errors import Failed, longer

SECRET_MOST = 64 << 10
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 428, 429, 430, 431, 432
_OPENAT2, _MOUNT_SETATTR = 437, 442
_CLONE, _CLOEXEC, _EMPTY_PATH, _RECURSIVE = 1, 0x80000, 0x1000, 0x8000
_FROM_EMPTY, _TO_EMPTY, _HERE = 4, 0x40, -100
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _IDMAP = 1, 2, 4, 8, 0x100000
_PRIVATE, _MS_REC, _NEW_NAMESPACE = 1 << 18, 1 << 14, 0x20000
_SET_STRING, _CREATE = 1, 6
_ATTRIBUTES = Struct("=QQQQ")  # set, cleared, propagation, user namespace; mount_setattr(2)
_HOW = Struct("=QQQ")  # flags, mode, resolve; openat2(2)
_NO_MAGIC_LINKS, _NO_LINKS, _IN_ROOT = 2, 4, 16
_SECONDS = longer(10.0)
_LINKS_MOST = 40

_libc = ctypes.CDLL(None, use_errno=True)


def mount(tree: int, function: Function, uid: int, gid: int, place: Path) -> int:
    """The tree with a function's volumes and secrets mounted in it, otherwise read-only.

    ``uid`` and ``gid`` are the instances'; ``place`` is an empty directory. Takes the descriptor of
    a detached tree, returns another. Blocks. Raises Failed.
    """
    with ExitStack() as opened:
        opened.callback(os.close, tree)
        mounts = [(volume.target, opened.enter_context(_closed(_volume(volume, uid, gid))))
                  for volume in function.volumes]  # fmt: skip
        if function.secrets:
            made = opened.enter_context(_closed(_secrets(function.secrets, uid, gid)))
            mounts.append((SECRETS, made))
        _set("the root", tree, _RDONLY | _NOSUID | _NODEV, flags=_RECURSIVE)
        place.mkdir(exist_ok=True)
        return _in_thread(tree, sorted(mounts), place)  # what is inside another comes after it


def _volume(volume: Volume, uid: int, gid: int) -> int:
    """Make a detached mount of a file or directory of the host."""
    what = f"the volume {volume.source}"
    try:
        source = _open_source(what, volume.source, os.O_PATH)
    except OSError as error:
        raise Failed(f"{what} cannot be opened: {error.strerror}",
                     "name a file or directory of the host") from error  # fmt: skip
    try:
        status = os.fstat(source)
        mount = _call(what, _OPEN_TREE, source, b"", _CLONE | _CLOEXEC | _EMPTY_PATH)
    finally:
        os.close(source)
    try:
        if volume.read_only:
            _set(what, mount, _RDONLY | _NOSUID | _NODEV)
        elif (status.st_uid, status.st_gid) == (uid, gid):
            _set(what, mount, _NOSUID | _NODEV)
        else:
            _lend(what, mount, status, uid, gid)
    except BaseException:
        os.close(mount)
        raise
    return mount


def _open_source(what: str, path: str, flags: int) -> int:
    """Open a path of the host, on which only root's links are followed: an instance can make others
    in a volume that it may write to. Raises OSError, Failed.
    """
    for _ in range(_LINKS_MOST):
        try:
            return _open(path, flags, _NO_LINKS)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
        path = _follow_link(what, path)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _open(path: str, flags: int, resolve: int) -> int:
    how = _HOW.pack(flags | os.O_CLOEXEC, 0, resolve)
    words = (_OPENAT2, _HERE, os.fsencode(path), how, _HOW.size)
    opened = int(_libc.syscall(*(ctypes.c_long(w) if isinstance(w, int) else w for w in words)))
    if opened < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    return opened


def _follow_link(what: str, path: str) -> str:
    """The path with its first link replaced. Raises OSError, Failed."""
    parts = path.split("/")
    for count in range(2, len(parts) + 1):
        link = "/".join(parts[:count])
        opened = _open(link, os.O_PATH | os.O_NOFOLLOW, _NO_LINKS)
        try:
            status = os.fstat(opened)
            if not stat.S_ISLNK(status.st_mode):
                continue
            if status.st_uid:
                raise Failed(
                    f"{what} cannot be opened: {link} is a link of user {status.st_uid}, who can "
                    "lead it anywhere",
                    "name what it leads to (realpath), or give the link to root",
                )
            try:
                os.close(_open(link, os.O_PATH, _NO_MAGIC_LINKS))
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise Failed(
                        f"{what} cannot be opened: {link} leads to a process's files, or in a "
                        "circle",
                        "name the file itself",
                    ) from error
                raise
            target = os.readlink("", dir_fd=opened)
        finally:
            os.close(opened)
        before = [] if target.startswith("/") else parts[: count - 1]
        return "/".join((*before, target, *parts[count:]))
    return path


def _lend(what: str, mount: int, status: os.stat_result, uid: int, gid: int) -> None:
    """Map the owner of a directory to the instance's user."""
    if not status.st_uid or not status.st_gid:
        raise Failed(f"{what} belongs to root, and an instance would write as root",
                     "give it to another user (chown), or mount it :ro")  # fmt: skip
    with _mapped(status, uid, gid) as namespace:
        try:
            _set(what, mount, _NOSUID | _NODEV | _IDMAP, namespace)
        except Failed as error:
            raise Failed(
                f"{what} cannot be mapped to the instance's user: its file system has no "
                "idmapped mounts",
                "mount it :ro, or put it on another file system",
            ) from error


@contextmanager
def _mapped(status: os.stat_result, uid: int, gid: int) -> Iterator[int]:
    """A user namespace that maps the owner of a file to these."""
    with subprocess.Popen(
        ["unshare", "--user", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin"},
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        guard = threading.Timer(_SECONDS, process.kill)
        guard.start()
        try:
            process.stdin.write(b".")
            process.stdin.flush()
            if not process.stdout.read(1):  # it has entered its namespace when it answers
                raise Failed("a user namespace could not be made",
                             "see the sysctl user.max_user_namespaces")  # fmt: skip
            proc = Path(f"/proc/{process.pid}")
            (proc / "uid_map").write_text(f"{status.st_uid} {uid} 1\n")
            (proc / "gid_map").write_text(f"{status.st_gid} {gid} 1\n")
            namespace = os.open(proc / "ns/user", os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield namespace
            finally:
                os.close(namespace)
        finally:
            guard.cancel()
            process.kill()


def _secrets(secrets: dict[str, str], uid: int, gid: int) -> int:
    """Make a detached tmpfs with a file for each, which only the instances' user can read."""
    what = "the file system of secrets"
    context = _call(what, _FSOPEN, b"tmpfs", 1)
    try:
        size = str(len(secrets) * 2 * SECRET_MOST).encode()
        for key, value in ((b"size", size), (b"mode", b"755")):
            _call(what, _FSCONFIG, context, _SET_STRING, key, value, 0)
        _call(what, _FSCONFIG, context, _CREATE, None, None, 0)
        mount = _call(what, _FSMOUNT, context, 1, _NOSUID | _NODEV | _NOEXEC)
    finally:
        os.close(context)
    try:
        for name, path in secrets.items():
            _write(mount, name, _read(name, path), uid, gid)
        _set(what, mount, _RDONLY)
    except BaseException:
        os.close(mount)
        raise
    return mount


def _read(name: str, path: str) -> bytes:
    try:
        descriptor = _open_source(f"the secret {name}", path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # opening a FIFO would block
                raise Failed(f"the secret {name} cannot be read from {path}: it is not a file",
                             "name a file that root can read")  # fmt: skip
            data = file.read(SECRET_MOST + 1)
    except OSError as error:
        raise Failed(f"the secret {name} cannot be read from {path}: {error.strerror}",
                     "name a file that root can read") from error  # fmt: skip
    if len(data) > SECRET_MOST:
        raise Failed(f"the secret {name} is longer than {SECRET_MOST} bytes",
                     "mount a larger file with --volume")  # fmt: skip
    return data


def _write(directory: int, name: str, data: bytes, uid: int, gid: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o400, dir_fd=directory)
    with os.fdopen(descriptor, "wb") as file:
        os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, 0o400)
        file.write(data)


def _in_thread(tree: int, mounts: list[tuple[str, int]], place: Path) -> int:
    """Mount everything in a thread's namespace, and clone the tree."""
    outcome: list[int | BaseException] = []

    def run() -> None:
        try:
            outcome.append(_assemble(tree, mounts, place))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    [result] = outcome
    if isinstance(result, BaseException):
        raise result
    return result


def _assemble(tree: int, mounts: list[tuple[str, int]], place: Path) -> int:
    what = "a mount namespace for volumes"
    if _libc.unshare(_NEW_NAMESPACE) or _libc.mount(b"none", b"/", None, _MS_REC | _PRIVATE, None):
        raise Failed(f"cannot make {what}: {os.strerror(ctypes.get_errno())}")
    _call(what, _MOVE_MOUNT, tree, b"", _HERE, os.fsencode(place), _FROM_EMPTY)
    for target, mount in mounts:
        point = _point(tree, target)
        try:
            _call(f"{target}: it must be a directory for a directory, a file for a file",
                  _MOVE_MOUNT, mount, b"", point, b"", _FROM_EMPTY | _TO_EMPTY)  # fmt: skip
        finally:
            os.close(point)
    return _call(what, _OPEN_TREE, tree, b"", _CLONE | _CLOEXEC | _EMPTY_PATH | _RECURSIVE)


def _point(tree: int, target: str) -> int:
    """Open a path in the tree without following links."""
    how = _HOW.pack(os.O_PATH | os.O_CLOEXEC, 0, _IN_ROOT | _NO_LINKS | _NO_MAGIC_LINKS)
    try:
        return _call(target, _OPENAT2, tree, os.fsencode(target), how, _HOW.size)
    except Failed:
        raise Failed(f"the root file system has no {target} to mount at, or a link leads there",
                     "make it there: a directory for a directory") from None  # fmt: skip


@contextmanager
def _closed(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _set(what: str, mount: int, attributes: int, namespace: int = 0, flags: int = 0) -> None:
    record = _ATTRIBUTES.pack(attributes, 0, _PRIVATE, namespace)
    _call(what, _MOUNT_SETATTR, mount, b"", _EMPTY_PATH | flags, record, len(record))


def _call(what: str, number: int, *arguments: bytes | int | None) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *wide))
    if result < 0:
        raise Failed(f"cannot mount {what}: {os.strerror(ctypes.get_errno())}")
    return result
