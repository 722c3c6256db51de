"""Parts for starts on the node's shelves: networks by reach, and cgroups.

The node takes them by itself and reports it afterwards. This module makes, counts and ends them,
and examines used ones.
"""

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from firstlight.agile.config import PoolSize
from firstlight.agile.function import Counts, Reach
from firstlight.agile.network.networks import Network, Networks
from firstlight.agile.node import wire
from firstlight.agile.parts.cgroups import Cgroup, Cgroups, Limits
from firstlight.agile.parts.demand import Demand
from firstlight.agile.parts.pool import LoadGate
from firstlight.errors import Failed

if TYPE_CHECKING:
    from firstlight.agile.node.process import Node

_RETRY_SECONDS = 0.5
_AT_ONCE = 4
NOBODY = -1


@dataclass(eq=False)
class Held:
    """A part that the node has. ``function`` is its owner, or NOBODY. ``left``: its instance ended
    between two managers. ``error``: why the node could not take it.
    """

    index: int
    made: Network | Cgroup
    reach: Reach
    shelved: bool = True
    function: int = NOBODY
    left: bool = False
    error: Failed | None = None


class Shelf:
    """Parts of one kind, kept between two marks. Nothing is made before the first ``want``."""

    def __init__(
        self, name: str, size: PoolSize, put: Callable[[], Awaitable[None]], gate: LoadGate,
        failed: Callable[[], None], window: float = 0.0,
    ) -> None:  # fmt: skip
        """``window``: its size follows the demand over this many seconds, see ``Demand``."""
        self.name, self.size = name, size
        self._demand = Demand(size, window)
        self._put, self._gate, self._tell_failed = put, gate, failed
        self.ready = self._waiting = self._warm_to = 0
        self.hits = self.misses = self.made = self.returned = self.failures = 0
        self._seconds = 0.0
        self._wanted = asyncio.Event()
        self._filled = asyncio.Event()
        self._filler: asyncio.Task[None] | None = None
        self._closed = False
        self.error: Failed | None = None
        self._used = self._refused = False
        self.lent = 0  # used by waiting sandboxes

    def taken(self) -> None:
        """Note that the node has used one."""
        self.hits += 1
        self.ready -= 1
        self._demand.take()
        self._used = True
        least = max(self.size.low, min(1, self.size.high))
        if self.ready < (self._target() if self._demand.follows else least) + self.lent:
            self._wake()

    def want(self, count: int) -> None:
        """Note that this many starts wait."""
        self.misses += count
        self._demand.take(max(0, count - self._waiting))
        self._waiting = max(self._waiting, count)
        self._used = True
        self._wake()

    def added(self) -> None:
        """Note one more on the shelf."""
        self.ready += 1
        self._waiting = max(0, self._waiting - 1)
        self._demand.give()

    def refused(self, error: Failed) -> None:
        """Note that the node could not take one. Who waits for it gets the error."""
        self.ready -= 1
        self.made -= 1
        self._refused = True
        self._waiting += 1
        self._fail(error)
        self._wake()

    async def warm(self, count: int | None = None) -> None:
        """Fill up to ``count``, or to the high mark. Raises the failure."""
        self._warm_to = max(self._warm_to, self.size.high if count is None else count)
        self._demand.expect(self._warm_to)
        while self.ready < self._warm_to + self.lent:
            if self._closed:
                raise Failed(f"no {self.name} is made any more", "the runtime is stopping")
            self.error = None
            self._filled.clear()
            self._wake()
            await self._filled.wait()
            if self.error:
                raise self.error
        if self._demand.follows:
            self._warm_to, self._used = 0, True

    def lost(self, count: int = 1) -> None:
        """Note that this many have ended unused."""
        self.ready -= count

    def follow(self) -> int:
        """Make what the demand needs; returns the number of surplus ones."""
        if not self._demand.follows or not self._used:
            return 0
        if self.ready < self._target() + self.lent:
            self._wake()
            return 0
        self._demand.settle()
        return self.ready - self._target() - self.lent

    def _target(self) -> int:
        return max(self._warm_to, self._demand.target() if self._used else 0)

    def counts(self) -> Counts:
        """Its counts."""
        rate = self.made / self._seconds if self._seconds else 0.0
        return Counts(
            name=self.name, ready=max(0, self.ready), low=self.size.low, high=self._demand.target(),
            hits=self.hits, misses=self.misses, made=self.made, returned=self.returned,
            failed=self.failures, fill_rate=round(rate, 1), fill_seconds=self._seconds,
        )  # fmt: skip

    def forget(self) -> None:
        """Note that the node is gone, with the shelf's parts."""
        self.ready = self._waiting = 0

    async def close(self) -> None:
        """Stop making parts. A waiter for ``warm`` gets Failed."""
        self._closed = True
        if self._filler:
            self._filler.cancel()
            await asyncio.gather(self._filler, return_exceptions=True)
        self._filled.set()

    def _wake(self) -> None:
        self._wanted.set()
        if self._filler is None:
            self._filler = asyncio.get_running_loop().create_task(self._fill())

    def _short(self) -> bool:
        return self._waiting > 0 or self.ready < self._target() + self.lent

    def _half_empty(self) -> bool:
        return self.ready <= self.size.low // 2

    async def _fill(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._short():
                if self._refused:
                    self._refused = False
                    await asyncio.sleep(_RETRY_SECONDS)
                await self._gate.wait_idle(lambda: self._waiting > 0, self._half_empty)
                began = time.monotonic()
                many = min(_AT_ONCE, max(1, self._waiting))
                results = await asyncio.gather(
                    *(self._put_one() for _ in range(many)), return_exceptions=True
                )
                failures = [r for r in results if isinstance(r, BaseException)]
                self._seconds += time.monotonic() - began
                if failures:
                    self._fail(failures[0])
                    await asyncio.sleep(_RETRY_SECONDS)
                elif self._short() and not self._waiting:
                    await asyncio.sleep(max(0.0, began + many / self.size.rate - time.monotonic()))
            self._demand.settle()
            self._filled.set()

    async def _put_one(self) -> None:
        await self._put()
        # At once: a start that takes it lets the node ask for the next, which this must not answer.
        self.made += 1
        self.added()

    def _fail(self, error: BaseException) -> None:
        self.failures += 1
        self.error = (
            error if isinstance(error, Failed) else Failed(f"cannot make {self.name}: {error!r}")
        )
        self._filled.set()
        if self._waiting:
            self._waiting = 0
            self._tell_failed()


class Parts:
    """All parts of one node."""

    def __init__(self, networks: Networks, cgroups: Cgroups, limits: Limits) -> None:
        self._networks, self._cgroups, self._limits = networks, cgroups, limits
        self._held: dict[int, Held] = {}
        self._free = list(range(wire.PARTS - 1, -1, -1))
        self.node: Node | None = None

    async def put_network(self, reach: Reach) -> None:
        """Make a network and put it on its shelf. Raises Failed."""
        self._add(await self._networks.make(reach), reach)

    async def put_cgroup(self) -> None:
        """Make a cgroup and put it on the shelf. Raises Failed."""
        self._add(self._cgroups.make(self._limits, entry_fds=False), "outbound")

    def give(self, network: Network, reach: Reach, function: int) -> Held:
        """Put a network on its function's own shelf. Raises Failed."""
        return self._add(network, reach, function)

    def _add(self, made: Network | Cgroup, reach: Reach, function: int = NOBODY) -> Held:
        if not self._free or self.node is None:
            self._end(made)
            raise Failed("no more parts can be held", "stop instances")
        held = Held(self._free.pop(), made, reach, function=function)
        self._held[held.index] = held
        descriptor = made.descriptor if isinstance(made, Network) else -1
        try:
            self.node.add(self._described(held), descriptor)
        except Failed:
            self._free.append(self._held.pop(held.index).index)
            self._end(made)
            raise
        return held

    def _described(self, held: Held) -> wire.Part:
        made, limits = held.made, self._limits
        reach = wire.REACHES.index(held.reach)
        if isinstance(made, Network):
            address = int.from_bytes(made.address.packed, "little") if made.address else 0
            return wire.Part(held.index, wire.NETWORK, reach, held.function, address,
                                  0, 0, 0, 0, made.quick, made.note())  # fmt: skip
        return wire.Part(
            held.index, wire.CGROUP, reach, NOBODY, 0, int(made.memory.name),
            limits.memory, quota(limits.cpus), limits.pids, 0, b"",
        )  # fmt: skip

    def used(self, index: int) -> Held | None:
        """Note that the node gave it to an instance; returns its record if it was on a shelf."""
        held = self._held.get(index)
        if held is None or not held.shelved:
            return None
        held.shelved = False
        return held

    def get(self, index: int) -> Held | None:
        """The part with that index."""
        return self._held.get(index)

    def shelved(self, index: int, function: int = NOBODY) -> None:
        """Note that the node put it back by itself."""
        if held := self._held.get(index):
            held.shelved, held.function = True, function

    def give_back(self, held: Held, function: int) -> None:
        """Put a used network that is as new back for its function."""
        held.shelved, held.function = True, function
        if self.node and self._is_ours(held):
            self.node.give_back(self._described(held))

    def discard(self, held: Held) -> None:
        """End a part that no instance uses."""
        if not self._is_ours(held):
            return
        del self._held[held.index]
        if self.node:
            self.node.withdraw(held.index)
        self._free.append(held.index)
        self._end(held.made)

    def refused(self, index: int, error: int) -> Held | None:
        """End a new part that the node could not take; returns its record."""
        held = self._held.pop(index, None)
        if held:
            if error != errno.EEXIST:  # else it has another of that index
                self._free.append(index)
            self._end(held.made)
        return held

    def _is_ours(self, held: Held) -> bool:
        """Whether it is of this node; a previous node used the same indices."""
        return self._held.get(held.index) is held

    async def reduce(self, kind: type, reach: Reach, count: int) -> int:
        """End up to this many of a kind on the common shelf; returns how many the node gave."""
        ended = 0
        for held in [h for h in self._held.values() if self._is_common(h, kind, reach)]:
            if ended == count or self.node is None:
                break
            if not await self.node.take_back(held.index) or not self._is_ours(held):
                continue  # an instance has it, or a waiting sandbox
            del self._held[held.index]
            self._free.append(held.index)
            self._end(held.made)
            ended += 1
        return ended

    def _is_common(self, held: Held, kind: type, reach: Reach) -> bool:
        return (
            isinstance(held.made, kind) and held.shelved and held.function == NOBODY
            and (held.reach == reach or kind is Cgroup)
        )  # fmt: skip

    def forgotten(self, function: int) -> None:
        """Note that the node gave up a function's own parts."""
        for held in [h for h in self._held.values() if h.function == function and h.shelved]:
            del self._held[held.index]
            self._free.append(held.index)
            self._end(held.made)

    def lost(self) -> None:
        """Note that the node is gone, with all parts."""
        for held in self._held.values():
            self._end(held.made)
        self._free.extend(self._held)
        self._held.clear()

    def cgroups(self) -> set[str]:
        """The names of the cgroups that are held."""
        return {h.made.memory.name for h in self._held.values() if isinstance(h.made, Cgroup)}

    async def adopt(self, state: list[tuple[wire.Part, int, int]]) -> list[Held]:
        """Take over a node's parts; returns those whose instances have ended."""
        left = []
        for part, where, descriptor in state:
            reach = wire.REACHES[part.reach]
            made: Network | Cgroup
            if part.kind == wire.NETWORK:
                made = Network.from_note(part.note.rstrip(b"\0"), descriptor)
                await self._networks.adopt(made)
            else:
                made = self._cgroups.adopt(part.cgroup)
            held = Held(
                part.place, made, reach, where == wire.SHELVED, part.function,
                where == wire.LEFT,
            )  # fmt: skip
            self._held[part.place] = held
            self._free.remove(part.place)
            if held.left:
                left.append(held)
        return left

    def ready(self, kind: type, reach: Reach) -> int:
        """How many of a kind are on the common shelf."""
        return sum(self._is_common(held, kind, reach) for held in self._held.values())

    def _end(self, made: Network | Cgroup) -> None:
        if isinstance(made, Network):
            self._networks.discard(made)
        else:
            self._cgroups.remove(made)


def quota(cpus: float) -> int:
    """us of CPU time in 100 ms."""
    return max(1000, int(cpus * 100_000))
