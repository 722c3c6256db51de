"""The pool: hits and misses, marks, dry policies, and a refill that keeps out of the way."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.agile.config import PoolSize
from firstlight.agile.parts import pool
from firstlight.agile.parts.pool import LoadGate, Pool
from firstlight.agile.parts.shelves import Shelf
from firstlight.errors import Failed


class Maker:
    """Makes numbers; holds each back until ``allowed``, fails when ``broken``."""

    def __init__(self, allowed: int = 1000) -> None:
        self.made, self.discarded = 0, list[int]()
        self.broken: Exception | None = None
        self.permits = asyncio.Semaphore(allowed)

    async def make(self) -> int:
        await self.permits.acquire()
        if self.broken:
            raise self.broken
        self.made += 1
        return self.made


def with_pool(
    main: Callable[[Pool[int], Maker], Awaitable[None]],
    gate: LoadGate | None = None,
    allowed: int = 1000,
    **size: object,
) -> None:
    async def run() -> None:
        maker = Maker(allowed)
        sized = PoolSize(**({"low": 2, "high": 4, "rate": 1e6} | size))  # type: ignore[arg-type]
        pool = Pool("part", sized, maker.make, maker.discarded.append, gate or LoadGate())
        await asyncio.wait_for(main(pool, maker), 60)
        await pool.close()
        assert len(pool) == 0

    asyncio.run(run())


async def turns(count: int = 50) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_pool_that_no_one_uses_makes_nothing() -> None:
    async def main(pool: Pool[int], maker: Maker) -> None:
        await turns()
        assert (maker.made, len(pool)) == (0, 0)

    with_pool(main)


def test_warming_fills_to_the_high_mark_or_to_what_was_asked() -> None:
    async def main(pool: Pool[int], maker: Maker) -> None:
        await pool.warm()
        assert len(pool) == maker.made == 4
        await pool.warm(100)
        assert maker.made == 4

    with_pool(main)


def test_take_hits_and_refills_below_low_mark() -> None:
    async def main(pool: Pool[int], maker: Maker) -> None:
        await pool.warm()
        assert [(await pool.take())[1] for _ in range(2)] == [True, True]
        await asyncio.sleep(0.05)
        assert maker.made == 4, "it was filled above its low mark"
        await pool.take()
        await pool.warm()
        assert maker.made == 7
        counts = pool.counts()
        assert (counts.hits, counts.misses, counts.ready) == (3, 0, 4)

    with_pool(main)


def test_a_dry_pool_refuses() -> None:
    async def main(pool: Pool[int], maker: Maker) -> None:
        with pytest.raises(Failed, match="no part is ready"):
            await pool.take()
        assert pool.counts().misses == 1

    with_pool(main, dry="refuse")


def test_a_dry_pool_builds() -> None:
    async def main(pool: Pool[int], maker: Maker) -> None:
        assert await pool.take() == (1, False)

    with_pool(main, dry="build", high=0, low=0)


def test_a_dry_pool_lets_wait_and_serves_in_order() -> None:
    async def main(pool: Pool[int], maker: Maker) -> None:
        waiting = [asyncio.ensure_future(pool.take()) for _ in range(3)]
        await turns()
        assert not any(each.done() for each in waiting)
        pool.give(100)
        assert await waiting[0] == (100, False)
        for _ in range(10):
            maker.permits.release()
        assert [(await each)[0] for each in waiting[1:]] == [1, 2]

    with_pool(main, dry="wait", allowed=0)


@pytest.mark.parametrize("error", [Failed("broken"), OSError("broken"), AssertionError("broken")])
def test_waiter_gets_failure_and_next_is_served(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_RETRY_SECONDS", 0.0)

    async def main(pool: Pool[int], maker: Maker) -> None:
        maker.broken = error
        with pytest.raises(type(error), match="broken"):
            await pool.take()
        with pytest.raises(type(error), match="broken"):
            await pool.warm()
        assert pool.counts().failed >= 1
        maker.broken = None
        assert await pool.take() == (1, False)

    with_pool(main, dry="wait")


def test_what_is_ready_first_is_for_who_asked_first() -> None:
    async def main(pool: Pool[int], maker: Maker) -> None:
        asked = [asyncio.ensure_future(pool.take_first()) for _ in range(2)]
        await turns()
        pool.give(100)
        assert await asked[0] == 100
        maker.permits.release()
        assert await asked[1] == 1
        maker.permits.release()
        await turns()
        assert (maker.made, len(pool)) == (2, 1), "what nobody waits for any more is kept"

    with_pool(main, allowed=0)


def test_failed_part_fails_only_requests_without_one() -> None:
    async def main(pool: Pool[int], maker: Maker) -> None:
        asked = [asyncio.ensure_future(pool.take_first()) for _ in range(2)]
        await turns()
        maker.broken = Failed("broken")
        maker.permits.release()
        with pytest.raises(Failed, match="broken"):
            await asked[0]
        pool.give(100)
        assert await asked[1] == 100
        maker.permits.release()
        await turns()
        maker.broken = None
        again = asyncio.ensure_future(pool.take_first())
        maker.permits.release()
        assert await again == 1

    with_pool(main, allowed=0)


def test_cancelled_take_leaves_part_to_next() -> None:
    async def main(pool: Pool[int], maker: Maker) -> None:
        asked = asyncio.ensure_future(pool.take_first())
        await turns()
        asked.cancel()
        maker.permits.release()
        await turns()
        assert pool.take_ready() == 1

    with_pool(main, allowed=0)


def test_one_who_gives_up_waiting_loses_no_part() -> None:
    async def main(pool: Pool[int], maker: Maker) -> None:
        waiting = asyncio.ensure_future(pool.take())
        await turns()
        waiting.cancel()
        await turns()
        pool.give(7)
        assert pool.take_ready() == 7

    with_pool(main, dry="wait", allowed=0)


def test_a_refill_waits_while_requests_are_under_way() -> None:
    gate = LoadGate(patience=1e9)

    async def main(pool: Pool[int], maker: Maker) -> None:
        await pool.warm()
        with gate:
            pool.take_ready()
            await asyncio.sleep(0.05)
            assert maker.made == 4
        await pool.warm()
        assert maker.made == 5

    with_pool(main, gate, low=4)


def test_refill_of_half_empty_pool_is_immediate() -> None:
    gate = LoadGate(patience=1e9)

    async def main(pool: Pool[int], maker: Maker) -> None:
        await pool.warm()
        with gate:
            pool.take_ready()
            await asyncio.sleep(0)  # it waits for a lull from now on
            pool.take_ready()
            while maker.made < 5:
                await asyncio.sleep(0.001)

    with_pool(main, gate, low=4)


def test_a_refill_does_not_wait_for_ever() -> None:
    gate = LoadGate()

    async def main(pool: Pool[int], maker: Maker) -> None:
        with gate:
            await pool.warm(1)
        assert maker.made == 1

    with_pool(main, gate)


def test_whatever_is_counted_as_made_has_taken_its_time() -> None:
    async def main(pool: Pool[int], maker: Maker) -> None:
        filling = asyncio.ensure_future(pool.warm())
        counted = [pool.counts()]
        while not filling.done():
            await asyncio.sleep(0)
            counted.append(pool.counts())
        assert counted[-1].made == 4
        for before, after in pairwise(counted):
            assert (after.made > before.made) <= (after.fill_seconds > before.fill_seconds)

    with_pool(main, rate=100.0)


def test_what_is_given_to_a_full_pool_is_discarded() -> None:
    async def main(pool: Pool[int], maker: Maker) -> None:
        for part in range(10, 16):
            pool.give(part)
        assert len(pool) == 4
        assert maker.discarded == [14, 15]

    with_pool(main)


@given(st.lists(st.sampled_from(["take", "give", "warm"]), max_size=30))
def test_no_part_is_lost_or_handed_out_twice(actions: list[str]) -> None:
    async def main(pool: Pool[int], maker: Maker) -> None:
        held: set[int] = set()
        for action in actions:
            if action == "take":
                part, _ = await pool.take()
                assert part not in held
                held.add(part)
            elif action == "give" and held:
                pool.give(held.pop())
            elif action == "warm":
                await pool.warm()
            assert len(pool) <= 4
        assert maker.made == len(held) + len(pool) + len(maker.discarded)

    with_pool(main, gate=Calm(), low=0)


class Calm(LoadGate):
    """No requests, no lull to wait for."""

    async def wait_idle(self, urgent: Callable[[], bool], soon: Callable[[], bool]) -> None:
        await asyncio.sleep(0)


def test_close_ends_uncancellable_refill() -> None:
    swallowed: list[int] = []

    async def make() -> int:
        if swallowed:
            raise Failed("nothing is made any more")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:  # as asyncio.wait_for does when both come at once
            swallowed.append(1)
        return 1

    async def run() -> None:
        pool = Pool("part", PoolSize(low=1, high=4), make, lambda _: None, LoadGate())
        pool.take_ready()
        await turns()
        await asyncio.wait_for(pool.close(), 60)

    asyncio.run(run())
    assert swallowed == [1]


@pytest.mark.parametrize("dry", ["wait", "build", "refuse"])
def test_close_fails_waiting_and_later_requests(dry: str) -> None:
    async def main(pool: Pool[int], maker: Maker) -> None:
        waiting: list[asyncio.Task[object]] = [asyncio.create_task(pool.warm())]
        if dry == "wait":
            waiting += [asyncio.create_task(pool.wait()) for _ in range(3)]
        await turns()
        await pool.close()
        for each in (*waiting, asyncio.create_task(pool.warm()), asyncio.create_task(pool.wait())):
            with pytest.raises(Failed, match=r"is made any more|is ready"):
                await each

    with_pool(main, allowed=0, dry=dry)


def test_requests_that_wait_for_a_shelf_on_close_get_an_error() -> None:
    async def main() -> None:
        made = asyncio.Event()

        async def put() -> None:
            await made.wait()

        shelf = Shelf("part", PoolSize(low=1, high=4), put, LoadGate(), lambda: None)
        waiting = asyncio.create_task(shelf.warm())
        await turns()
        await shelf.close()
        for each in (waiting, asyncio.create_task(shelf.warm())):
            with pytest.raises(Failed, match="is made any more"):
                await asyncio.wait_for(each, 60)

    asyncio.run(main())


def test_shelf_makes_next_part_with_previous() -> None:
    """The node asks for it as soon as it has the other, before the filler has gone on."""

    async def main() -> None:
        put, both = list[int](), asyncio.Event()

        async def one() -> None:
            put.append(1)
            if len(put) == 1:
                asyncio.get_running_loop().call_soon(shelf.want, 1)
            else:
                both.set()

        shelf = Shelf("part", PoolSize(low=0, high=0), one, LoadGate(), lambda: None)
        shelf.want(1)
        async with asyncio.timeout(10):
            await both.wait()
        await shelf.close()

    asyncio.run(main())
