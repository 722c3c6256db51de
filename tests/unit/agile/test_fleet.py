"""Instances that are kept: what is told to those who wait for one as the runtime stops."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast
from unittest.mock import AsyncMock, MagicMock

import pytest

from firstlight.agile import Config
from firstlight.agile.functions.version import FunctionVersion
from firstlight.agile.serving import Serving, kept_instance
from firstlight.agile.serving.fleet import Fleet
from firstlight.agile.serving.kept_instance import KeptInstance
from firstlight.agile.verify import Unconfined
from firstlight.errors import Failed

VERSION = FunctionVersion(name="hello", kind="image", root="/")


class Started:
    """An instance without one."""

    expiry = None
    is_up = True

    async def stop(self) -> None:
        self.is_up = False


def with_fleet(
    main: Callable[[Fleet, list[Started]], Awaitable[None]], held: bool
) -> list[Started]:
    """``held``: no start ends."""
    started: list[Started] = []

    async def start(_: FunctionVersion) -> KeptInstance:
        started.append(Started())
        if held:
            await asyncio.get_running_loop().create_future()
        return cast(KeptInstance, started[-1])

    async def run() -> None:
        await asyncio.wait_for(main(Fleet(VERSION, start, lambda _: None), started), 60)

    asyncio.run(run())
    return started


async def refused(*waiting: "asyncio.Task[KeptInstance]") -> None:
    for each in waiting:
        with pytest.raises(Failed, match="hello gets no instance: the runtime is stopping"):
            await each


def test_close_fails_waiters_and_stops_starts() -> None:
    async def main(fleet: Fleet, started: list[Started]) -> None:
        waiting = [asyncio.create_task(fleet.take()) for _ in range(50)]
        while not started:
            await asyncio.sleep(0)
        before = len(started)
        await fleet.close()
        assert len(started) == before
        await refused(*waiting, asyncio.create_task(fleet.take()))
        assert fleet.waiting == 0

    with_fleet(main, held=True)


def test_an_instance_that_is_given_back_after_the_end_ends() -> None:
    async def main(fleet: Fleet, started: list[Started]) -> None:
        kept = await fleet.take()
        await fleet.close()
        fleet.give(kept)
        await refused(asyncio.create_task(fleet.take()))
        await fleet.close()
        assert not any(each.is_up for each in started)

    with_fleet(main, held=False)


def test_version_that_goes_is_forgotten_as_not_forked() -> None:
    async def main() -> None:
        runtime = MagicMock(config=Config(), release=AsyncMock())
        serving = Serving(runtime)
        version = FunctionVersion(name="f", kind="python", handler="app.main", revision=7)
        other = FunctionVersion(name="f", kind="python", handler="app.main", revision=8)
        for each in (version, other):
            kept_instance.not_forked(each, Unconfined("it left a thread"), serving._unforked)
        await serving.retire(version)
        assert serving._unforked == {kept_instance.import_of(other)}

    asyncio.run(main())
