"""The instances of one version of a function, each used by one event at a time."""

import asyncio
from collections.abc import Awaitable, Callable

from firstlight.agile.functions.version import FunctionVersion
from firstlight.agile.serving.kept_instance import KeptInstance
from firstlight.agile.serving.starts import Starts, stopping

_LOOK_SECONDS = 1.0


class Fleet:
    """Instances that are kept. An event gets the most recently used.

    If none is idle, the event waits for the first: one that has answered, or a new one. ``emptied``
    is called when no instance is left and no event waits.
    """

    def __init__(
        self, version: FunctionVersion, start: Callable[[FunctionVersion], Awaitable[KeptInstance]],
        emptied: Callable[["Fleet"], None],
    ) -> None:  # fmt: skip
        self.version = version
        self._emptied = emptied
        self._starts = Starts(
            version, 1, lambda: start(version), self._note_start, self.give, self._check_empty
        )
        self._idle: list[KeptInstance] = []
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
        """How many instances have an event."""
        return self._busy

    @property
    def waiting(self) -> int:
        """How many events wait for an instance."""
        return self._starts.waiting

    async def take(self) -> KeptInstance:
        """Take an instance for one event; ``give`` returns it. Raises Failed, and what its start
        raises.
        """
        if self._closed:
            raise stopping(self.version)
        while self._idle:
            kept = self._idle.pop()
            if kept.expiry:
                kept.expiry.cancel()
            if kept.is_up:
                self._busy += 1
                return kept
        return await self._starts.wait()

    def give(self, kept: KeptInstance) -> None:
        """Give back an instance: the event that has waited longest gets it."""
        self._busy -= 1
        if kept.is_up and self._starts.hand(kept):
            self._busy += 1
        elif kept.is_up:
            if self._retired or (self.version.keep_warm <= 0 and not self._is_short()):
                self._end(kept)
            else:
                self._idle.append(kept)
                self._rest(kept)
        self._starts.fill()
        self._check_empty()

    def keep(self) -> None:
        """Start missing instances, up to the number that is always kept."""
        for kept in [kept for kept in self._idle if not kept.is_up]:
            self._idle.remove(kept)
            self._end(kept)
        self._starts.keep(self._is_short)

    def _is_short(self, more: int = 0) -> bool:
        """Whether there are fewer instances than are always kept."""
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
        """End all idle and starting instances; requests that wait, or come later, get an error."""
        self._closed = True
        self.retire()
        self._starts.stop()
        while tasks := self._starts.tasks | self._ending:
            await asyncio.wait(tasks)

    def _note_start(self, kept: KeptInstance) -> None:
        kept.was_ahead = not self._starts.waiting
        self._busy += 1
        self.give(kept)

    def _expire(self, kept: KeptInstance) -> None:
        self._idle.remove(kept)
        if kept.is_up and self._is_short():
            self._idle.insert(0, kept)
            self._rest(kept)
        else:
            self._end(kept)

    def _rest(self, kept: KeptInstance) -> None:
        """End an instance that has been idle for long, unless it is always kept."""
        seconds = self.version.keep_warm or _LOOK_SECONDS
        kept.expiry = self._loop.call_later(seconds, self._expire, kept)

    def _end(self, kept: KeptInstance) -> None:
        task = self._loop.create_task(kept.stop())
        self._ending.add(task)
        task.add_done_callback(self._note_end)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        self._check_empty()

    def _check_empty(self) -> None:
        starts = self._starts
        if not (self._idle or self._busy or starts.waiting or starts.tasks or self._ending):
            self._emptied(self)
