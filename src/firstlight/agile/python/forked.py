"""A fork of a zygote that serves: it lives until it is ended, as an ``Instance`` does."""

import asyncio
import os
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from firstlight.agile.function import Ended
from firstlight.agile.python.fork import Fork, Line

if TYPE_CHECKING:
    from firstlight.agile.network.networks import Network

_LONG, _DIGITS_MOST = 1 << 63, 30  # a long of C, and enough digits to see that a number is none


class Forked:
    """One fork. ``ended`` and ``network`` are those of an ``Instance``."""

    def __init__(self, fork: Fork, warm: bool, ran_out_of_memory: Callable[[], bool]) -> None:
        self._fork, self._ran_out_of_memory = fork, ran_out_of_memory
        self.warm, self.pid = warm, fork.pid
        self.stamps = {"forked": time.monotonic_ns()}
        loop = asyncio.get_running_loop()
        self.network: asyncio.Future[Network] = loop.create_future()
        self.network.set_result(fork.place.network)
        self.ended: asyncio.Future[Ended] = loop.create_future()
        self.outputs = [output.detach() for output in fork.outputs]

    async def run(self, line: bytes, discard: Callable[[Fork], None]) -> None:
        """Give its handler what it gets, and see to its end."""
        ended = Ended(signal=9)
        try:
            ended = _ended(await self._fork.run(line), self._ran_out_of_memory())
        finally:
            discard(self._fork)
            self.ended.set_result(ended)

    async def wait(self) -> Ended:
        """How it ended, when it has."""
        return await asyncio.shield(self.ended)

    def kill(self) -> None:
        """End it and all its processes."""
        self._fork.place.end()

    async def stop(self) -> Ended:
        """The same, and wait for its end."""
        self.kill()
        return await self.wait()


def _ended(end: Line | int | None, out_of_memory: bool) -> Ended:
    if isinstance(end, Line):
        return Ended(status=_status(end.exited), out_of_memory=out_of_memory)
    if end is None or os.WIFSIGNALED(end):
        return Ended(signal=9 if end is None else os.WTERMSIG(end), out_of_memory=out_of_memory)
    return Ended(status=os.WEXITSTATUS(end), out_of_memory=out_of_memory)


def _status(exited: str | None) -> int:
    """The exit status that Python gives ``sys.exit``, of its argument's repr."""
    if exited in ("None", "False"):
        return 0
    if not exited or not re.fullmatch("-?[0-9]+", exited):
        return 1
    number = int(exited[:_DIGITS_MOST])
    return number & 0xFF if -_LONG <= number < _LONG else 0xFF
