"""Decides whose request is next when not all can be answered at once.

There are two limits: a function's concurrency, and the number of events that the node answers at
once. A request beyond one waits, within bounds. A free place goes to the owner with the fewest
requests under way relative to their share, and to the one of theirs that has waited longest. So no
owner waits because another sends many.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from firstlight.agile.config import Functions
from firstlight.agile.functions.version import FunctionVersion
from firstlight.agile.serving.answer import Throttled


class _Waiter:
    """A request that waits. The limits of its version may change while it waits."""

    def __init__(self, version: FunctionVersion) -> None:
        self.version = version
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Turns:
    """The requests under way and those that wait for their turn."""

    def __init__(self, config: Functions) -> None:
        self._config = config
        self._of_function: Counter[str] = Counter()
        self._of_owner: Counter[str] = Counter()
        self._limits: dict[str, int | None] = {}
        self._waiting: list[_Waiter] = []

    @asynccontextmanager
    async def turn(self, version: FunctionVersion) -> AsyncIterator[None]:
        """Wait for a request's turn; it is under way in the context. Raises Throttled."""
        self._limits[version.name] = version.concurrency
        if self._may(version):
            self._begin(version)
        else:
            await self._wait(version)
        try:
            yield
        finally:
            self._end(version)

    def running(self, name: str) -> int:
        """How many requests of a function are under way."""
        return self._of_function[name]

    def waiting(self) -> Counter[str]:
        """How many requests wait for their turn, by function."""
        return Counter(waiter.version.name for waiter in self._waiting)

    def _may(self, version: FunctionVersion) -> bool:
        limit = self._limits.get(version.name)
        has_room = limit is None or self._of_function[version.name] < limit
        return has_room and self._of_owner.total() < self._config.at_once

    def _begin(self, version: FunctionVersion) -> None:
        self._of_function[version.name] += 1
        self._of_owner[version.owner] += 1

    def _end(self, version: FunctionVersion) -> None:
        for counter, key in ((self._of_function, version.name), (self._of_owner, version.owner)):
            counter[key] -= 1
            if not counter[key]:
                del counter[key]
        self._next()
        if not self._of_function[version.name] and not self._waiting:
            self._limits.pop(version.name, None)

    async def _wait(self, version: FunctionVersion) -> None:
        self._check_room(version)
        waiter = _Waiter(version)
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(self._config.wait_seconds):
                await waiter.turn
        except BaseException as error:
            if waiter.turn.done() and not waiter.turn.cancelled():
                self._end(version)  # its turn came while it gave up
            else:
                self._waiting.remove(waiter)
            if isinstance(error, TimeoutError):
                raise Throttled(
                    f"{version.name} had no turn in {self._config.wait_seconds:g} s",
                    "try again, or reserve more concurrency",
                ) from None
            raise

    def _check_room(self, version: FunctionVersion) -> None:
        """Raise Throttled if no more requests may wait."""
        running, limit = self._of_function[version.name], version.concurrency
        if limit is not None and running >= limit:
            waiting = sum(turn.version.name == version.name for turn in self._waiting)
            if not limit or waiting >= version.queue:
                also = f", and {waiting} wait" if waiting else ""
                raise Throttled(f"{version.name} has {running} instances{also}, and may have no "
                                "more", "try again, or reserve more concurrency")  # fmt: skip
            return
        waiting = sum(turn.version.owner == version.owner for turn in self._waiting)
        if waiting >= self._config.queue:
            whose = f"of {version.owner} " if version.owner else ""
            raise Throttled(
                f"the node answers {self._config.at_once} requests, and {waiting} {whose}wait",
                "try again, or configure more: functions.at_once, functions.queue",
            )

    def _next(self) -> None:
        """Let requests proceed that can."""
        while ready := [
            waiter
            for waiter in self._waiting
            if not waiter.turn.done() and self._may(waiter.version)  # it may have given up
        ]:
            chosen = min(ready, key=lambda waiter: self._burden(waiter.version.owner))
            self._waiting.remove(chosen)
            self._begin(chosen.version)
            chosen.turn.set_result(None)

    def _burden(self, owner: str) -> float:
        return self._of_owner[owner] / self._config.shares.get(owner, 1.0)
