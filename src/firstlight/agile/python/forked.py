"""A fork of a zygote that serves requests until it is ended, used as an ``Instance`` is."""

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from msgspec.structs import replace

from firstlight.agile.function import Ended
from firstlight.agile.python.fork import Fork, Line

if TYPE_CHECKING:
    from firstlight.agile.network.networks import Network

_LONG, _DIGITS_MOST = 1 << 63, 30  # a C long; more digits cannot be one


class Forked:
    """One fork. ``ended`` and ``network`` are those of an ``Instance``."""

    def __init__(
        self, fork: Fork, warm: bool, ran_out_of_memory: Callable[[], bool],
        is_lost: Callable[[], Awaitable[bool]],
    ) -> None:  # fmt: skip
        """``is_lost`` tells whether the fork, without an answer, was killed from outside."""
        self._fork, self._ran_out_of_memory, self._is_lost = fork, ran_out_of_memory, is_lost
        self.warm, self.pid = warm, fork.pid
        self.stamps = {"forked": time.monotonic_ns()}
        loop = asyncio.get_running_loop()
        self.network: asyncio.Future[Network] = loop.create_future()
        self.network.set_result(fork.place.network)
        self.ended: asyncio.Future[Ended] = loop.create_future()
        self.outputs = [output.detach() for output in fork.outputs]

    async def run(self, line: bytes, discard: Callable[[Fork], None]) -> None:
        """Send its handler's event, and handle its end."""
        ended = Ended(signal=9)
        try:
            end = await self._fork.run(line)
            ended = _ended(end, self._ran_out_of_memory())
            if ended.signal and not ended.out_of_memory and await self._is_lost():
                ended = replace(ended, lost=True)
        finally:
            discard(self._fork)
            self.ended.set_result(ended)

    async def wait(self) -> Ended:
        """Wait for its end; returns how it ended."""
        return await asyncio.shield(self.ended)

    def kill(self) -> None:
        """End it and all its processes."""
        self._fork.place.end()

    async def stop(self) -> Ended:
        """End it, and wait for its end."""
        self.kill()
        return await self.wait()


def _ended(end: Line | int | None, out_of_memory: bool) -> Ended:
    if isinstance(end, Line):
        return Ended(status=_status(end.exited), out_of_memory=out_of_memory)
    if end is None or os.WIFSIGNALED(end):
        return Ended(signal=9 if end is None else os.WTERMSIG(end), out_of_memory=out_of_memory)
    return Ended(status=os.WEXITSTATUS(end), out_of_memory=out_of_memory)


def _status(exited: str | None) -> int:
    """The exit status of ``sys.exit``, from its argument's repr."""
    if exited in ("None", "False"):
        return 0
    if not exited or not re.fullmatch("-?[0-9]+", exited):
        return 1
    number = int(exited[:_DIGITS_MOST])
    return number & 0xFF if -_LONG <= number < _LONG else 0xFF
