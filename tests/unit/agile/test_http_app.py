"""How the HTTP server listens, and what it holds."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from firstlight.agile.config import Http
from firstlight.agile.http import app, bounded


def test_answers_are_sent_at_once() -> None:
    """asyncio sets TCP_NODELAY on what a socket accepts only if its protocol is named."""
    with app._listening("127.0.0.1:0") as listening:
        assert listening.proto == socket.IPPROTO_TCP


class Server:
    """A server whose requests wait for ``go`` when they have been read."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client, self.go, self.under_way = client, asyncio.Event(), 0

    async def answer(self, request: Request) -> Response:
        await request.body()
        self.under_way += 1
        await self.go.wait()
        return Response(b"done")

    def post(self, size: int, path: str = "/f") -> "asyncio.Task[httpx.Response]":
        return asyncio.create_task(self.client.post(path, content=bytes(size), timeout=60))


def with_server(tmp_path: Path, main: Callable[[Server], Awaitable[None]]) -> None:
    async def inside() -> None:
        path = str(tmp_path / "http")
        transport = httpx.AsyncHTTPTransport(uds=path, limits=httpx.Limits(max_connections=100))
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
            server = Server(client)
            routes = [Route("/{rest:path}", server.answer, methods=["POST"])]
            async with app.served(Http(listen=f"unix:{path}"), routes):
                await asyncio.wait_for(main(server), 60)

    asyncio.run(inside())


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


def test_bodies_beyond_the_most_are_refused_by_name_but_where_they_are_passed_on(
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
