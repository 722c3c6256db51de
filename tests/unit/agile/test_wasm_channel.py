"""A connection to a worker that is not to be trusted."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest

from firstlight.agile.wasm import wire
from firstlight.agile.wasm.channel import WAITING_MAX, Channel
from firstlight.errors import Failed

EVENT = wire.event([1])
RESULT = struct.pack("=IIiIIIqqIIq", 0, 1, 0, 0, 0, 0, 1, 2, 0, 0, 2)


def answer(identity: int, first: int, count: int, results: int | None = None) -> bytes:
    return struct.pack("=QII", identity, first, count) + RESULT * (
        count if results is None else results
    )


def with_channel(main: Callable[[Channel, socket.socket], Awaitable[None]]) -> None:
    async def inside() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel = Channel(ours, "f")
        with theirs:
            theirs.settimeout(60)
            await asyncio.wait_for(main(channel, theirs), 60)
        channel.fail(Failed("over"))

    asyncio.run(inside())


def test_answers_come_in_parts_and_in_any_order() -> None:
    async def main(channel: Channel, worker: socket.socket) -> None:
        first = asyncio.ensure_future(channel.ask([EVENT] * 3))
        two = asyncio.ensure_future(channel.ask([EVENT]))
        while channel.waiting < 4:
            await asyncio.sleep(0)
        for message in (answer(2, 0, 1), answer(99, 0, 1), answer(1, 2, 1), answer(1, 0, 2)):
            worker.send(message)
        assert [reply.values for reply in await first] == [(2,)] * 3
        assert len(await two) == 1
        assert channel.waiting == 0

    with_channel(main)


@pytest.mark.parametrize(
    "message",
    [
        b"x",
        answer(1, 0, 4),
        answer(1, 3, 1),
        answer(1, 0xFFFFFFFF, 1),
        answer(1, 0, 0xFFFFFFFF, 3),
        answer(1, 0, 3, 1),
        answer(1, 0, 3)[:-1],
    ],
)
def test_what_was_not_asked_ends_the_connection(message: bytes) -> None:
    async def main(channel: Channel, worker: socket.socket) -> None:
        request = asyncio.ensure_future(channel.ask([EVENT] * 3))
        await asyncio.sleep(0)
        worker.send(message)
        await channel.over
        assert not request.done()  # until it is known how the worker ended
        channel.fail(Failed("the worker ended"))
        with pytest.raises(Failed, match="the worker ended"):
            await request
        with pytest.raises(Failed, match="the worker ended"):
            await channel.ask([EVENT])

    with_channel(main)


def test_an_event_is_answered_once() -> None:
    async def main(channel: Channel, worker: socket.socket) -> None:
        request = asyncio.ensure_future(channel.ask([EVENT] * 3))
        await asyncio.sleep(0)
        worker.send(answer(1, 0, 1))
        worker.send(answer(1, 0, 2))
        await channel.over
        request.cancel()

    with_channel(main)


def test_who_waits_is_counted() -> None:
    async def main(channel: Channel, worker: socket.socket) -> None:
        requests = [asyncio.ensure_future(channel.ask([EVENT])) for _ in range(WAITING_MAX)]
        while channel.waiting < WAITING_MAX:  # most of them wait to be sent
            await asyncio.sleep(0)
        with pytest.raises(Failed, match=f"{WAITING_MAX} events are waiting for the worker of f"):
            await channel.ask([EVENT])
        for _ in range(WAITING_MAX):
            worker.setblocking(False)
            while True:
                try:
                    identity, *_ = wire.head(worker.recv(wire.MESSAGE_MAX))
                    break
                except BlockingIOError:
                    await asyncio.sleep(0)
            while True:
                try:
                    worker.send(answer(identity, 0, 1))
                    break
                except BlockingIOError:
                    await asyncio.sleep(0)
        await asyncio.gather(*requests)
        assert channel.waiting == 0

    with_channel(main)
