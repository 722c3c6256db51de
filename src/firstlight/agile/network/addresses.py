"""The addresses of a range and their links by number: free, in use, or leaving.

A number that is leaving becomes free once its link is gone and the host tracks no connection of its
address.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import IPv4Network

from firstlight.agile.network import nethelper
from firstlight.agile.network.nethelper import NetHelper
from firstlight.errors import Failed, longer

GONE_SECONDS, RETRY_SECONDS = longer(10.0), 0.01
_SWEEP_SECONDS, _SWEEP_SHARE = 0.5, 4


class Ring:
    """The numbers from first to end, each reused as late as possible."""

    def __init__(self, first: int, end: int) -> None:
        self.first, self.end, self.size = first, end, end - first
        self._next, self._used = first, set[int]()

    def __contains__(self, number: int) -> bool:
        return self.first <= number < self.end

    @property
    def used(self) -> int:
        """How many are in use or leaving."""
        return len(self._used)

    def take(self) -> int | None:
        """A free number, or None."""
        if len(self._used) == self.size:
            return None
        while self._next in self._used:
            self._step()
        number = self._next
        self._used.add(number)
        self._step()
        return number

    def hold(self, number: int) -> None:
        """Mark a number as used."""
        self._used.add(number)

    def give(self, number: int) -> None:
        """Mark a number as free."""
        self._used.discard(number)

    def _step(self) -> None:
        self._next = self._next + 1 if self._next + 1 < self.end else self.first


class Addresses:
    """The addresses of ``range``, divided into rings by purpose.

    Number n is address ``range[n]`` and the link with index ``first_index + n``. ``option`` is the
    configuration's key of the range, for messages.
    """

    def __init__(
        self, range: IPv4Network, rings: Mapping[str, Ring], first_index: int, helper: NetHelper,
        option: str,
    ) -> None:  # fmt: skip
        self._range, self._rings, self._first, self._helper = range, rings, first_index, helper
        self._option = option
        self._left: list[int] = []  # numbers whose links are being removed
        self._sweeper: asyncio.Task[None] | None = None
        self._swept, self._hurry = asyncio.Event(), asyncio.Event()

    @property
    def used(self) -> int:
        """How many are in use or leaving."""
        return sum(ring.used for ring in self._rings.values())

    async def take(self, purpose: str, until: float) -> int:
        """A free number. Raises Failed if none becomes free in time."""
        ring = self._rings[purpose]
        while (number := ring.take()) is None:
            if time.monotonic() > until or not any(n in ring for n in self._left):
                raise Failed("the address range is exhausted",
                             f"stop instances, or configure a larger {self._option}")  # fmt: skip
            self._swept.clear()
            self._hurry.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(GONE_SECONDS):
                    await self._swept.wait()
        return number

    def hold(self, number: int) -> None:
        """Mark a number as used by something that another process made."""
        self._ring(number).hold(number)

    def leave(self, number: int) -> None:
        """Free a number once its link is gone and the host tracks no connection of its address."""
        self._left.append(number)
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    def close(self) -> None:
        """Stop checking numbers that are leaving."""
        if self._sweeper:
            self._sweeper.cancel()

    async def _sweep(self) -> None:
        """Check many numbers in one pass over the host's connections, of which there may be a
        million.
        """
        rest = _SWEEP_SECONDS
        while self._left:
            self._hurry.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await self._hurry.wait()
            began = time.monotonic()
            numbers = self._left[: nethelper.RANGES_MAX]
            ranges = [(self._range[n], self._range[n], self._first + n) for n in numbers]
            try:
                answer = (await self._helper.ask(nethelper.forget(ranges))).check("sweep")
            except Failed:
                await asyncio.sleep(_SWEEP_SECONDS)
                continue
            gone = {n for n, is_gone in zip(numbers, answer.rest, strict=True) if is_gone}
            for number in gone:
                self._ring(number).give(number)
            self._left = [n for n in self._left if n not in gone]
            self._swept.set()
            took = time.monotonic() - began
            rest = max(_SWEEP_SECONDS, took * _SWEEP_SHARE)
            await asyncio.sleep(max(RETRY_SECONDS, took * _SWEEP_SHARE))

    def _ring(self, number: int) -> Ring:
        return next(ring for ring in self._rings.values() if number in ring)
