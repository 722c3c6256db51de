"""The demand for parts, and how pools follow it."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from firstlight.agile.config import PoolSize
from firstlight.agile.parts.demand import Demand
from firstlight.agile.parts.pool import LoadGate, Pool
from firstlight.agile.parts.shelves import Shelf

WINDOW = 10.0


class Clock:
    """Says the time that it is set to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(
    st.lists(st.tuples(st.floats(0, 8), st.integers(-6, 6)), max_size=40),
    st.floats(0, 25),
)
def test_demand_is_maximum_within_window(changes: list[tuple[float, int]], later: float) -> None:
    clock = Clock()
    demand = Demand(PoolSize(low=0, high=1000), WINDOW, clock)
    history, out = [(0.0, 0)], 0
    for pause, change in changes:
        clock.now += pause
        out = max(0, out + change)
        (demand.take if change > 0 else demand.give)(abs(change))
        history.append((clock.now, out))
    clock.now += later
    ends = [time for time, _ in history[1:]] + [clock.now]
    oldest = clock.now - WINDOW
    within = [count for (_, count), end in zip(history, ends, strict=True) if end >= oldest]
    assert demand.target() == max(within)


def test_pool_marks_follow_window() -> None:
    clock = Clock()
    demand = Demand(PoolSize(low=2, high=5), WINDOW, clock)
    assert demand.target() == 2
    demand.take(9)
    assert demand.target() == 5
    demand.settle()
    clock.now = WINDOW + 1
    assert demand.target() == 2
    assert Demand(PoolSize(low=2, high=5), 0, clock).target() == 5
    refuses = Demand(PoolSize(low=2, high=5, dry="refuse"), WINDOW, clock)
    assert (refuses.target(), refuses.follows) == (5, False)


async def filled(pool: Pool[int] | Shelf, count: int) -> None:
    while pool.counts().ready != count:
        await asyncio.sleep(0.001)


def test_pool_fills_to_demand_and_empties_after_window() -> None:
    async def main() -> None:
        clock, discarded = Clock(), list[int]()

        async def make() -> int:
            return 1

        size = PoolSize(low=0, high=8, rate=1e6)
        pool = Pool("part", size, make, discarded.append, LoadGate(), WINDOW)
        pool._demand._clock = clock
        assert pool.take_ready() is None
        await filled(pool, 1)
        for _ in range(5):
            pool.take_ready()
        await filled(pool, 5)
        clock.now = WINDOW - 1
        pool.follow()
        assert (len(pool), discarded) == (5, [])
        pool.take_ready()
        await filled(pool, 5)
        clock.now = WINDOW + 1
        pool.follow()
        assert (len(pool), len(discarded)) == (1, 4)
        clock.now *= 3
        pool.follow()
        assert len(pool) == 0
        await pool.close()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_shelf_fills_to_demand_and_knows_surplus() -> None:
    async def main() -> None:
        clock = Clock()

        async def put() -> None:
            await asyncio.sleep(0)

        size = PoolSize(low=0, high=8, rate=1e6)
        shelf = Shelf("part", size, put, LoadGate(), lambda: None, WINDOW)
        shelf._demand._clock = clock
        shelf.want(3)
        await filled(shelf, 3)
        for _ in range(3):
            shelf.taken()
        await filled(shelf, 3)
        assert shelf.follow() == 0
        clock.now = WINDOW + 1
        assert shelf.follow() == 3
        await shelf.close()

    asyncio.run(asyncio.wait_for(main(), 60))
