"""The instances of one version of a function: an event gets one for itself."""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable

from firstlight.agile.functions.version import FunctionVersion
from firstlight.agile.serving.kept import InitFailed, Kept
from firstlight.errors import Failed

_STARTS_MAX = 2 * (os.cpu_count() or 1)
_LOOK_SECONDS = 1.0
_log = logging.getLogger(__name__)


class Fleet:
    """Instances that are kept: an event gets the one that was used last.

    An event that finds none idle waits for the first that is: one that has answered, or one that is
    started for it. ``emptied`` is called when there is none left and nobody waits.
    """

    def __init__(
        self, version: FunctionVersion, start: Callable[[FunctionVersion], Awaitable[Kept]],
        emptied: Callable[["Fleet"], None],
    ) -> None:  # fmt: skip
        self.version = version
        self._start, self._emptied = start, emptied
        self._idle: list[Kept] = []
        self._waiting: deque[asyncio.Future[Kept]] = deque()
        self._starting: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._busy = 0
        self._retired = self._closed = False
        self._loop = asyncio.get_running_loop()

    @property
    def idle(self) -> int:
        """How many instances wait for an event."""
        return len(self._idle)

    @property
    def busy(self) -> int:
        """How many have one."""
        return self._busy

    @property
    def waiting(self) -> int:
        """How many events wait for an instance."""
        return len(self._waiting)

    async def take(self) -> Kept:
        """An instance for one event; give it back. Raises what its start raises, Failed."""
        if self._closed:
            raise _closed(self.version)
        while self._idle:
            kept = self._idle.pop()
            if kept.expiry:
                kept.expiry.cancel()
            if kept.is_up:
                self._busy += 1
                return kept
        waiter: asyncio.Future[Kept] = self._loop.create_future()
        self._waiting.append(waiter)
        self._start_more()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and not waiter.exception():
                self.give(waiter.result())
            raise

    def give(self, kept: Kept) -> None:
        """It has answered: the event that has waited longest gets it."""
        self._busy -= 1
        if kept.is_up and not self._hand(kept):
            if self._retired or (self.version.keep_warm <= 0 and not self._is_short()):
                self._end(kept)
            else:
                self._idle.append(kept)
                self._rest(kept)
        self._start_more()
        self._check_empty()

    def keep(self) -> None:
        """Start what is missing of the instances that are always to be kept."""
        for kept in [kept for kept in self._idle if not kept.is_up]:
            self._idle.remove(kept)
            self._end(kept)
        while self._is_short(len(self._starting)) and len(self._starting) < _STARTS_MAX:
            self._start_one()

    def _is_short(self, more: int = 0) -> bool:
        """Whether there are fewer than are always to be kept."""
        count = len(self._idle) + self._busy + more
        return not self._retired and count < self.version.warm

    def retire(self) -> None:
        """End the idle instances, and the others as they become idle."""
        self._retired = True
        self.end_idle()
        self._check_empty()

    def end_idle(self) -> int:
        """End the idle instances; returns how many."""
        ended = len(self._idle)
        while self._idle:
            self._end(self._idle.pop())
        return ended

    async def close(self) -> None:
        """End what is idle or starting; who waits, or comes later, gets an error."""
        self._closed = True
        self.retire()
        for task in self._starting:
            task.cancel()
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(_closed(self.version))
        while tasks := self._starting | self._ending:
            await asyncio.wait(tasks)

    def _start_more(self) -> None:
        while len(self._starting) < min(len(self._waiting), _STARTS_MAX):
            self._start_one()

    def _start_one(self) -> None:
        task = self._loop.create_task(self._started())
        self._starting.add(task)
        task.add_done_callback(self._started_one)

    def _started_one(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        self._start_more()
        self._check_empty()

    async def _started(self) -> None:
        try:
            kept = await self._start(self.version)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            while self._waiting:
                waiter = self._waiting.popleft()
                if not waiter.done():
                    waiter.set_exception(error)
                    return
            words = error.answer.payload if isinstance(error, InitFailed) else error
            _log.warning("%s is not kept warm: %s", self.version.name, words)
        else:
            kept.was_ahead = not self._waiting
            self._busy += 1
            self.give(kept)

    def _hand(self, kept: Kept) -> bool:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self._busy += 1
                waiter.set_result(kept)
                return True
        return False

    def _expire(self, kept: Kept) -> None:
        self._idle.remove(kept)
        if kept.is_up and self._is_short():
            self._idle.insert(0, kept)
            self._rest(kept)
        else:
            self._end(kept)

    def _rest(self, kept: Kept) -> None:
        """It ends when it has been idle for long, unless it is one that is always kept."""
        seconds = self.version.keep_warm or _LOOK_SECONDS
        kept.expiry = self._loop.call_later(seconds, self._expire, kept)

    def _end(self, kept: Kept) -> None:
        task = self._loop.create_task(kept.stop())
        self._ending.add(task)
        task.add_done_callback(self._ended_one)

    def _ended_one(self, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        self._check_empty()

    def _check_empty(self) -> None:
        if not (self._idle or self._busy or self._waiting or self._starting or self._ending):
            self._emptied(self)


def _closed(version: FunctionVersion) -> Failed:
    return Failed(f"{version.name} gets no instance: the runtime is stopping",
                  "try again when it has been started")  # fmt: skip
