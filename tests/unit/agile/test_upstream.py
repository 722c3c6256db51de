"""Requests to a server, over sockets of this process."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import h11
import pytest

from firstlight.agile.serving.upstream import (
    Broken,
    Exchange,
    Late,
    Malformed,
    Unreached,
    Upstream,
)
from firstlight.agile.sockets import is_readable

_Server = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
_PART = bytes(1 << 16)
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def _served(
    server: _Server, ask: Callable[[Upstream], Awaitable[None]], seconds: float,
    is_alive: bool = True,
) -> None:  # fmt: skip
    async def main() -> None:
        listener = await asyncio.start_server(server, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        upstream = Upstream("127.0.0.1", port, seconds, lambda: is_alive)
        async with asyncio.timeout(20), listener:
            await ask(upstream)
            upstream.close()

    asyncio.run(main())


async def _answered(
    upstream: Upstream, method: str = "GET", body: AsyncIterator[bytes] | None = None
) -> tuple[int, int]:
    """The status, and the bytes of the content."""
    headers = [("Host", "a"), *([("Transfer-Encoding", "chunked")] if body else [])]
    request = h11.Request(method=method, target="/", headers=headers)
    answer = await upstream.ask(request, body)
    try:
        return answer.status, sum([len(part) async for part in answer.parts()])
    finally:
        await answer.close()


async def _body(parts: int, then: Exception | None = None) -> AsyncIterator[bytes]:
    for _ in range(parts):
        yield _PART
    if then:
        raise then


def test_an_answer_is_streamed_while_the_request_is() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not (data := await reader.read(1 << 16)).endswith(b"0\r\n\r\n"):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def ask(upstream: Upstream) -> None:
        status, size = await _answered(upstream, "POST", _body(256))
        assert status == 200
        assert size > 255 << 16

    _served(echo, ask, 5)


def test_early_answer_arrives_during_upload() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nno!")
        writer.close()  # with a reset, since there is more to read

    async def ask(upstream: Upstream) -> None:
        for _ in range(20):
            assert await _answered(upstream, "POST", _body(64)) == (413, 3)

    _served(refuse, ask, 5)


def test_idempotent_request_is_repeated_on_lost_connection() -> None:
    connections = 0

    async def one_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(_ANSWER)
        await reader.read(1)
        writer.close()

    async def ask(upstream: Upstream) -> None:
        assert await _answered(upstream) == await _answered(upstream) == (200, 2)
        assert connections == 2
        with pytest.raises(Broken):
            await _answered(upstream, "DELETE")
        assert connections == 2

    _served(one_answer, ask, 5)


def test_each_failure_has_its_kind() -> None:
    async def fails(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"PUT"):
            await reader.read()
        if head.startswith(b"PATCH"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok")
        if head.startswith(b"TRACE"):
            writer.write(b"no HTTP\r\n\r\n")
        writer.close()

    async def ask(upstream: Upstream) -> None:
        for method, kind in (("GET", Broken), ("PATCH", Broken), ("TRACE", Malformed)):
            with pytest.raises(Broken) as broken:
                await _answered(upstream, method)
            assert broken.type is kind
        with pytest.raises(Late):
            await _answered(upstream, "PUT")
        with pytest.raises(Late):
            await _answered(upstream, "PUT", _body(1))
        with pytest.raises(LookupError, match="the client left"):
            await _answered(upstream, "PUT", _body(1, LookupError("the client left")))

    _served(fails, ask, 0.1)
    with pytest.raises(Unreached, match="failed"):
        asyncio.run(_answered(Upstream("127.0.0.1", 1, 1, lambda: True)))


def test_a_server_that_has_ended_is_sent_nothing_at_its_address() -> None:
    received = []

    async def another(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(1))
        writer.close()

    async def ask(upstream: Upstream) -> None:
        with pytest.raises(Unreached, match="has ended"):
            await _answered(upstream)
        while not received:
            await asyncio.sleep(0)

    _served(another, ask, 5, is_alive=False)
    assert received == [b""]


def test_a_client_is_not_waited_for_on_the_server_s_time() -> None:
    async def whole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"0\r\n\r\n")
        writer.write(_ANSWER)

    async def slow() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(0.3)

    async def ask(upstream: Upstream) -> None:
        assert await _answered(upstream, "POST", slow()) == (200, 2)

    _served(whole, ask, 0.1)


@pytest.mark.parametrize(
    ("head", "flood"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 1000),
        (b"HTTP/1.1 200 OK\r\n\r\n", bytes(1 << 20)),
        (b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n", bytes(1 << 20)),
    ],
    ids=["chunks", "body", "another protocol"],
)
def test_an_endless_answer_leaves_others_their_turn(head: bytes, flood: bytes) -> None:
    def server(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.sendall(head)
            while True:
                connection.sendall(flood)

    async def parts(exchange: Exchange) -> AsyncIterator[bytes]:
        if exchange.status != 101:
            async for part in exchange.parts():
                yield part
        while True:
            yield await exchange.read(1 << 10)

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=server, args=(listener,))
            thread.start()
            upstream = Upstream("127.0.0.1", listener.getsockname()[1], 5, lambda: True)
            headers = [("Host", "a"), ("Connection", "Upgrade"), ("Upgrade", "echo")]
            request = h11.Request(method="GET", target="/", headers=headers)
            exchange = await upstream.ask(request, None)
            await asyncio.to_thread(is_readable, exchange._connection.fileno(), 5)
            turn, passed = asyncio.create_task(asyncio.sleep(0)), 0
            async for _ in parts(exchange):
                passed += 1
                if turn.done() or passed == 100:
                    break
            assert turn.done()
            await exchange.close()
            await asyncio.to_thread(thread.join)

    asyncio.run(main())


def test_endless_interim_answers_are_an_error() -> None:
    number = 3

    async def interim(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 102 Processing\r\n\r\n" * number)
        writer.write(_ANSWER)
        writer.close()

    async def ask(upstream: Upstream) -> None:
        nonlocal number
        assert await _answered(upstream) == (200, 2)
        number = 1000
        with pytest.raises(Malformed, match="100 interim answers"):
            await _answered(upstream)

    _served(interim, ask, 5)
