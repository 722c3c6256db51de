"""How the HTTP server listens, and what it holds."""

import asyncio
import select
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from firstlight.agile.config import Http
from firstlight.agile.http import app, bounded, connection


def test_answers_are_sent_at_once() -> None:
    """asyncio sets TCP_NODELAY on what a socket accepts only if its protocol is named."""
    with app._listening("127.0.0.1:0") as listening:
        assert listening.proto == socket.IPPROTO_TCP


LARGE = 8 << 20


class Server:
    """A server whose requests wait for ``go`` when they have been read."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client, self.go, self.under_way = client, asyncio.Event(), 0

    async def answer(self, request: Request) -> Response:
        await request.body()
        self.under_way += 1
        await self.go.wait()
        return Response(bytes(LARGE) if request.url.path == "/large" else b"done")

    def post(
        self, size: int, path: str = "/f", *, keep: bool = True
    ) -> "asyncio.Task[httpx.Response]":
        headers = {} if keep else {"connection": "close"}
        content = bytes(size)
        return asyncio.create_task(
            self.client.post(path, content=content, headers=headers, timeout=60)
        )


def with_server(tmp_path: Path, main: Callable[[Server], Awaitable[None]]) -> None:
    connection.Connection._all.clear()  # what tests before it left

    async def inside() -> None:
        path = str(tmp_path / "http")
        transport = httpx.AsyncHTTPTransport(uds=path, limits=httpx.Limits(max_connections=100))
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
            server = Server(client)
            routes = [Route("/{rest:path}", server.answer, methods=["POST"])]
            async with app.served(Http(listen=f"unix:{path}"), routes):
                await asyncio.wait_for(main(server), 60)

    asyncio.run(inside())


def test_a_request_under_way_when_the_server_ends_has_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_CLOSE_SECONDS", 1)
    begun: asyncio.Queue[None] = asyncio.Queue()

    async def never(_: Request) -> Response:
        begun.put_nowait(None)
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def main() -> None:
        path = str(tmp_path / "http")
        transport = httpx.AsyncHTTPTransport(uds=path)
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
            routes = [Route("/{rest:path}", never)]
            async with app.served(Http(listen=f"unix:{path}"), routes):
                asked = [asyncio.create_task(client.get(path, timeout=60))
                         for path in ("/f", "/function/f/")]  # fmt: skip
                for _ in asked:
                    await asyncio.wait_for(begun.get(), 60)
            answers = await asyncio.wait_for(asyncio.gather(*asked), 60)
        assert [each.status_code for each in answers] == [500, 503]
        assert all("the runtime stops" in each.json()["message"].lower() for each in answers)

    asyncio.run(main())


async def answered(requests: "list[asyncio.Task[httpx.Response]]") -> list[int]:
    done = await asyncio.gather(*requests)
    for each in done:
        if each.status_code == 429:
            assert each.headers["x-amzn-errortype"] == "TooManyRequestsException"
            assert each.json()["Reason"] == "ConcurrentInvocationLimitExceeded"
    return sorted(each.status_code for each in done)


def test_requests_beyond_the_most_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "REQUESTS_MOST", 8)

    async def main(server: Server) -> None:
        first = [server.post(10) for _ in range(8)]
        while server.under_way < 8:
            await asyncio.sleep(0.01)
        assert await answered([server.post(10) for _ in range(12)]) == [429] * 12
        server.go.set()
        assert await answered(first) == [200] * 8
        assert await answered([server.post(10) for _ in range(4)]) == [200] * 4

    with_server(tmp_path, main)


def test_large_bodies_are_refused_unless_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "BYTES_MOST", 1 << 20)

    async def main(server: Server) -> None:
        first = [server.post(400_000) for _ in range(2)]
        while server.under_way < 2:
            await asyncio.sleep(0.01)
        assert await answered([server.post(400_000) for _ in range(3)]) == [429] * 3
        streamed = [server.post(2_000_000, "/function/f/x") for _ in range(2)]
        server.go.set()
        assert await answered(first + streamed) == [200] * 4
        for _ in range(5):
            assert await answered([server.post(1_000_000)]) == [200]

    with_server(tmp_path, main)


ENDLESS = {
    "a header": (b"POST / HTTP/1.1\r\nhost: x\r\nx: ", b"y" * 65536),
    "headers": (b"POST / HTTP/1.1\r\nhost: x\r\n", b"x: y\r\n" * 10000),
    "a path": (b"POST /", b"y" * 65536),
    "what follows a body": (
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\ny\r\n0\r\n",
        b"x: y\r\n" * 10000,
    ),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_what_has_no_end_is_not_read_for_ever(tmp_path: Path, what: str) -> None:
    begin, part = ENDLESS[what]

    async def main(server: Server) -> None:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "http")
        sent = 0
        with suppress(ConnectionError):
            writer.write(begin)
            while not reader.at_eof() and sent < 64 << 20:
                writer.write(part)
                await writer.drain()
                sent += len(part)
        writer.close()
        assert sent < 64 << 20
        assert server.under_way == 0

    with_server(tmp_path, main)


def test_a_long_header_and_a_late_body_are_read(tmp_path: Path) -> None:
    async def main(server: Server) -> None:
        server.go.set()
        reader, writer = await asyncio.open_unix_connection(tmp_path / "http")
        for _ in range(3):
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nx: ")
            writer.write(b"y" * 200_000 + b"\r\n\r\n")
            await writer.drain()
            writer.write(b"ok")
            assert b"200 OK" in await reader.readuntil(b"done")
        writer.close()

    with_server(tmp_path, main)


def test_a_head_that_does_not_come_ends_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SECONDS", 0.1)

    async def main(server: Server) -> None:
        server.go.set()
        for begin in (
            b"",
            b"POST / HTT",
            b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\nP",
        ):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "http")
            writer.write(begin)
            with suppress(ConnectionError):
                await reader.read()
            writer.close()

    with_server(tmp_path, main)


def test_a_body_that_stops_ends_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SECONDS", 0.1)

    async def main(_: Server) -> None:
        for begin in (b"content-length: 9\r\n\r\nab", b"transfer-encoding: chunked\r\n\r\n9;"):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "http")
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\n" + begin)
            with suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()

    with_server(tmp_path, main)


def test_an_answer_that_nobody_reads_ends_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SECONDS", 0.1)

    async def main(server: Server) -> None:
        server.go.set()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "http"))
            client.send(b"POST /large HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
            poll = select.poll()
            poll.register(client, 0)  # hung up
            assert await asyncio.to_thread(poll.poll, 50_000)

    with_server(tmp_path, main)


@pytest.mark.parametrize("most", ["requests", "connections"])
def test_slow_clients_take_nobody_elses_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: str
) -> None:
    if most == "requests":
        monkeypatch.setattr(bounded, "REQUESTS_MOST", 16)
    else:
        monkeypatch.setattr(connection, "CONNECTIONS_MOST", 16)
    monkeypatch.setattr(connection, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(connection, "LOOK_SECONDS", 0.0)  # or it depends on when a second is over

    async def main(server: Server) -> None:
        server.go.set()
        slow = []
        for number in range(60):
            _, writer = await asyncio.open_unix_connection(tmp_path / "http")
            request = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nx"
            writer.write(request[: (0, 24, len(request))[number % 3]])  # nothing, or a part of it
            slow.append(writer)
            posts = [server.post(10), server.post(10, keep=False)]
            assert await answered(posts) == [200, 200]
        for writer in slow:
            writer.close()

    with_server(tmp_path, main)
