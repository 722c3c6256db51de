"""Threads that fetch and unpack code, apart from those that everything else of the runtime needs:
a registry or an archive may take half an hour.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

from firstlight.agile.serving import Throttled

_AT_ONCE, _EACH, _WAITING = 8, 2, 256
Result = TypeVar("Result")


class Fetches:
    """Eight fetches at once, two of one owner; 256 of an owner wait, and the next is refused.

    The process's end waits for none of them.
    """

    def __init__(self) -> None:
        self._running: Counter[Hashable] = Counter()
        self._waiting: list[tuple[Hashable, asyncio.Future[None]]] = []

    @property
    def busy(self) -> bool:
        """Whether a thread is at work, maybe for a caller who has left."""
        return self._running.total() > 0

    async def run(self, owner: Hashable, work: Callable[[], Result]) -> Result:
        """The result of this in a thread, once it is this owner's turn. Raises Throttled."""
        loop = asyncio.get_running_loop()
        if sum(each == owner for each, _ in self._waiting) >= _WAITING:
            raise Throttled(f"{_WAITING} functions wait for their code to be fetched or unpacked",
                            "try again when some are there")  # fmt: skip
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append((owner, turn))
        self._next()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting.remove((owner, turn))
            else:
                self._end(owner)  # its turn came while it gave up
            raise
        done: Future[Result] = Future()
        done.set_running_or_notify_cancel()  # a caller who leaves does not end it

        def ended(_: Future[Result]) -> None:
            with suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(self._end, owner)

        def fetch() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        done.add_done_callback(ended)  # before the caller goes on
        threading.Thread(target=fetch, name="fetch", daemon=True).start()
        return await asyncio.wrap_future(done)

    def _end(self, owner: Hashable) -> None:
        self._running[owner] -= 1
        self._next()

    def _next(self) -> None:
        for owner, turn in list(self._waiting):
            if self._running.total() >= _AT_ONCE:
                return
            if self._running[owner] < _EACH and not turn.done():
                self._waiting.remove((owner, turn))
                self._running[owner] += 1
                turn.set_result(None)
