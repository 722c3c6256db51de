"""Turns: limits hold, queues are bounded, and no owner starves another."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from firstlight.agile.config import Functions
from firstlight.agile.functions.version import FunctionVersion
from firstlight.agile.serving.answer import Throttled
from firstlight.agile.serving.turns import Turns


def function(name: str, **more: object) -> FunctionVersion:
    return FunctionVersion(name=name, kind="command", **more)  # type: ignore[arg-type]


class Requests:
    """Requests that stay under way until they are told to end."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._tasks = list[asyncio.Task[None]]()
        self.begun = list[str]()
        self.ends = asyncio.Semaphore(0)

    async def ask(self, version: FunctionVersion, count: int = 1) -> None:
        for _ in range(count):
            self._tasks.append(asyncio.create_task(self._request(version)))
        await self.settle()

    async def _request(self, version: FunctionVersion) -> None:
        async with self._turns.turn(version):
            self.begun.append(version.owner or version.name)
            await self.ends.acquire()

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def end(self, count: int) -> None:
        for _ in range(count):
            self.ends.release()
        await self.settle()

    async def over(self) -> None:
        await self.end(len(self._tasks))
        await asyncio.gather(*self._tasks)


def with_turns(main: Callable[[Turns, Requests], Awaitable[None]], **config: object) -> None:
    async def on() -> None:
        turns = Turns(Functions(**config))  # type: ignore[arg-type]
        requests = Requests(turns)
        await main(turns, requests)
        await requests.over()
        assert not turns.waiting()
        assert not turns._of_owner
        assert not turns._of_function

    asyncio.run(asyncio.wait_for(on(), 60))


def test_requests_wait_within_queue() -> None:
    async def main(turns: Turns, requests: Requests) -> None:
        first = function("f", concurrency=2, queue=3)
        await requests.ask(first, 5)
        assert (turns.running("f"), turns.waiting()["f"]) == (2, 3)
        with pytest.raises(Throttled, match="f has 2 instances, and 3 wait, and may have no more"):
            async with turns.turn(first):
                pass
        await requests.ask(function("g"))
        assert turns.running("g") == 1, "another function does not wait"
        await requests.end(2)
        assert turns.running("f") + turns.running("g") == 3

    with_turns(main)


def test_request_without_queue_is_refused_at_once() -> None:
    async def main(turns: Turns, requests: Requests) -> None:
        await requests.ask(function("f", concurrency=1))
        for each in (function("f", concurrency=1), function("g", concurrency=0, queue=5)):
            with pytest.raises(Throttled):
                async with turns.turn(each):
                    pass

    with_turns(main)


def test_an_owner_who_asks_for_much_does_not_starve_another() -> None:
    async def main(turns: Turns, requests: Requests) -> None:
        await requests.ask(function("greedy", owner="greedy"), 100)
        await requests.ask(function("modest", owner="modest"), 6)
        assert requests.begun == ["greedy"] * 8
        await requests.end(8)
        assert Counter(requests.begun[8:])["modest"] >= 4, "half of what became free"
        await requests.end(4)
        assert Counter(requests.begun)["modest"] == 6

    with_turns(main, at_once=8)


def test_owners_can_have_unequal_shares() -> None:
    async def main(turns: Turns, requests: Requests) -> None:
        for owner in ("first", "second"):
            await requests.ask(function(owner, owner=owner), 100)
        for _ in range(12):
            await requests.end(8)
        running = turns._of_owner
        assert (running["first"], running["second"]) == (6, 2)

    with_turns(main, at_once=8, shares={"first": 3.0})


def test_an_owners_queue_is_bounded_and_no_others() -> None:
    async def main(turns: Turns, requests: Requests) -> None:
        await requests.ask(function("f", owner="a"), 3)
        with pytest.raises(Throttled, match="the node answers 1 requests, and 2 of a wait"):
            async with turns.turn(function("f", owner="a")):
                pass
        await requests.ask(function("g", owner="b"), 2)
        assert turns.waiting() == {"f": 2, "g": 2}

    with_turns(main, at_once=1, queue=2)


def test_who_waits_too_long_or_leaves_is_forgotten() -> None:
    async def main(turns: Turns, requests: Requests) -> None:
        first = function("f", concurrency=1, queue=5)
        await requests.ask(first)
        with pytest.raises(Throttled, match=r"had no turn in 0\.01 s"):
            async with turns.turn(first):
                pass
        turns._config = Functions()
        leaves = asyncio.create_task(requests._request(first))
        await requests.settle()
        assert turns.waiting()["f"] == 1
        leaves.cancel()
        await asyncio.wait((leaves,))
        assert turns.waiting()["f"] == 0

    with_turns(main, wait_seconds=0.01)


def test_a_turn_that_comes_as_one_leaves_is_the_next_ones() -> None:
    async def main(turns: Turns, requests: Requests) -> None:
        first = function("f", concurrency=1, queue=5)
        await requests.ask(first)
        leaves = asyncio.create_task(requests._request(first))
        await requests.settle()
        await requests.ask(first)
        requests.ends.release()
        while turns.waiting()["f"] == 2:
            await asyncio.sleep(0)
        leaves.cancel()  # it has its turn, and does not know yet
        await requests.settle()
        assert (turns.running("f"), turns.waiting()["f"]) == (1, 0)

    with_turns(main)


def test_a_limit_that_is_raised_lets_go_on_who_waits() -> None:
    async def main(turns: Turns, requests: Requests) -> None:
        await requests.ask(function("f", concurrency=1, queue=5), 3)
        await requests.ask(function("f", concurrency=4, queue=5))
        assert turns.running("f") == 2
        await requests.end(1)
        assert (turns.running("f"), turns.waiting()["f"]) == (3, 0)

    with_turns(main)


def test_a_turn_that_comes_free_goes_to_nobody_who_gives_up() -> None:
    async def main(turns: Turns, requests: Requests) -> None:
        first = function("f", concurrency=1, queue=2)
        await requests.ask(first)
        leaves = asyncio.create_task(requests._request(first))
        await requests.settle()
        requests.ends.release()
        leaves.cancel()  # before the loop has run either
        await asyncio.gather(leaves, return_exceptions=True)
        await requests.settle()
        assert (turns.running("f"), turns.waiting()["f"]) == (0, 0)
        await requests.ask(first)
        assert turns.running("f") == 1, "its only turn is there for the next"

    with_turns(main)
