"""Pools of parts that are made in advance."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, TypeVar

from firstlight.agile.config import PoolSize
from firstlight.agile.function import Counts
from firstlight.agile.parts.demand import Demand
from firstlight.errors import Failed

Part = TypeVar("Part")

_CALM_SECONDS = 0.005
_PATIENCE_SECONDS = 0.2
_HURRY_SECONDS = 0.01
_RETRY_SECONDS = 0.5


class LoadGate:
    """Delays refills until there was no request for ``calm`` s, and ``patience`` s at most.

    Both are shorter while the pool is half empty, and there is no delay while requests wait for it.
    """

    def __init__(self, calm: float = _CALM_SECONDS, patience: float = _PATIENCE_SECONDS) -> None:
        self._calm, self._patience = calm, patience
        self._under_way = 0
        self._last = 0.0

    def __enter__(self) -> None:
        self._under_way += 1

    def __exit__(self, *_: object) -> None:
        self._under_way -= 1
        self._last = time.monotonic()

    def seen(self) -> None:
        """Note a request that the node has served."""
        self._last = time.monotonic()

    async def wait_idle(self, urgent: Callable[[], bool], soon: Callable[[], bool]) -> None:
        """Return in a lull, when patience ends, or when urgent.

        Both are asked again while it waits: at a steady rate of requests there is no lull, and the
        pool would run dry before patience ends.
        """
        began = time.monotonic()
        while not urgent():
            calm, patience = self._calm, self._patience
            if soon():
                calm, patience = _CALM_SECONDS, _HURRY_SECONDS
            until = began + patience
            if not self._under_way:
                until = min(until, self._last + calm)
            if (left := until - time.monotonic()) <= 0:
                return
            await asyncio.sleep(min(left, _CALM_SECONDS))


class Pool(Generic[Part]):
    """Parts of one kind. ``take`` and ``give`` take constant time; a task fills the pool.

    Nothing is made before the first ``take`` or ``warm``. Order of events: a part that is given or
    made goes to the request that has waited longest, else on the shelf. A request takes the newest
    part from the shelf; if there is none, it waits, builds or is refused, as ``Size.dry`` says.
    """

    def __init__(
        self,
        name: str,
        size: PoolSize,
        make: Callable[[], Awaitable[Part]],
        discard: Callable[[Part], None],
        gate: LoadGate | None,
        window: float = 0.0,
    ) -> None:
        """Without a gate, refills are not delayed.

        ``window``: its size follows the demand of so many seconds, see ``Demand``.
        """
        self.name, self.size = name, size
        self._demand = Demand(size, window)
        self._make, self._discard, self._gate = make, discard, gate
        self._ready: deque[Part] = deque()
        self._waiting: deque[asyncio.Future[Part]] = deque()
        self._building: set[asyncio.Future[Part]] = set()
        self._wanted = asyncio.Event()
        self._warm_to = 0
        self._full = asyncio.Event()
        self._filler: asyncio.Task[None] | None = None
        self.is_filling = False
        """Whether a part is being made for the shelf, or for who waits."""
        self._closed = False
        self._hits = self._misses = self._made = self._returned = self._failed = 0
        self._filling_seconds = 0.0
        self.making_seconds = 0.0  # the time in ``make``, without pauses for the rate
        self.error: Exception | None = None

    def __len__(self) -> int:
        return len(self._ready)

    def take_ready(self) -> Part | None:
        """Take a ready part, or None; counts a hit or a miss."""
        self._demand.take()
        if self._ready:
            self._hits += 1
            part = self._ready.pop()
        else:
            self._misses += 1
            part = None
        if len(self._ready) < (self._demand.target() if self._demand.follows else self.size.low):
            self._want()
        return part

    async def take(self) -> tuple[Part, bool]:
        """Take a part, and whether it was ready. Raises Failed, and what ``make`` raises."""
        part = self.take_ready()
        if part is not None:
            return part, True
        if self.builds:
            return await self._make(), False
        return await self.wait(), False

    async def take_first(self) -> Part:
        """Make a part for this request; returns another if that is ready sooner.

        If the caller gives up, the part is made for the next. Raises what making raises.
        """
        if self._closed:
            raise self._over()
        waiter: asyncio.Future[Part] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        building = asyncio.ensure_future(self._make())
        self._building.add(building)
        building.add_done_callback(self._deliver)
        return await self._got(waiter)

    def _deliver(self, building: asyncio.Future[Part]) -> None:
        self._building.discard(building)
        if building.cancelled():
            return
        if error := building.exception():
            self._tell(error)
        else:
            self._put(building.result())

    @property
    def builds(self) -> bool:
        """Whether a request builds a part if the pool is empty."""
        return self.size.dry == "build" or self.size.high == 0

    async def wait(self) -> Part:
        """Wait for a part without building one. Raises Failed if refused."""
        if self._closed:
            raise self._over()
        if self.size.dry == "refuse":
            raise Failed(f"no {self.name} is ready", "retry later, or raise the pool's marks")
        self._want()
        waiter: asyncio.Future[Part] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        return await self._got(waiter)

    async def _got(self, waiter: asyncio.Future[Part]) -> Part:
        try:
            return await waiter
        except asyncio.CancelledError:
            with suppress(ValueError):
                self._waiting.remove(waiter)
            if waiter.done() and not waiter.cancelled() and not waiter.exception():
                self.give(waiter.result())
            raise

    def give(self, part: Part) -> None:
        """Return a part that is as new; it is discarded if the pool is full."""
        self._returned += 1
        self._put(part)

    def expect(self, count: int) -> None:
        """Keep this many parts for a window, at most the high mark."""
        self._demand.expect(count)
        if len(self._ready) < self._demand.target():
            self._want()

    def follow(self) -> None:
        """Make what the demand needs, and discard the oldest of the surplus."""
        if len(self._ready) < self._demand.target():
            if self._filler:  # once it was used
                self._want()
            return
        self._demand.settle()
        while len(self._ready) > self._demand.target():
            self._discard(self._ready.popleft())

    def drain(self) -> None:
        """Discard the shelf's parts."""
        while self._ready:
            self._discard(self._ready.pop())

    async def warm(self, count: int | None = None) -> None:
        """Fill up to ``count``, or to the high mark, and wait for that. Raises the failure."""
        count = min(self.size.high, self.size.high if count is None else count)
        self._warm_to = count
        while len(self._ready) < count:
            self._demand.expect(count)  # again: filling may take longer than demand is remembered
            if self._closed:
                raise self._over()
            self.error = None
            self._full.clear()
            self._want()
            await self._full.wait()
            if self.error:
                self._warm_to = 0
                raise self.error

    def counts(self) -> Counts:
        """What it has done so far."""
        rate = self._made / self._filling_seconds if self._filling_seconds else 0.0
        return Counts(
            name=self.name, ready=len(self._ready), low=self.size.low, high=self._demand.target(),
            hits=self._hits, misses=self._misses, made=self._made, returned=self._returned,
            failed=self._failed, fill_rate=round(rate, 1), fill_seconds=self._filling_seconds,
        )  # fmt: skip

    async def close(self) -> None:
        """Stop filling and discard the shelf's parts. Requests that wait, or come later, get
        Failed.
        """
        self._closed = True
        while self._filler and not self._filler.done():
            self._filler.cancel()  # ``make`` may lose a part, as wait_for does before 3.12
            await asyncio.wait((self._filler,), timeout=_RETRY_SECONDS)
        while self._building:
            for building in self._building:
                building.cancel()
            await asyncio.wait(self._building, timeout=_RETRY_SECONDS)
        self._fail(self._over())
        self.drain()

    def _over(self) -> Failed:
        return Failed(f"no {self.name} is made any more", "the runtime is stopping")

    def _put(self, part: Part) -> None:
        self._demand.give()
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(part)
                return
        if len(self._ready) < self._demand.target():
            self._ready.append(part)
        else:
            self._discard(part)

    def _want(self) -> None:
        if self.size.high == 0:
            return
        self._wanted.set()
        if self._filler is None:
            self._filler = asyncio.get_running_loop().create_task(self._fill())

    def _short(self) -> bool:
        return len(self._ready) - self._unserved() < self._demand.target()

    def _half_empty(self) -> bool:
        return len(self._ready) <= self.size.low // 2

    def _unserved(self) -> int:
        """How many waiters have no part being built; below 0, how many are built for the shelf."""
        return len(self._waiting) - len(self._building)

    async def _fill(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._short():
                if self._gate:
                    await self._gate.wait_idle(lambda: self._unserved() > 0, self._half_empty)
                began = time.monotonic()
                self.is_filling = True
                try:
                    part = await self._make()
                except Exception as error:  # also unforeseen errors: a request may wait for a part
                    self.is_filling = False
                    self._failed += 1
                    self._fail(error)
                    await asyncio.sleep(_RETRY_SECONDS)
                    continue
                self.is_filling = False
                made = time.monotonic()
                self._filling_seconds += made - began
                self.making_seconds += made - began
                self._made += 1
                self._put(part)
                if len(self._ready) >= self._warm_to:
                    self._full.set()
                if self._short():
                    await asyncio.sleep(max(0.0, began + 1 / self.size.rate - made))
                    self._filling_seconds += time.monotonic() - made
            self._demand.settle()
            self._full.set()

    def _fail(self, error: Exception) -> None:
        self.error = error
        self._full.set()
        self._tell(error)

    def _tell(self, error: BaseException) -> None:
        while self._unserved() > 0:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(error)
