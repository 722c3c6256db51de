"""Functions that the node can start, by number: registered apart from being started.

What changes from start to start (environment, streams, event) makes no new function. One that
nobody has started for a while is forgotten, and what it held is given back. A root that has changed
is noticed, and served from then on as a new version.
"""

import asyncio
import hashlib
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from firstlight.agile import coding, node_wire, resolvers, roots
from firstlight.agile.config import Config
from firstlight.agile.environment import HOST_NAME
from firstlight.agile.function import Function
from firstlight.agile.parts import quota
from firstlight.errors import Failed

_noted = msgspec.json.Decoder(tuple[Function, str])

_NEVER = float("inf")


@dataclass(eq=False)
class Registered:
    """One function of the node. Its version is a number that no other function ever has."""

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
        """Whether it is started once, and its files are not looked at."""
        return self.checked == _NEVER


class Registry:
    """The functions of one node. ``register`` and ``forget`` carry out what is decided here."""

    def __init__(
        self,
        config: Config,
        register: Callable[[Registered], Awaitable[None]],
        forget: Callable[[Registered], Awaitable[None]],
    ) -> None:
        self._config, self._register, self._forget = config, register, forget
        self._by_key: dict[bytes, Registered] = {}
        self._by_number: dict[int, Registered] = {}
        self._free = deque(range(1, node_wire.FUNCTIONS))
        self._serial = 0

    async def get(self, function: Function, fresh: bool = True) -> Registered:
        """The function, registered, in the version that its files are. Raises Failed.

        Not ``fresh``, a look at its files of the last half second is good enough.
        """
        key = _key(function)
        found = self._by_key.get(key)
        if found is None:
            found = await self._new(key, function)
        found.used = time.monotonic()
        async with found.lock:
            if self._by_key.get(key) is not found:
                raise Failed("the function was forgotten meanwhile", "try again")
            if fresh or found.used - found.checked > self._config.functions.look_seconds:
                try:
                    await self._check(found)
                except BaseException:
                    if not found.version:
                        self._drop(found)
                    raise
        return found

    def number(self, number: int) -> Registered | None:
        """The function of that number."""
        return self._by_number.get(number)

    def only(self, function: Function) -> Registered:
        """A number for a function that is started once, and by nobody else."""
        if not self._free:
            raise Failed("no more functions can be registered", "stop some instances")
        self._serial += 1
        found = Registered(function, self._free.popleft(), self._serial)
        self._by_number[found.number] = found
        found.checked = _NEVER
        return found

    def leave(self, found: Registered) -> None:
        """One of those is not known any more; its number is still in use."""
        self._by_number.pop(found.number, None)

    def free(self, found: Registered) -> None:
        """Its number is not in use any more."""
        if found.number not in self._free:
            self._free.append(found.number)

    def adopt(self, definition: node_wire.Definition, note: bytes) -> None:
        """One that the node has from the manager before; those that start once have no digest."""
        function, digest = coding.decode(note, _noted)
        found = Registered(function, definition.number, definition.version, digest)
        self._by_number[found.number] = found
        if digest:
            self._by_key[_key(function)] = found
        else:
            found.checked = _NEVER
        self._free.remove(found.number)
        self._serial = max(self._serial, found.version)

    def clear(self) -> None:
        """The node is gone: each is registered anew when it is asked for."""
        for found in list(self._by_number.values()):
            found.version, found.running = 0, 0
            self._drop(found)

    async def forget_idle(self) -> None:
        """Forget what nobody has used for long."""
        oldest = time.monotonic() - self._config.functions.idle_seconds
        for found in [one for one in self._by_number.values() if one.used < oldest]:
            await self._forget_one(found)

    async def look(self) -> None:
        """See to all that was started lately: are its files as they were?"""
        for found in list(self._by_number.values()):
            async with found.lock:
                once = found.is_only
                if self._by_number.get(found.number) is found and found.version and not once:
                    await self._check(found)

    async def _new(self, key: bytes, function: Function) -> Registered:
        function.check()
        if len(self._by_number) >= self._config.functions.most:
            unused = [one for one in self._by_number.values() if not one.running]
            if not unused:
                raise Failed(f"{len(self._by_number)} functions are registered and running",
                             "stop some, or configure more functions")  # fmt: skip
            await self._forget_one(min(unused, key=lambda one: one.used))
            if key in self._by_key:
                return self._by_key[key]
        bare = msgspec.structs.replace(function, env={})
        found = Registered(bare, self._free.popleft())
        self._by_key[key] = self._by_number[found.number] = found
        return found

    async def _check(self, found: Registered) -> None:
        digest = await asyncio.to_thread(files_of, found.function)
        if digest != found.digest or not found.version:
            before = found.version, found.digest
            self._serial += 1
            found.version, found.digest = self._serial, digest
            try:
                await self._register(found)
            except BaseException:
                found.version, found.digest = before
                raise
        found.checked = time.monotonic()

    async def _forget_one(self, found: Registered) -> None:
        if found.running or found.lock.locked():
            return
        async with found.lock:
            if self._by_number.get(found.number) is found:
                self._drop(found)
                await self._forget(found)
                self._free.append(found.number)

    def _drop(self, found: Registered) -> None:
        self._by_number.pop(found.number, None)
        self._by_key = {key: one for key, one in self._by_key.items() if one is not found}
        if not found.version:
            self._free.append(found.number)


def note(found: Registered) -> bytes:
    """What the next manager has to know of a function."""
    return coding.encode((found.function, found.digest))


def definition(
    found: Registered, function: Function, profile: int, flags: node_wire.Flag, uid: int
) -> bytes:
    """A function as the node knows it."""
    return node_wire.DEFINITION.pack(
        found.number, found.version, flags, profile, node_wire.REACHES.index(function.network),
        node_wire.REUSES.index(function.reuse), function.uid or uid, function.gid or uid,
        function.files, function.scratch, function.memory, quota(function.cpus), function.pids,
        HOST_NAME.encode(),
    )  # fmt: skip


def files_of(function: Function) -> str:
    """What tells one state of a function's files from another. It may wait for a disk."""
    root = Path(os.path.realpath(function.rootfs))
    found: list[object] = [str(root), _look(root), _look(resolvers.HOST)]
    if function.command:
        path = roots.find(root, function.command[0], function.directory)
        found.append(_look(path) if path else ())
    return hashlib.sha256(repr(found).encode()).hexdigest()


def _look(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)


def _key(function: Function) -> bytes:
    """Without what a start brings along."""
    return coding.encode(msgspec.structs.replace(function, env={}, ready=None, timeout=0.0))
