"""When a connection of the HTTP server ends because a body stops, by a clock that is set."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import Mock

import pytest
import uvicorn
from uvicorn.server import ServerState

from firstlight.agile.http.connection import BODY_SECONDS, Connection

HEAD = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n"
LONG = 1 << 20


class Clock:
    """An event loop whose time passes when it is told."""

    def __init__(self) -> None:
        self.now, self.timers = 0.0, list[tuple[float, Callable[[], None], Mock]]()

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Mock:
        handle = Mock()
        self.timers.append((self.now + seconds, callback, handle))
        return handle

    def create_task(self, work: Any) -> "asyncio.Task[None]":
        return asyncio.get_running_loop().create_task(work)

    def passes(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [one for one in self.timers if one[0] <= end and not one[2].cancel.called]:
            timer = min(due, key=lambda one: one[0])
            self.timers.remove(timer)
            self.now = timer[0]
            timer[1]()
        self.now = end


class Client:
    """A connection, and an application that reads when ``read`` is set and answers at ``go``."""

    def __init__(self) -> None:
        self.clock, self.transport = Clock(), Mock()
        self.transport.get_extra_info.return_value = None
        self.transport.is_closing.return_value = False
        self.read, self.go = asyncio.Event(), asyncio.Event()
        config = uvicorn.Config(
            self.answer, interface="asgi3", ws="none", lifespan="off", log_config=None,
            proxy_headers=False,
        )  # fmt: skip
        loop: Any = self.clock
        self.connection = Connection(config, ServerState(), {}, loop)
        self.connection.connection_made(self.transport)

    async def answer(self, _scope: Any, receive: Any, send: Any) -> None:
        await self.read.wait()
        while (await receive()).get("more_body"):
            pass
        await self.go.wait()
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    async def sends(self, data: bytes) -> None:
        self.connection.data_received(data)
        await self.settled()

    async def settled(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    @property
    def ended(self) -> bool:
        return bool(self.transport.abort.called)


async def goes_on_while_parts_come(client: Client) -> None:
    client.read.set()
    await client.sends(HEAD % 100 + b"\r\n")
    for _ in range(100):
        client.clock.passes(BODY_SECONDS - 1)
        await client.sends(b"x")
    client.clock.passes(10 * BODY_SECONDS)
    assert not client.ended  # it waits for its answer


async def ends_when_none_comes(client: Client) -> None:
    client.read.set()
    await client.sends(HEAD % 100 + b"\r\nx")
    client.clock.passes(BODY_SECONDS - 1)
    await client.sends(b"x")
    client.clock.passes(BODY_SECONDS - 1)
    assert not client.ended
    client.clock.passes(2)
    assert client.ended


async def goes_on_while_reading_is_paused(client: Client) -> None:
    await client.sends(HEAD % LONG + b"\r\n" + bytes(LONG // 2))
    assert client.transport.pause_reading.called
    client.clock.passes(10 * BODY_SECONDS - 1)
    client.read.set()
    await client.settled()
    assert client.transport.resume_reading.called
    client.clock.passes(BODY_SECONDS - 1)
    assert not client.ended
    client.clock.passes(2)
    assert client.ended


async def goes_on_while_it_is_not_told_to_continue(client: Client) -> None:
    await client.sends(HEAD % 2 + b"expect: 100-continue\r\n\r\n")
    client.clock.passes(10 * BODY_SECONDS - 1)
    client.read.set()
    await client.settled()
    client.clock.passes(BODY_SECONDS - 1)
    assert not client.ended
    await client.sends(b"ok")
    client.clock.passes(10 * BODY_SECONDS)
    assert not client.ended


async def ends_though_it_is_answered(client: Client) -> None:
    client.connection.app = refuses
    await client.sends(HEAD % 100 + b"\r\nx")
    assert client.transport.write.called
    await client.sends(b"x")  # so that it is not kept alive for the next
    client.clock.passes(BODY_SECONDS + 1)
    assert client.ended


async def goes_on_without_a_body(client: Client) -> None:
    for more in (b"", b"connection: upgrade\r\nupgrade: websocket\r\n"):
        await client.sends(b"GET / HTTP/1.1\r\nhost: x\r\n" + more + b"\r\n")
        client.clock.passes(10 * BODY_SECONDS)
    assert not client.ended


async def refuses(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204})
    await send({"type": "http.response.body"})


@pytest.mark.parametrize(
    "case",
    [
        goes_on_while_parts_come, ends_when_none_comes, goes_on_while_reading_is_paused,
        goes_on_while_it_is_not_told_to_continue, ends_though_it_is_answered,
        goes_on_without_a_body,
    ],
    ids=lambda case: case.__name__,
)  # fmt: skip
def test_a_connection(case: Callable[[Client], Awaitable[None]]) -> None:
    async def main() -> None:
        client = Client()
        await asyncio.wait_for(case(client), 60)
        for task in client.connection.tasks:
            task.cancel()

    asyncio.run(main())
