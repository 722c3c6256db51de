"""Containers of a burst are made few at once, in order, and none waits for ever."""

import asyncio
from pathlib import Path

import pytest

pytest.importorskip("grpc_tools", reason="needs grpcio-tools")

from firstlight.agile.shim import oci


class Makers:
    """Containers being made; each is ready when it is allowed to be."""

    def __init__(self, directory: Path) -> None:
        self._runtime = oci.OciRuntime(Path("/bin/true"), directory, directory)
        self.begun: list[int] = []
        self.ready = [asyncio.Event() for _ in range(oci._AT_ONCE + 2)]
        self.tasks = [asyncio.create_task(self._make(number)) for number in range(len(self.ready))]

    async def _make(self, number: int) -> None:
        async with self._runtime.turn():
            self.begun.append(number)
            await self.ready[number].wait()

    async def begin(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.begun) < count:
                await asyncio.sleep(0)

    async def end(self) -> None:
        for event in self.ready:
            event.set()
        async with asyncio.timeout(60):
            await asyncio.gather(*self.tasks)


def test_the_next_begins_when_one_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oci, "_PATIENCE_SECONDS", 3600.0)

    async def check() -> None:
        makers, first = Makers(tmp_path), list(range(oci._AT_ONCE))
        await makers.begin(len(first))
        for _ in range(100):
            await asyncio.sleep(0)
        assert makers.begun == first
        makers.ready[0].set()
        await makers.begin(len(first) + 1)
        assert makers.begun == [*first, len(first)]
        await makers.end()

    asyncio.run(check())


def test_one_that_has_waited_long_goes_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oci, "_PATIENCE_SECONDS", 0.01)

    async def check() -> None:
        makers = Makers(tmp_path)
        await makers.begin(len(makers.ready))
        await makers.end()
        assert makers.begun == list(range(len(makers.ready)))

    asyncio.run(check())
