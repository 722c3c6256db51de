"""Watches the files that an interpreter has loaded for changes.

Files are checked from outside, by their paths on the host: at once when inotify reports a change,
and at intervals for what inotify cannot see (network file systems, links in directories above).
"""

import asyncio
import ctypes
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from hashlib import blake2b
from importlib.machinery import all_suffixes
from struct import Struct

from firstlight.errors import Failed

_LINKS_MOST = 40
_COARSE_CLOCK = 5  # CLOCK_REALTIME_COARSE, for which Python has no name
_EVENT = Struct("=iIII")
_ATTRIBUTES, _MODIFIED, _MOVED, _CREATED, _DELETED = 0x4, 0x2, 0xC0, 0x100, 0x200
_GONE, _MOVED_SELF, _OVERFLOW, _IGNORED, _UNMOUNTED = 0x400, 0x800, 0x4000, 0x8000, 0x2000
_ONLY_DIRECTORY = 0x1000000
_WATCHED = (
    _ATTRIBUTES | _MODIFIED | _MOVED | _CREATED | _DELETED | _GONE | _MOVED_SELF | _ONLY_DIRECTORY
)
_ITSELF = _GONE | _MOVED_SELF | _IGNORED | _UNMOUNTED
_SUFFIXES = tuple(all_suffixes())
_libc = ctypes.CDLL(None, use_errno=True)
_log = logging.getLogger(__name__)


class Sources:
    """Files and search directories, by their paths in a root file system.

    ``parts`` are the relevant names, by directory of the host.
    """

    def __init__(self, rootfs: str, files: Iterable[str], directories: Iterable[str]) -> None:
        """Blocks."""
        self.files, self.directories = tuple(files), tuple(directories)
        links: set[str] = set()
        root = _resolve("", rootfs, links)
        resolved = {_resolve(root, path, links) for path in self.files}
        self._searched = sorted({_resolve(root, path, links) for path in self.directories})
        self._root = root or "/"
        self._paths = sorted({*resolved, *links})
        self.parts: dict[str, set[str]] = {}
        for path in (*self._paths, *self._searched):
            while path and (len(path) >= len(root) or path in links):
                path, _, name = path.rpartition("/")
                self.parts.setdefault(path or "/", set()).add(name)
        for directory in self._searched:
            self.parts.setdefault(directory, set())

    def matters(self, directory: str, name: str) -> bool:
        """Whether a change of this entry matters."""
        return name in self.parts.get(directory, ()) or (
            directory in self._searched and _is_importable(name)
        )

    def digest(self) -> str:
        """A digest of their state. Blocks."""
        state = blake2b(repr((self._root, _look(self._root)[:2])).encode(), digest_size=16)
        for path in self._paths:
            state.update(repr((path, _look(path))).encode())
        for directory in self._searched:
            names: list[str] = []
            with suppress(OSError), os.scandir(directory) as entries:
                names = sorted(entry.name for entry in entries if _is_importable(entry.name))
            state.update(repr((directory, names)).encode())
        return state.hexdigest()

    def changed_since(
        self, moment: int, before: dict[str, tuple[int, ...]]
    ) -> dict[str, tuple[int, ...]]:
        """The state of files that changed at or after a time, in ns of the kernel's clock.

        Leaves out files whose state is the same as ``before``: the clock was set back after they
        were written. Blocks.
        """
        looks = {path: _look(path) for path in self._paths}
        return {
            path: look for path, look in looks.items()
            if look[3:4] >= (moment,) and before.get(path) != look
        }  # fmt: skip


class Changes:
    """Reports by inotify which sources may have changed."""

    def __init__(self) -> None:
        self._descriptor = int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._directories: dict[int, str] = {}
        self._watchers: dict[int, dict[Sources, Callable[[], None]]] = {}
        if self._descriptor < 0:
            _log.warning("changed files are noticed with a delay: no inotify instance is left")

    async def watch(self, sources: Sources, changed: Callable[[], None]) -> None:
        """Call ``changed`` when files may have changed, until ``forget``."""
        for number, directory in await asyncio.to_thread(self._add, sources):
            self._directories[number] = directory
            self._watchers.setdefault(number, {})[sources] = changed

    def _add(self, sources: Sources) -> list[tuple[int, str]]:
        added = []
        for directory in sources.parts if self._descriptor >= 0 else ():
            path = os.fsencode(directory)
            number = int(_libc.inotify_add_watch(self._descriptor, path, _WATCHED))
            if number >= 0:
                added.append((number, directory))
        return added

    def forget(self, sources: Sources) -> None:
        """Stop watching these."""
        for number, watchers in list(self._watchers.items()):
            watchers.pop(sources, None)
            if not watchers:
                del self._watchers[number], self._directories[number]
                _libc.inotify_rm_watch(self._descriptor, number)

    def read(self) -> None:
        """Report changes up to now."""
        while self._descriptor >= 0:
            try:
                events = os.read(self._descriptor, 1 << 16)
            except BlockingIOError:
                return
            at = 0
            while at < len(events):
                number, mask, _, size = _EVENT.unpack_from(events, at)
                name = events[at + _EVENT.size : at + _EVENT.size + size].rstrip(b"\0")
                at += _EVENT.size + size
                self._tell(number, mask, os.fsdecode(name))

    def _tell(self, number: int, mask: int, name: str) -> None:
        directory = self._directories.get(number, "")
        every = self._watchers.values() if mask & _OVERFLOW else [self._watchers.get(number, {})]
        for watchers in every:
            for sources, changed in watchers.items():
                if mask & (_ITSELF | _OVERFLOW) or sources.matters(directory, name):
                    changed()

    def close(self) -> None:
        """Stop watching."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def clock() -> int:
    """The time in ns, by the clock of files' times."""
    return time.clock_gettime_ns(_COARSE_CLOCK)


def keeps_changing(name: str, paths: list[str]) -> Failed:
    """The error of an import whose files change during it."""
    return Failed(f"files of {name} change while it is imported: {', '.join(paths[:3])}",
                  "write them first, or replace the directory by one rename")  # fmt: skip


def _is_importable(name: str) -> bool:
    return name.endswith(_SUFFIXES) or name.isidentifier()


def _look(path: str) -> tuple[int, ...]:
    try:
        status = os.lstat(path)
    except OSError as error:
        return (error.errno or 0,)
    return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)


def _resolve(root: str, path: str, links: set[str]) -> str:
    """The host's path of a path in a root file system; adds the links on its way."""
    parts, at, followed = deque(path.split("/")), "", 0
    while parts:
        part = parts.popleft()
        if part == "..":
            at = at.rpartition("/")[0]
        if part in ("", ".", ".."):
            continue
        try:
            target = os.readlink(f"{root}{at}/{part}")  # noqa: PTH115 (there are many files)
        except OSError:
            at = f"{at}/{part}"
            continue
        links.add(f"{root}{at}/{part}")
        followed += 1
        if followed > _LINKS_MOST:
            break
        at = "" if target.startswith("/") else at
        parts.extendleft(reversed(target.split("/")))
    return root + at
