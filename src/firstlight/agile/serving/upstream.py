"""Connections to a server: HTTP/1.1 by h11, each with one request at a time.

A request is sent while its answer is read: a server may stream both, or answer before it has read
all and close the connection. Python's streams drop an answer that has come when a write fails, and
httpx reads none before all is written; so sockets are read and written directly.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import h11

from firstlight.agile.sockets import is_readable
from firstlight.errors import longer

CONNECT_SECONDS = longer(5.0)
KEEP_SECONDS = 1.0
"""For so long a connection waits for another request; servers close theirs after 2 s or more."""
_KEPT_MOST = 64
_PART, _HEAD_MOST = 64 << 10, 128 << 10
_INTERIM_MOST = 100
_TURN = 16
"""Events after which others have a turn: a server that is never silent would block the loop."""
_REPEATABLE = {b"GET", b"HEAD", b"OPTIONS", b"TRACE"}

Headers = list[tuple[bytes, bytes]]


class Unreached(Exception):
    """No connection could be made."""


class Broken(Exception):
    """A connection ended before the answer was whole."""

    words = "closed the connection"


class Malformed(Broken):
    """An answer is not HTTP."""

    words = "answers with what is not HTTP"


class Late(Exception):
    """Nothing came for too long."""


class Exchange:
    """A request and its answer, on a connection of its own for as long as that takes."""

    def __init__(self, pool: "Upstream", connection: socket.socket, wire: h11.Connection) -> None:
        self._pool, self._connection, self._wire = pool, connection, wire
        self._loop = asyncio.get_running_loop()
        self._patience: float | None = pool.seconds
        self._limit: asyncio.Timeout | None = None
        self._sending: asyncio.Task[None] | None = None
        self._failed: Exception | None = None
        self._cut = self.answered = False
        self.status = self._events = 0
        self.headers: Headers = []

    async def begin(self, request: h11.Request, body: AsyncIterator[bytes] | None) -> None:
        """Send a request until its answer begins. Raises Broken, Late, h11.LocalProtocolError, and
        what the body raises.
        """
        head = self._wire.send(request)
        if body is None:
            head += self._wire.send(h11.EndOfMessage())
        try:
            await self.write(head)
        except OSError:  # an answer may say why
            self._cut = True
        if body is not None:
            self._sending = self._loop.create_task(self._send(body))
        while not self.status:
            event = await self._event()
            if self._events > _INTERIM_MOST:
                raise Malformed(f"it sent {_INTERIM_MOST} interim answers, and no other")
            if isinstance(event, h11.Response) or (
                isinstance(event, h11.InformationalResponse) and event.status_code == 101
            ):
                self.status, self.headers = event.status_code, event.headers.raw_items()

    async def parts(self) -> AsyncIterator[bytes]:
        """The answer's content. Raises Broken, Late, and what the request's body raises."""
        while isinstance(event := await self._event(), h11.Data):
            yield bytes(event.data)

    async def read(self, most: int) -> bytes:
        """Bytes of another protocol, after a status of 101. Raises OSError."""
        rest, _ = self._wire.trailing_data
        if rest:
            self._wire = h11.Connection(h11.CLIENT)
            return rest
        data = await self._loop.sock_recv(self._connection, most)
        await asyncio.sleep(0)  # as above
        return data

    async def write(self, data: bytes) -> None:
        """Send bytes of another protocol. Raises OSError."""
        await self._loop.sock_sendall(self._connection, data)

    async def close(self) -> None:
        """End it. Its connection is kept if both sides have said all."""
        wire, is_sent = self._wire, self._sending is None or self._sending.done()
        try:
            if self._sending and not is_sent:
                self._sending.cancel()
                await asyncio.wait((self._sending,))
        finally:
            is_done = wire.our_state is h11.DONE and wire.their_state is h11.DONE
            if is_sent and is_done and not self._cut and not wire.trailing_data[0]:
                wire.start_next_cycle()
                self._pool.keep(self._connection, wire)
            else:
                self._connection.close()

    async def _event(self) -> h11.Event:
        data: bytes | None = None
        self._events += 1
        if self._events % _TURN == 0:
            await asyncio.sleep(0)
        try:
            while (event := self._wire.next_event()) is h11.NEED_DATA:
                async with asyncio.timeout(self._patience) as self._limit:
                    data = await self._loop.sock_recv(self._connection, _PART)
                if not data and self._wire.their_state is h11.SEND_RESPONSE:
                    raise ConnectionError("it sent no answer")
                self.answered = True
                self._wire.receive_data(data)
        except TimeoutError:
            raise Late from None
        except (OSError, h11.RemoteProtocolError) as error:
            is_cut = isinstance(error, OSError) or data == b""
            kind = Broken if is_cut else Malformed
            raise self._failed or kind(str(error)) from error
        finally:
            self._limit = None
        assert isinstance(event, h11.Event)
        return event

    async def _send(self, body: AsyncIterator[bytes]) -> None:
        self._wait(None)  # for the client, which has its own limits
        try:
            async for part in body:
                self._wait(self._pool.seconds)
                await self.write(self._wire.send(h11.Data(data=part)))
                self._wait(None)
            await self.write(self._wire.send(h11.EndOfMessage()))
        except OSError:  # the answer may have come, and say why
            self._cut = True
        except Exception as error:
            self._failed = error
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
        finally:
            self._wait(self._pool.seconds)

    def _wait(self, seconds: float | None) -> None:
        self._patience = seconds
        if self._limit and not self._limit.expired():
            self._limit.reschedule(None if seconds is None else self._loop.time() + seconds)


class Upstream:
    """The connections to one server."""

    def __init__(
        self, address: str, port: int, seconds: float, is_alive: Callable[[], bool]
    ) -> None:
        """The server may be silent for so many seconds. The address is another's once it has ended,
        and nothing is sent there.
        """
        self._address, self._port, self.seconds = address, port, seconds
        self._is_alive = is_alive
        self._kept: dict[socket.socket, tuple[h11.Connection, asyncio.TimerHandle]] = {}
        self._closed = False

    @property
    def host(self) -> bytes:
        """The server, as in a Host header."""
        return f"{self._address}:{self._port}".encode()

    async def ask(self, request: h11.Request, body: AsyncIterator[bytes] | None) -> Exchange:
        """Send a request, and return it when its answer begins; close it then. A connection that
        was kept may end as the request comes: one that may be repeated is sent again, on a new one.
        Raises Unreached, Broken, Late, h11.LocalProtocolError, and what the body raises.
        """
        if kept := self._take():
            exchange = Exchange(self, *kept)
            try:
                return await self._begin(exchange, request, body)
            except Broken:
                if body or exchange.answered or request.method not in _REPEATABLE:
                    raise
                with suppress(Unreached):
                    return await self._begin(await self._connect(), request, None)
                raise
        return await self._begin(await self._connect(), request, body)

    def keep(self, connection: socket.socket, wire: h11.Connection) -> None:
        """Keep a connection for the next request."""
        if self._closed or len(self._kept) >= _KEPT_MOST:
            connection.close()
            return
        expiry = asyncio.get_running_loop().call_later(KEEP_SECONDS, self._expire, connection)
        self._kept[connection] = wire, expiry

    def close(self) -> None:
        """Close the connections that no request has."""
        self._closed = True
        for connection in list(self._kept):
            self._expire(connection)

    async def _begin(
        self, exchange: Exchange, request: h11.Request, body: AsyncIterator[bytes] | None
    ) -> Exchange:
        try:
            await exchange.begin(request, body)
        except BaseException:
            await exchange.close()
            raise
        return exchange

    def _take(self) -> tuple[socket.socket, h11.Connection] | None:
        while self._kept:
            connection, (wire, expiry) = self._kept.popitem()
            expiry.cancel()
            if not is_readable(connection.fileno(), 0):
                return connection, wire
            connection.close()  # the server has closed it, or sent what nobody asked for
        return None

    async def _connect(self) -> Exchange:
        try:
            connection = socket.socket()
        except OSError as error:
            raise Unreached(str(error)) from None
        connection.setblocking(False)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(CONNECT_SECONDS):
                address = self._address, self._port
                await asyncio.get_running_loop().sock_connect(connection, address)
            if not self._is_alive():
                raise ConnectionError("it has ended")
        except OSError as error:
            connection.close()
            raise Unreached(str(error) or "it takes too long") from None
        except BaseException:
            connection.close()
            raise
        return Exchange(self, connection, h11.Connection(h11.CLIENT, _HEAD_MOST))

    def _expire(self, connection: socket.socket) -> None:
        _, expiry = self._kept.pop(connection)
        expiry.cancel()
        connection.close()
