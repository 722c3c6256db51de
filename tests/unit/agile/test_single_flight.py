"""What is made once, whoever asks meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from firstlight.agile.single_flight import SingleFlight
from firstlight.errors import Failed


class Maker:
    """Makes numbers, each when it is allowed to; fails when ``broken``."""

    def __init__(self) -> None:
        self.begun, self.ended = 0, 0
        self.broken = False
        self.allowed = asyncio.Event()

    async def make(self) -> int:
        self.begun += 1
        try:
            await self.allowed.wait()
            if self.broken:
                raise OSError("broken")
            return self.begun
        finally:
            self.ended += 1


def with_once(main: Callable[[SingleFlight[int], Maker], Awaitable[None]]) -> None:
    async def run() -> None:
        await asyncio.wait_for(main(SingleFlight(), Maker()), 60)

    asyncio.run(run())


async def asked(once: SingleFlight[int], maker: Maker, count: int) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(once.get(b"key", maker.make)) for _ in range(count)]
    while not maker.begun:
        await asyncio.sleep(0)
    return tasks


def test_all_who_ask_get_the_same_and_others_keys_another() -> None:
    async def main(once: SingleFlight[int], maker: Maker) -> None:
        tasks = await asked(once, maker, 3)
        maker.allowed.set()
        assert await asyncio.gather(*tasks) == [1, 1, 1]
        assert await once.get(b"key", maker.make) == 1
        assert await once.get(b"other", maker.make) == 2
        assert once.values() == [1, 2]

    with_once(main)


def test_single_flight_shares_failure_and_retries() -> None:
    async def main(once: SingleFlight[int], maker: Maker) -> None:
        maker.broken = True
        tasks = await asked(once, maker, 3)
        maker.allowed.set()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in errors] == [OSError] * 3
        assert once.values() == []
        maker.broken = False
        assert await once.get(b"key", maker.make) == 2

    with_once(main)


def test_one_who_gives_up_ends_nothing_for_the_others() -> None:
    async def main(once: SingleFlight[int], maker: Maker) -> None:
        first, second = await asked(once, maker, 2)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        maker.allowed.set()
        assert await second == 1

    with_once(main)


def test_what_is_being_made_ends_with_it() -> None:
    async def main(once: SingleFlight[int], maker: Maker) -> None:
        [task] = await asked(once, maker, 1)
        await once.close()
        assert (maker.begun, maker.ended) == (1, 1)
        with pytest.raises(Failed, match="is stopping"):
            await task
        assert once.values() == []

    with_once(main)
