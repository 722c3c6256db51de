"""Decides how many generic sandboxes the node keeps ready."""

import asyncio
import time
from collections.abc import Callable

import msgspec

from firstlight.agile.config import Pools, PoolSize
from firstlight.agile.function import Counts
from firstlight.agile.node.process import Node
from firstlight.agile.parts.demand import Demand
from firstlight.errors import Failed, longer

_WARM_SECONDS = longer(10.0)


class GenericSandboxes:
    """Keeps as many as the demand needs, once a start or ``warm`` shows that they are used."""

    def __init__(self, pools: Pools, lend: Callable[[int], None]) -> None:
        """``lend`` is called with the number of cgroups that they take from their shelf."""
        self._size, self._lend = pools.sandbox, lend
        self._demand = Demand(pools.sandbox, pools.window)
        self._kept = PoolSize(low=0, high=0)
        self._node: Node | None = None
        self._seen: tuple[int, int] | None = None  # how many were made ready
        self._changed = asyncio.Event()
        self._hits = self._misses = 0

    def connect(self, node: Node) -> None:
        """Use this node from now on."""
        self._node = node

    def resume(self) -> None:
        """Have a new node keep as many as the one before."""
        if self._node and self._kept.high:
            self._node.keep_waiting(self._kept)

    def lost(self) -> None:
        """Note that the node is gone, with its sandboxes."""
        self._node = self._seen = None
        self._changed.set()

    async def warm(self, count: int) -> None:
        """Wait until this many are ready, at most the high mark. Raises Failed."""
        node, count = self._node, min(count, self._size.high)
        if node is None:
            raise _ended()
        self._demand.expect(count)
        self._keep(max(self._kept.high, count))
        until = time.monotonic() + _WARM_SECONDS
        while node.waiting < count:
            if node is not self._node:
                raise _ended()
            self._changed.clear()
            left = until - time.monotonic()
            try:
                async with asyncio.timeout(max(0.0, left)):
                    await self._changed.wait()
            except TimeoutError:
                raise Failed(f"{node.waiting} of {count} sandboxes are ready",
                             "see the runtime's log") from None  # fmt: skip

    def started(self, warm: bool) -> None:
        """Note an instance's start; ``warm``: in a sandbox that was ready."""
        if warm:
            self._hits += 1
        else:
            self._misses += 1
            self._demand.take()
        if self._size.high:
            self._follow()

    def counted(self) -> None:
        """Note that the node has made or used some."""
        assert self._node
        self._changed.set()
        waiting = self._node.waiting
        made_before, before = self._seen or (self._node.made, waiting)
        made = self._node.made - made_before
        self._demand.take(max(0, made - (waiting - before)))
        self._demand.give(made)
        self._seen = self._node.made, waiting
        if waiting >= self._kept.high:
            self._demand.settle()
        self.follow()

    def follow(self) -> None:
        """Keep as many as the demand needs, if they are used at all."""
        if self._kept.high:
            self._follow()

    def counts(self) -> list[Counts]:
        """Their counts; none before their first use."""
        if not self._kept.high and not self._misses:
            return []
        node = self._node
        made, seconds = (node.made, node.fill_seconds) if node else (0, 0.0)
        return [Counts(
            name="sandbox", ready=node.waiting if node else 0,
            low=self._kept.low, high=self._kept.high,
            hits=self._hits, misses=self._misses, made=made, returned=0, failed=0,
            fill_rate=made / seconds if seconds else 0.0, fill_seconds=seconds,
        )]  # fmt: skip

    def _follow(self) -> None:
        if (high := self._demand.target()) != self._kept.high:
            self._keep(high)

    def _keep(self, high: int) -> None:
        self._lend(high)
        if self._seen:
            self._seen = self._seen[0], min(self._seen[1], high)  # the others end unused
        low = high if self._demand.follows else min(self._size.low, high)
        self._kept = msgspec.structs.replace(self._size, low=low, high=high)
        if self._node:
            self._node.keep_waiting(self._kept)


def _ended() -> Failed:
    return Failed("the node has ended", "try again")
