"""Threads that fetch and unpack code, apart from those that everything else of the runtime needs:
a registry or an archive may take half an hour.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

from firstlight.agile.serving import Throttled
from firstlight.errors import Failed

_AT_ONCE, _IMAGES, _EACH, _WAITING = 8, 6, 2, 256
Result = TypeVar("Result")
Kind = tuple[str, bool]
"""An owner, and whether it is an image."""


class Fetches:
    """Eight fetches at once, six of them of images, which may be slow. Of an owner there are two of
    images and two of other code; 256 of either wait, and the next is refused. Owners have turns.

    The process's end waits for none of them.
    """

    def __init__(self) -> None:
        self._running: Counter[Kind] = Counter()
        self._waiting: list[tuple[Kind, asyncio.Future[None]]] = []
        self._turns, self._last = 0, dict[Kind, int]()

    @property
    def busy(self) -> bool:
        """Whether a thread is at work, maybe for a caller who has left."""
        return self._running.total() > 0

    async def run(self, owner: Kind, work: Callable[[], Result]) -> Result:
        """The result of this in a thread, once it is its turn. Raises Throttled, and Failed if the
        system has no more threads.
        """
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
        try:
            threading.Thread(target=fetch, name="fetch", daemon=True).start()
        except RuntimeError as error:
            self._end(owner)
            raise Failed("there are no more threads to fetch code", "raise the limit of processes, "
                         "or end some") from error  # fmt: skip
        return await asyncio.wrap_future(done)

    def _end(self, owner: Kind) -> None:
        self._running[owner] -= 1
        self._next()

    def _next(self) -> None:
        while self._running.total() < _AT_ONCE:
            images = sum(count for (_, is_image), count in self._running.items() if is_image)
            ready = [
                (owner, turn)
                for owner, turn in self._waiting
                if self._running[owner] < _EACH and not turn.done()
                and not (owner[1] and images >= _IMAGES)
            ]  # fmt: skip
            if not ready:
                return
            owner, turn = min(ready, key=lambda each: self._last.get(each[0], 0))
            self._waiting.remove((owner, turn))
            self._running[owner] += 1
            self._turns += 1
            self._last[owner] = self._turns
            turn.set_result(None)
