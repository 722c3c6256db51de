"""WebSockets of functions: after the handshake, bytes are passed on both ways unexamined."""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from starlette.types import Scope

from firstlight.agile.http.connection import SWITCH, Switched
from firstlight.agile.serving.upstream import Exchange, Headers
from firstlight.errors import Failed

if TYPE_CHECKING:
    from collections.abc import Callable

IDLE_SECONDS = 600.0
"""For so long nothing may come either way."""
_PART = 64 << 10


def asked(scope: Scope) -> bool:
    """Whether a request asks for a WebSocket."""
    words = {b"connection": b"", b"upgrade": b""}
    for name, value in scope["headers"]:
        if name in words:
            words[name] += b"," + value.lower()
    listed = {name: [word.strip() for word in text.split(b",")] for name, text in words.items()}
    return b"upgrade" in listed[b"connection"] and b"websocket" in listed[b"upgrade"]


def switch(scope: Scope, headers: Headers) -> Switched:
    """The client's connection, after a function has accepted it. Raises Failed."""
    switch: Callable[[bytes], Switched | None] = scope["extensions"][SWITCH]
    client = switch(_head(headers))
    if client is None:
        raise Failed("a WebSocket was asked for beside other requests", "use a connection for it")
    return client


async def lead(client: Switched, instance: Exchange) -> None:
    """Pass on bytes both ways until a side closes, or both are silent for too long."""
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(IDLE_SECONDS) as limit:
                await _both(client, instance, limit)
    finally:
        client.close()


async def _both(client: Switched, instance: Exchange, limit: asyncio.Timeout) -> None:
    loop = asyncio.get_running_loop()

    def restart_limit() -> None:
        limit.reschedule(loop.time() + IDLE_SECONDS)

    async def up() -> None:
        while data := await client.reader.read(_PART):
            restart_limit()
            await instance.write(data)

    async def down() -> None:
        while data := await instance.read(_PART):
            restart_limit()
            await client.write(data)

    ways = [loop.create_task(way()) for way in (up, down)]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)  # a connection that breaks ends it too


def _head(headers: Headers) -> bytes:
    lines = [b"HTTP/1.1 101 Switching Protocols"]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"
