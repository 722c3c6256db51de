"""Root file systems of functions, mounted while their versions can be called.

All are below one tmpfs, named in the runtime's journal, and are removed with it. A root that is a
single tree is not mounted. Everything here blocks.
"""

import ctypes
import hashlib
import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from firstlight.agile.functions import base
from firstlight.agile.parts.roots import MOUNT_POINTS, is_mountable
from firstlight.errors import Failed

if TYPE_CHECKING:
    from firstlight.agile.functions.content import Content
    from firstlight.agile.functions.records import Code, Revision

_READ_ONLY, _NO_SETUID, _NO_DEVICES, _BIND, _REMOUNT = 1, 2, 4, 0x1000, 0x20
_MOVE, _PRIVATE, _DETACH = 0x2000, 0x40000, 2
_MAKING = ".making"
_POINTS = "points-"
_NAME_MOST = 200
_COVER = tuple(f"/{name}/" for name in MOUNT_POINTS)
_libc = ctypes.CDLL(None, use_errno=True)


class Mounts:
    """The mounted roots, below ``place``. Call ``open`` before use."""

    def __init__(self, place: Path, content: "Content") -> None:
        self._place, self._content = place, content
        self._lock = threading.Lock()

    def open(self) -> None:
        """Make the tmpfs, or take over a killed process's if it is whole. Raises Failed."""
        skeleton = self._place / "skeleton"  # named so when all is there
        if os.path.ismount(self._place):
            if skeleton.is_dir():
                return
            remove(self._place)
        self._place.mkdir(mode=0o700, exist_ok=True)
        _mount(b"tmpfs", self._place, b"tmpfs", _NO_SETUID | _NO_DEVICES, b"mode=711")
        _mount(None, self._place, None, _PRIVATE, None)
        base.make(self._place / "base")
        base.make_skeleton(self._place / _MAKING)
        (self._place / _MAKING).rename(skeleton)

    def root(self, code: "Code", points: tuple[str, ...] = ()) -> Path:
        """Path of this code's root, mounted if needed, or of a module's file. Raises Failed.

        ``points`` are a Revision's: those that the code lacks are added in a layer below it. What
        the code has in place of a directory that each instance mounts is covered by a layer above.
        """
        if code.module:
            return self._content.path(code.trees[0]) / code.module
        layers = [self._content.path(number) for number in code.trees]
        covers = not all(is_mountable(layer / name) for layer in layers for name in MOUNT_POINTS)
        if not code.base and len(layers) == 1 and not points and not covers:
            return layers[0]
        target = self._place / _name(code, points)
        with self._lock:
            if not os.path.ismount(target):
                self._mount_root(code, points, covers, target)
        return target

    def _mount_root(
        self, code: "Code", points: tuple[str, ...], covers: bool, target: Path
    ) -> None:
        """Mount it beside, and move it to ``target`` when it is whole."""
        making = self._place / _MAKING
        self._detach(making)  # a killed process's
        making.mkdir()
        trees = os.open(self._content.path(0).parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            lower = [f"/proc/self/fd/{trees}/{number}" for number in reversed(code.trees)]
            if covers:
                lower.insert(0, str(self._below(_COVER)))
            lower.append(str(self._place / ("base" if code.base else "skeleton")))
            if points:
                lower.append(str(self._below(points)))
            _mount(b"overlay", making, b"overlay", _READ_ONLY | _NO_SETUID | _NO_DEVICES,
                   f"lowerdir={':'.join(lower)}".encode())  # fmt: skip
            if code.base:
                self._bind_host(making)
            target.mkdir(exist_ok=True)
            _mount(os.fsencode(making), target, None, _MOVE, None)
        finally:
            os.close(trees)
            self._detach(making)

    def keep(self, revisions: "list[Revision]") -> None:
        """Unmount the roots of all others."""
        names = {_name(each.code, each.points) for each in revisions} | {"base", "skeleton"}
        names |= {_points_name(each.points) for each in revisions} | {_points_name(_COVER)}
        with self._lock:
            for target in self._place.iterdir():
                if target.name in names:
                    continue
                if target.name.startswith(_POINTS):
                    shutil.rmtree(target)
                else:
                    self._detach(target)

    def close(self) -> None:
        """Unmount all."""
        remove(self._place)

    def _below(self, points: tuple[str, ...]) -> Path:
        """Make a directory that has each of these, empty."""
        made = self._place / _points_name(points)
        try:
            for point in points:
                path = made / point.strip("/")
                if point.endswith("/"):
                    path.mkdir(parents=True, exist_ok=True)
                else:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.open("ab").close()
        except OSError as error:
            raise Failed(
                f"cannot make {point} below the code's root: {error.strerror}",
                "mount nothing below a file, and no two things at one path",
            ) from error
        for directory, _, _ in os.walk(made):
            Path(directory).chmod(0o755)  # whatever the umask: instances run as other users
        return made

    def _bind_host(self, target: Path) -> None:
        flags = _BIND | _REMOUNT | _READ_ONLY | _NO_SETUID | _NO_DEVICES
        for name in base.bound():
            _mount(f"/{name}".encode(), target / name, None, _BIND, None)
            _mount(None, target / name, None, flags, None)

    def _detach(self, target: Path) -> None:
        with suppress(OSError):
            while os.path.ismount(target):
                _libc.umount2(os.fsencode(target), _DETACH)
        with suppress(OSError):
            target.rmdir()


def _name(code: "Code", points: tuple[str, ...]) -> str:
    name = "-".join(map(str, code.trees)) + ("-base" if code.base else "")
    if len(name) > _NAME_MOST:  # an image of many layers
        name = hashlib.sha256(name.encode()).hexdigest()
    return f"{name}-{_points_name(points)}" if points else name


def _points_name(points: tuple[str, ...]) -> str:
    return _POINTS + hashlib.sha256("\0".join(points).encode()).hexdigest()[:16]


def remove(place: Path) -> None:
    """Unmount the roots below a directory."""
    while os.path.ismount(place):
        if _libc.umount2(os.fsencode(place), _DETACH):
            return
    with suppress(OSError):
        place.rmdir()


def _mount(
    source: bytes | None, target: Path, kind: bytes | None, flags: int, data: bytes | None
) -> None:
    if _libc.mount(source, os.fsencode(target), kind, flags, data):
        raise Failed(f"cannot mount {target}: {os.strerror(ctypes.get_errno())}")
