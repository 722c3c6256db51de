"""When a connection of the HTTP server ends because of its client, by a clock that is set."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import Mock, patch

import pytest
import uvicorn
from uvicorn.server import ServerState

from firstlight.agile.http.connection import (
    LOOK_SECONDS,
    PIPELINED_MOST,
    RATE_LEAST,
    SECONDS,
    SLOW_SECONDS,
    SWITCH,
    Connection,
)

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

    def call_soon(self, callback: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(callback)

    def create_task(self, work: Any) -> "asyncio.Task[None]":
        return asyncio.get_running_loop().create_task(work)

    def passes(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [each for each in self.timers if each[0] <= end and not each[2].cancel.called]:
            timer = min(due, key=lambda each: each[0])
            self.timers.remove(timer)
            self.now = timer[0]
            timer[1]()
        self.now = end


class Client:
    """A connection, and an application that reads when ``read`` is set and answers at ``go``."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock, self.transport = clock or Clock(), Mock()
        self.transport.get_extra_info.return_value = None
        self.transport.is_closing.return_value = False
        self.unread(0)
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

    def unread(self, size: int) -> None:
        self.transport.get_write_buffer_size.return_value = size

    async def settled(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    @property
    def ended(self) -> bool:
        return bool(self.transport.abort.called)


async def goes_on_while_parts_come(client: Client) -> None:
    client.read.set()
    part = bytes(int(SECONDS * RATE_LEAST))
    await client.sends(HEAD % (100 * len(part)) + b"\r\n")
    for _ in range(100):
        client.clock.passes(SECONDS - 1)
        await client.sends(part)
    client.clock.passes(10 * SECONDS)
    assert not client.ended  # it waits for its answer


async def ends_though_a_byte_comes_now_and_then(client: Client) -> None:
    client.read.set()
    await client.sends(HEAD % 100 + b"\r\n")
    for _ in range(3):
        client.clock.passes(SECONDS - 1)
        await client.sends(b"x")
    assert client.ended


async def has_no_more_patience_for_having_been_quick(client: Client) -> None:
    client.read.set()
    await client.sends(HEAD % LONG + b"\r\n")
    for _ in range(10):
        await client.sends(bytes(LONG // 20))
    client.clock.passes(2 * SECONDS + 1)
    assert client.ended


async def ends_when_its_answer_is_not_read(client: Client) -> None:
    await answered(client)
    client.unread(LONG)
    client.connection.pause_writing()
    client.clock.passes(SECONDS - 1)
    assert not client.ended
    client.clock.passes(2)
    assert client.ended


async def is_answered_no_further_than_it_reads(client: Client) -> None:
    client.unread(LONG)
    client.connection.pause_writing()
    await answered(client)
    assert not client.transport.write.called
    client.unread(0)
    client.connection.resume_writing()
    await client.settled()
    assert client.transport.write.called


async def is_sent_nothing_once_it_is_known_to_have_gone(client: Client) -> None:
    client.transport.is_closing.return_value = True
    await answered(client)
    assert not client.transport.write.called


async def is_sent_the_rest_of_its_answer_before_it_is_closed(client: Client) -> None:
    client.transport.is_closing.return_value = True
    client.unread(100)
    await answered(client)
    assert client.transport.write.called


async def ends_when_the_end_of_its_answer_is_not_read(client: Client) -> None:
    client.unread(100)
    await answered(client)
    client.clock.passes(SECONDS + 1)
    assert client.ended


async def has_as_long_to_read_its_next_answer(client: Client) -> None:
    client.unread(100)
    await answered(client)
    client.clock.passes(SECONDS - 1)
    client.unread(0)
    client.go.clear()
    await client.sends(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    client.unread(100)
    client.go.set()
    await client.settled()
    client.clock.passes(SECONDS - 1)
    assert not client.ended
    client.clock.passes(2)
    assert client.ended


async def has_as_long_to_read_its_next_answer_of_several(client: Client) -> None:
    client.go.clear()
    client.read.set()
    await client.sends(2 * b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    client.unread(LONG)
    client.connection.pause_writing()
    client.clock.passes(SECONDS - 1)
    client.unread(0)
    client.connection.on_response_complete()
    client.unread(100)
    client.connection.on_response_complete()
    client.clock.passes(SECONDS - 1)
    assert not client.ended
    client.clock.passes(2)
    assert client.ended


async def ends_when_its_answer_is_read_by_the_byte(client: Client) -> None:
    await answered(client)
    client.unread(LONG)
    client.connection.pause_writing()
    for read in range(1, 4):
        client.clock.passes(SECONDS - 1)
        client.unread(LONG - read)
    assert client.ended


async def goes_on_while_its_answer_is_read(client: Client) -> None:
    await answered(client)
    unread = 100 * int(SECONDS * RATE_LEAST)
    client.unread(unread)
    client.connection.pause_writing()
    while unread > 0:
        client.clock.passes(SECONDS - 1)
        unread -= int(SECONDS * RATE_LEAST)
        client.unread(unread)
    client.connection.resume_writing()
    client.clock.passes(10 * SECONDS)
    assert not client.ended


async def ends_when_it_asks_for_too_much_at_once(client: Client) -> None:
    await client.sends(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * (PIPELINED_MOST + 2))
    assert len(client.connection.pipeline) == PIPELINED_MOST
    assert b"400 Bad Request" in client.transport.write.call_args[0][0]
    assert client.transport.close.called


async def loses_its_place_if_it_is_the_slowest(client: Client) -> None:
    client.read.set()
    await client.sends(HEAD % 100 + b"\r\nx")
    client.clock.passes(1)
    others = [Client(client.clock) for _ in range(3)]
    await others[0].sends(HEAD % 100 + b"\r\nx")
    await others[1].sends(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")  # the server's turn
    client.clock.passes(SLOW_SECONDS - 2)
    Connection.give_up_slowest()
    assert not client.ended
    client.clock.passes(1)
    Connection.give_up_slowest()
    assert client.ended
    assert not any(other.ended for other in others)
    client.clock.passes(SLOW_SECONDS)
    Connection.give_up_slowest()
    Connection.give_up_slowest()
    Connection.give_up_slowest()
    assert [other.ended for other in others] == [True, False, True]


async def keeps_its_place_while_it_is_quick(client: Client) -> None:
    client.read.set()
    second = bytes(RATE_LEAST)
    await client.sends(HEAD % (100 * len(second)) + b"\r\n")
    for _ in range(int(3 * SLOW_SECONDS)):
        client.clock.passes(1)
        await client.sends(second)
        Connection.give_up_slowest()
    client.clock.passes(SLOW_SECONDS - 1)
    Connection.give_up_slowest()
    assert not client.ended
    client.clock.passes(1)
    Connection.give_up_slowest()
    assert client.ended


async def keeps_its_place_while_its_answer_is_read(client: Client) -> None:
    await answered(client)
    unread = 1000 * RATE_LEAST
    client.unread(unread)
    client.connection.pause_writing()
    for _ in range(int(3 * SLOW_SECONDS)):
        client.clock.passes(1)
        unread -= RATE_LEAST
        client.unread(unread)
        Connection.give_up_slowest()
    assert not client.ended
    client.clock.passes(SLOW_SECONDS)
    Connection.give_up_slowest()
    assert client.ended


async def is_looked_at_once_for_many_requests(client: Client) -> None:
    Connection.give_up_slowest()
    other = Client(client.clock)
    with patch.object(other.connection, "_waited", return_value=1.0) as waited:
        for _ in range(100):
            Connection.give_up_slowest()
        assert not waited.called
        client.clock.passes(LOOK_SECONDS)
        Connection.give_up_slowest()
        assert waited.called


async def answered(client: Client) -> None:
    client.read.set()
    client.go.set()
    await client.sends(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")


async def ends_when_none_comes(client: Client) -> None:
    client.read.set()
    await client.sends(HEAD % 100 + b"\r\nx")
    client.clock.passes(SECONDS - 1)
    assert not client.ended
    client.clock.passes(2)
    assert client.ended


async def goes_on_while_reading_is_paused(client: Client) -> None:
    await client.sends(HEAD % LONG + b"\r\n" + bytes(LONG // 2))
    assert client.transport.pause_reading.called
    client.clock.passes(10 * SECONDS - 1)
    client.read.set()
    await client.settled()
    assert client.transport.resume_reading.called
    client.clock.passes(SECONDS - 1)
    assert not client.ended
    client.clock.passes(2)
    assert client.ended


async def goes_on_while_it_is_not_told_to_continue(client: Client) -> None:
    await client.sends(HEAD % 2 + b"expect: 100-continue\r\n\r\n")
    client.clock.passes(10 * SECONDS - 1)
    client.read.set()
    await client.settled()
    client.clock.passes(SECONDS - 1)
    assert not client.ended
    await client.sends(b"ok")
    client.clock.passes(10 * SECONDS)
    assert not client.ended


async def ends_though_it_is_answered(client: Client) -> None:
    client.connection.app = refuses
    await client.sends(HEAD % 100 + b"\r\nx")
    assert client.transport.write.called
    await client.sends(b"x")  # so that it is not kept alive for the next
    client.clock.passes(SECONDS + 1)
    assert client.ended


async def goes_on_without_a_body(client: Client) -> None:
    for more in (b"", b"connection: upgrade\r\nupgrade: websocket\r\n"):
        await client.sends(b"GET / HTTP/1.1\r\nhost: x\r\n" + more + b"\r\n")
        client.clock.passes(10 * SECONDS)
    assert not client.ended


async def refuses(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204})
    await send({"type": "http.response.body"})


@pytest.mark.parametrize(
    "case",
    [
        goes_on_while_parts_come, ends_though_a_byte_comes_now_and_then,
        has_no_more_patience_for_having_been_quick, ends_when_its_answer_is_not_read,
        is_answered_no_further_than_it_reads,
        is_sent_nothing_once_it_is_known_to_have_gone,
        is_sent_the_rest_of_its_answer_before_it_is_closed,
        ends_when_the_end_of_its_answer_is_not_read, has_as_long_to_read_its_next_answer,
        has_as_long_to_read_its_next_answer_of_several, ends_when_its_answer_is_read_by_the_byte,
        goes_on_while_its_answer_is_read, ends_when_it_asks_for_too_much_at_once,
        loses_its_place_if_it_is_the_slowest, keeps_its_place_while_it_is_quick,
        keeps_its_place_while_its_answer_is_read, is_looked_at_once_for_many_requests,
        ends_when_none_comes, goes_on_while_reading_is_paused,
        goes_on_while_it_is_not_told_to_continue, ends_though_it_is_answered,
        goes_on_without_a_body,
    ],
    ids=lambda case: case.__name__,
)  # fmt: skip
def test_a_connection(case: Callable[[Client], Awaitable[None]]) -> None:
    async def main() -> None:
        Connection._all.clear()
        Connection._looked = float("-inf")
        client = Client()
        await asyncio.wait_for(case(client), 60)
        for task in client.connection.tasks:
            task.cancel()

    asyncio.run(main())


def test_answer_head_does_not_wait_for_body() -> None:
    async def main() -> None:
        client = Client()

        async def answers(scope: Any, _receive: Any, send: Any) -> None:
            headers = [(b"content-length", b"4")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            if scope["path"] == "/later":
                await client.go.wait()
            await send({"type": "http.response.body", "body": b"body"})

        client.connection.app = answers
        await client.sends(b"GET /now HTTP/1.1\r\nhost: x\r\n\r\n")
        await client.sends(b"GET /later HTTP/1.1\r\nhost: x\r\n\r\n")
        client.go.set()
        await client.settled()
        head = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"
        written = [call.args[0] for call in client.transport.write.call_args_list]
        assert written == [head + b"body", head, b"body"]

    asyncio.run(main())


UPGRADE = b"GET /s HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nhost: x\r\n\r\n"


def test_bytes_after_upgrade_belong_to_new_protocol() -> None:
    async def main() -> None:
        client, read = Client(), b""

        async def switches(scope: Any, _receive: Any, _send: Any) -> None:
            nonlocal read
            await client.go.wait()
            switched = scope["extensions"][SWITCH](b"head")
            read = await switched.reader.read()
            await switched.write(b"after")
            client.unread(5)
            switched.close()

        client.connection.app = switches
        await client.sends(UPGRADE + b"one ")
        await client.sends(b"two ")
        client.go.set()
        await client.settled()
        client.connection.data_received(NEXT)
        client.clock.passes(10 * SECONDS)
        assert not client.ended
        switched = client.connection._switched
        assert switched
        switched.reader.feed_eof()
        await asyncio.wait(client.connection.tasks, timeout=60)
        assert read == b"one two " + NEXT
        assert [each.args for each in client.transport.write.call_args_list] == [
            (b"head",), (b"after",)]  # fmt: skip
        client.clock.passes(SECONDS + 1)
        assert client.ended  # nobody reads the end

    asyncio.run(main())


@pytest.mark.parametrize("at_once", [1, 50, 1 << 10])
@pytest.mark.parametrize("asked", [b"h2c", b"websocket"])
def test_upgrade_request_keeps_its_content(asked: bytes, at_once: int) -> None:
    async def main() -> None:
        client, bodies = Client(), []

        async def notes(_: Any, receive: Any, send: Any) -> None:
            body, more = b"", True
            while more:
                message = await receive()
                body, more = body + message["body"], message["more_body"]
            bodies.append(body)
            await send({"type": "http.response.start", "status": 204})
            await send({"type": "http.response.body"})

        client.connection.app = notes
        head = b"POST / HTTP/1.1\r\nconnection: Upgrade\r\nupgrade: %s\r\n" % asked
        sent = b"".join((
            head + b"content-length: 8\r\n\r\nGET / no",
            head + b"transfer-encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n",
            HEAD % 5 + b"\r\nthree",
            head + b"content-length: 0\r\n\r\n",
            head + b"content-length: 6\r\n\r\nfollow", HEAD % 4 + b"\r\nfive",
        ))  # fmt: skip
        for at in range(0, len(sent), at_once):
            await client.sends(sent[at : at + at_once])
        await client.settled()
        assert bodies == [b"GET / no", b"two", b"three", b"", b"follow", b"five"]

    asyncio.run(main())


def test_refused_upgrade_keeps_connection() -> None:
    async def main() -> None:
        client, paths = Client(), []

        async def notes(scope: Any, receive: Any, send: Any) -> None:
            await client.go.wait()
            paths.append(scope["path"])
            await refuses(scope, receive, send)
            if scope["path"] == "/next":
                paths.append(scope["extensions"][SWITCH](b"head"))

        client.connection.app = notes
        await client.sends(UPGRADE + NEXT[:9])
        await client.sends(NEXT[9:])
        assert paths == []
        client.go.set()
        await client.settled()
        assert paths == ["/s", "/next", None]

    asyncio.run(main())
