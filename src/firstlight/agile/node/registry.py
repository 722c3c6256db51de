"""Functions that the node can start, by number.

Environment, streams and event belong to a start, not to the function. A function that is not
started for a while is removed, with its parts. If its root has changed, the function gets a new
version.
"""

import asyncio
import hashlib
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from firstlight.agile import coding
from firstlight.agile.config import Config
from firstlight.agile.function import Function
from firstlight.agile.network import resolvers
from firstlight.agile.node import wire
from firstlight.agile.parts import roots
from firstlight.errors import Failed

_noted = msgspec.json.Decoder(tuple[Function, str])

_NEVER = float("inf")


@dataclass(eq=False)
class Registered:
    """A function of the node. Its version is a number that no other function ever has."""

    function: Function
    number: int
    version: int = 0
    digest: str = ""
    used: float = field(default_factory=time.monotonic)
    checked: float = 0.0
    running: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def is_only(self) -> bool:
        """Whether it is started once, so its files are not checked."""
        return self.checked == _NEVER


class Registry:
    """The functions of a node. ``register`` and ``forget`` carry out the changes."""

    def __init__(
        self,
        config: Config,
        register: Callable[[Registered], Awaitable[None]],
        forget: Callable[[Registered], Awaitable[None]],
    ) -> None:
        self._config, self._register, self._forget = config, register, forget
        self._by_key: dict[bytes, Registered] = {}
        self._by_number: dict[int, Registered] = {}
        self._free = deque(range(1, wire.FUNCTIONS))
        self._serial = 0

    async def get(self, function: Function, fresh: bool = True) -> Registered:
        """Register a function in the version of its files, if it is not yet. Raises Failed.

        Unless ``fresh``, a check of its files within the last half second suffices.
        """
        key = _key(function)
        entry = self._by_key.get(key)
        if entry is None:
            entry = await self._new(key, function)
        entry.used = time.monotonic()
        async with entry.lock:
            if self._by_key.get(key) is not entry:
                raise Failed("the function was forgotten meanwhile", "try again")
            if fresh or entry.used - entry.checked > self._config.functions.look_seconds:
                try:
                    await self._check(entry)
                except BaseException:
                    if not entry.version:
                        self._drop(entry)
                    raise
                if self._by_key.get(key) is not entry:
                    raise Failed("the node ended meanwhile", "try again")
        return entry

    def number(self, number: int) -> Registered | None:
        """The function with that number."""
        return self._by_number.get(number)

    def only(self, function: Function) -> Registered:
        """Register a function that is started once, by this caller alone."""
        number = self._take_number()
        self._serial += 1
        entry = Registered(function, number, self._serial)
        self._by_number[entry.number] = entry
        entry.checked = _NEVER
        return entry

    def leave(self, entry: Registered) -> None:
        """Remove such a function; its number stays reserved."""
        if self._by_number.get(entry.number) is entry:
            del self._by_number[entry.number]

    def free(self, entry: Registered) -> None:
        """Release its number."""
        if entry.number not in self._free:
            self._free.append(entry.number)

    def adopt(self, definition: wire.Definition, note: bytes) -> None:
        """Take over a function of the previous manager; those that start once have no digest.
        Raises Failed.
        """
        try:
            function, digest = coding.decode(note, _noted)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Failed("another version of firstlight registered a function of the node: "
                         f"{error}", "use that version; or end the node and its instances: "
                         "firstlight agile down") from error  # fmt: skip
        entry = Registered(function, definition.number, definition.version, digest)
        self._by_number[entry.number] = entry
        if digest:
            self._by_key[_key(function)] = entry
        else:
            entry.checked = _NEVER
        self._free.remove(entry.number)
        self._serial = max(self._serial, entry.version)

    def clear(self) -> None:
        """Note that the node is gone: functions are registered again when they are needed."""
        for entry in list(self._by_number.values()):
            entry.version, entry.running = 0, 0
            self._drop(entry)

    async def forget_idle(self) -> None:
        """Remove functions that have not been used for long."""
        oldest = time.monotonic() - self._config.functions.idle_seconds
        for entry in [e for e in self._by_number.values() if e.used < oldest]:
            await self._forget_entry(entry)

    async def look(self) -> None:
        """Check the files of recently started functions for changes.

        If a function's files cannot be started any more, its next start fails with the reason.
        """
        for entry in list(self._by_number.values()):
            async with entry.lock:
                once = entry.is_only
                if self._by_number.get(entry.number) is entry and entry.version and not once:
                    with suppress(Failed):
                        await self._check(entry)

    async def _new(self, key: bytes, function: Function) -> Registered:
        function.check()
        if len(self._by_number) >= self._config.functions.most:
            unused = [e for e in self._by_number.values() if not e.running]
            if not unused:
                raise Failed(f"all {len(self._by_number)} functions are running",
                             "stop some, or configure more functions")  # fmt: skip
            await self._forget_entry(min(unused, key=lambda e: e.used))
            if key in self._by_key:
                return self._by_key[key]
        bare = msgspec.structs.replace(function, env={})
        entry = Registered(bare, self._take_number())
        self._by_key[key] = self._by_number[entry.number] = entry
        return entry

    def _take_number(self) -> int:
        if not self._free:
            raise Failed("no more functions can be registered", "stop some instances")
        return self._free.popleft()

    async def _check(self, entry: Registered) -> None:
        digest = await asyncio.to_thread(files_of, entry.function)
        if digest != entry.digest or not entry.version:
            before = entry.version, entry.digest
            self._serial += 1
            entry.version, entry.digest = self._serial, digest
            try:
                await self._register(entry)
            except BaseException:
                entry.version, entry.digest = before
                raise
        entry.checked = time.monotonic()

    async def _forget_entry(self, entry: Registered) -> None:
        if entry.running or entry.lock.locked():
            return
        async with entry.lock:
            if self._by_number.get(entry.number) is entry:
                self._drop(entry)
                await self._forget(entry)
                self._free.append(entry.number)

    def _drop(self, entry: Registered) -> None:
        if self._by_number.get(entry.number) is not entry:
            return  # removed before: its number may be reused
        del self._by_number[entry.number]
        self._by_key = {key: e for key, e in self._by_key.items() if e is not entry}
        if not entry.version:
            self._free.append(entry.number)


def files_of(function: Function) -> str:
    """A digest of the state of a function's files. May wait for the disk.

    Raises Failed.
    """
    with roots.readable(function.rootfs):
        root = Path(os.path.realpath(function.rootfs))
        state: list[object] = [str(root), _look(root), _look(resolvers.HOST)]
        if function.command:
            path = roots.find(root, function.command[0], function.directory)
            state.append(_look(path) if path else ())
    state += [_look(Path(volume.source))[:2] for volume in function.volumes]
    state += [_look(Path(path)) for path in function.secrets.values()]
    return hashlib.sha256(repr(state).encode()).hexdigest()


def _look(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)


def _key(function: Function) -> bytes:
    """The function without what belongs to a start."""
    return coding.encode(msgspec.structs.replace(function, env={}, ready=None, timeout=0.0))
