"""Requests that wait for an instance of a version, and the instances that are started for them."""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from firstlight.agile.functions.version import FunctionVersion
from firstlight.agile.serving.kept_instance import InitFailed
from firstlight.errors import Failed

T = TypeVar("T")
_STARTS_MAX = 2 * (os.cpu_count() or 1)
_log = logging.getLogger(__name__)


class Starts(Generic[T]):
    """First come, first served. Starts as many at once as the requests need and the CPUs allow.

    ``start`` starts an instance, which serves ``each`` requests at once. ``started`` receives it,
    ``give`` receives one whose request was cancelled, and ``settled`` is called when a start has
    ended.
    """

    def __init__(
        self, version: FunctionVersion, each: int, start: Callable[[], Awaitable[T]],
        started: Callable[[T], None], give: Callable[[T], None], settled: Callable[[], None],
    ) -> None:  # fmt: skip
        self._version, self._each = version, each
        self._start, self._started, self._give, self._settled = start, started, give, settled
        self._waiting: deque[asyncio.Future[T]] = deque()
        self.tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    @property
    def waiting(self) -> int:
        """How many requests wait for an instance."""
        return len(self._waiting)

    async def wait(self) -> T:
        """The next instance that can serve a request. Raises what its start raises, Failed."""
        waiter: asyncio.Future[T] = self._loop.create_future()
        self._waiting.append(waiter)
        self.fill()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and not waiter.exception():
                self._give(waiter.result())
            raise

    def hand(self, instance: T) -> bool:
        """Give an instance to the request that has waited longest. Returns whether one waited."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(instance)
                return True
        return False

    def fill(self) -> None:
        """Start what the waiting requests need."""
        needed = -(-len(self._waiting) // self._each)
        while len(self.tasks) < min(needed, _STARTS_MAX):
            self._begin()

    def keep(self, is_short: Callable[[int], bool]) -> None:
        """Start instances while ``is_short``, which is given how many are being started."""
        while len(self.tasks) < _STARTS_MAX and is_short(len(self.tasks)):
            self._begin()

    def stop(self) -> None:
        """Start no more; the requests that wait get an error."""
        for task in self.tasks:
            task.cancel()
        self._refuse(len(self._waiting), stopping(self._version))

    def _begin(self) -> None:
        task = self._loop.create_task(self._run())
        self.tasks.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self.fill()
        self._settled()

    async def _run(self) -> None:
        try:
            instance = await self._start()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if not self._refuse(self._each, error):
                words = error.answer.payload if isinstance(error, InitFailed) else error
                _log.warning("%s is not kept warm: %s", self._version.name, words)
        else:
            self._started(instance)

    def _refuse(self, most: int, error: BaseException) -> int:
        """Fail up to ``most`` of the requests that wait; returns how many."""
        refused = 0
        while self._waiting and refused < most:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(error)
                refused += 1
        return refused


def stopping(version: FunctionVersion) -> Failed:
    """The error for requests that come while the runtime stops."""
    return Failed(f"{version.name} gets no instance: the runtime is stopping",
                  "try again when it has been started")  # fmt: skip
