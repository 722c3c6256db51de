"""A client's connection: uvicorn's, with limits against untrusted clients.

A client that must read or write has a minute, which grows with the bytes that it reads or writes.
When too much memory is used, the client that has been waited for longest is dropped.

A handler of a request for another protocol, such as WebSockets, can take over the connection.
"""

import asyncio
import resource
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from firstlight.agile import upgrade_request

HEAD_MOST = 512 << 10
"""Bytes of a request's head, or of what follows the last part of its body."""
_TOO_LONG = b"a head, or what is between parts of a body, has more than %d bytes" % HEAD_MOST
SECONDS = 60.0
"""For a head; for a body or the reading of an answer, without a byte."""
RATE_LEAST = 1 << 10
"""Bytes a second of a body or of an answer, over more than that."""
SLOW_SECONDS = 10.0
"""A client that the server has waited for longer than this may lose its place to another."""
LOOK_SECONDS = 1.0
"""Between looks for the slowest."""
CONNECTIONS_MOST = 8192
PIPELINED_MOST = 64
"""Requests of a connection that wait for the answer to one before."""


SWITCH = "firstlight.switch"
"""The key of a request's ``extensions`` at which there is what takes its connection over."""


class _Patience:
    """Ends a connection whose client is too slow."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ended: Callable[[], None]) -> None:
        self._loop, self._ended = loop, ended
        self._timer: asyncio.TimerHandle | None = None
        self._moved: Callable[[], int | None] = int
        self._until = 0.0

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for the client."""
        return self._timer is not None

    def begin(self, moved: Callable[[], int | None]) -> None:
        """Wait. ``moved`` returns the bytes moved since its last call, None to stop waiting."""
        self._moved = moved
        self._until = self._loop.time() + SECONDS
        self._timer = self._loop.call_later(SECONDS, self._look)

    def end(self) -> None:
        """Stop waiting."""
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def waited(self) -> float:
        """Seconds waited, less the time that the moved bytes take at the lowest rate; 0 if it does
        not wait.
        """
        moved, now = self._moved() if self._timer else None, self._loop.time()
        if moved is None:
            self.end()
            return 0.0
        self._until = min(now + SECONDS, self._until + moved / RATE_LEAST)
        return now + SECONDS - self._until

    def _look(self) -> None:
        left = SECONDS - self.waited()
        if not self._timer:
            return
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self.end()
            self._ended()


class Switched:
    """A connection that has changed its protocol: raw bytes both ways."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self.reader = asyncio.StreamReader()
        self.reader.set_transport(connection.transport)

    async def write(self, data: bytes) -> None:
        """Send, and wait while the client reads too slowly."""
        self._connection.transport.write(data)
        await self._connection.flow.drain()

    def close(self) -> None:
        """Close it, after all that was written."""
        self._connection.transport.close()
        self._connection.expect_reading()


class Connection(HttpToolsProtocol):
    """A connection. It is closed if a head is too long, its client is too slow, or there are too
    many.
    """

    _all: ClassVar[dict["Connection", None]] = {}
    _slowest: ClassVar[list["Connection"]] = []
    """Those that were waited for at ``_looked``, the slowest last."""
    _looked: ClassVar[float] = float("-inf")
    _silent = 0
    """Bytes since the last that an application was told of."""
    _in_body = False
    _came = _unread = 0
    """Bytes of a body since they were counted last, and of answers that wait to be read."""
    _after: bytearray | None = None
    """What came after a request for another protocol, which is not answered yet."""
    _switched: Switched | None = None

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - as uvicorn has it
        """Start to wait for a head."""
        super().connection_made(transport)
        self._sends = _Patience(self.loop, transport.abort)
        self._reads = _Patience(self.loop, transport.abort)
        self.flow = _Flow(transport, self._expect_body, self._sends.end)
        most = min(CONNECTIONS_MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        if len(self.connections) > most and not self._give_up(0.0):
            transport.abort()
            return
        self._all[self] = None
        self._sends.begin(_nothing)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting for a head."""
        self._all.pop(self, None)
        self._sends.end()
        self._reads.end()
        self._in_body = False
        if self._switched:
            self._switched.reader.feed_eof()
        super().connection_lost(exc)

    @classmethod
    def give_up_slowest(cls) -> None:
        """Close the connection that has waited longest for its client, if that is slow."""
        cls._give_up(SLOW_SECONDS)

    @classmethod
    def _give_up(cls, seconds: float) -> bool:
        cls._look()
        while cls._slowest:
            slowest = cls._slowest[-1]
            waited = slowest._waited() if slowest in cls._all else 0.0
            if 0 < waited < seconds:
                return False
            cls._slowest.pop()
            if waited:
                del cls._all[slowest]
                slowest.transport.abort()
                return True
        return False

    @classmethod
    def _look(cls) -> None:
        """Compare all connections, but rarely: there may be thousands."""
        now = next((each.loop.time() for each in cls._all), cls._looked)
        if now - cls._looked >= LOOK_SECONDS:
            cls._looked, cls._slowest = now, sorted(cls._all, key=cls._waited)

    def _waited(self) -> float:
        return max(self._sends.waited(), self._reads.waited())

    def data_received(self, data: bytes) -> None:
        """Resume reading, unless too much is held."""
        if self._switched:
            self._switched.reader.feed_data(data)
            return
        if self._silent > HEAD_MOST:
            self._refuse()
            return
        self._silent += len(data)
        if self._after is not None:
            self._after += data
            return
        self._parse(data)
        if self._in_body:
            self._expect_body()
        elif self._silent and not self._sends.is_waiting and self._after is None:
            self._sends.begin(_nothing)

    def _parse(self, data: bytes) -> None:
        """Like uvicorn's, but keep what follows a request for another protocol, or its content."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as asked:
            rest = data[asked.args[0] :]
            if not self._in_body:
                self._after = bytearray(rest)
                return
            head = upgrade_request.head(self.parser.get_method(), self.headers)
            self.parser = httptools.HttpRequestParser(upgrade_request.Content(self))
            self._parse(head + rest)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def on_message_begin(self) -> None:
        """Note a request's headers: it may ask for another protocol."""
        super().on_message_begin()
        switch = partial(self._switch, self.scope)
        self.scope["extensions"] = {SWITCH: switch}  # type: ignore[dict-item]

    def on_headers_complete(self) -> None:
        """Start the application for a request."""
        if len(self.pipeline) >= PIPELINED_MOST:
            raise ValueError("too many requests at once")  # uvicorn answers 400
        self._silent = 0
        self._sends.end()
        if not self.transport.get_write_buffer_size():
            self._reads.end()  # bytes of the previous answer do not count for this one
        super().on_headers_complete()
        self.cycle.transport = _Joined(self.transport, self.loop)  # type: ignore[assignment]
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        """Pass on a part of its body."""
        self._silent = 0
        self._came += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Pass on the end of its body; the parser sees none if it asks for another protocol."""
        if self.parser.should_upgrade() and upgrade_request.has_content(self.headers):
            return
        self._silent = 0
        self._in_body = False
        self._sends.end()
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Note that the client reads more slowly than the application writes."""
        super().pause_writing()
        self.expect_reading()

    def resume_writing(self) -> None:
        """Note that the client has caught up."""
        self._reads.end()
        super().resume_writing()
        if self.cycle and self.cycle.response_complete and not self._switched:
            self.expect_reading()

    def on_response_complete(self) -> None:
        """Note that unread output remains. Continue, if the connection has kept its protocol."""
        super().on_response_complete()
        self.expect_reading()
        after, self._after = self._after, None
        if after and not self.transport.is_closing():
            self._silent = 0
            self.data_received(bytes(after))

    def _switch(self, scope: Any, head: bytes) -> Switched | None:  # noqa: ANN401 - as uvicorn has it
        """Answer a request with this head, and connect the client to its application. Returns None
        if another request follows, or the client has gone.
        """
        cycle = self.cycle
        if cycle.scope is not scope or self._after is None or self.transport.is_closing():
            return None
        cycle.response_started = cycle.response_complete = True  # uvicorn has nothing left to send
        self._sends.end()
        self.flow.resume_reading()
        self._switched = Switched(self)
        self._switched.reader.feed_data(bytes(self._after))
        self.transport.write(head)
        return self._switched

    def _expect_body(self) -> None:
        """Wait for the client, unless it waits for the application."""
        waits = self.flow.read_paused or self.cycle.waiting_for_100_continue
        if self._in_body and not waits and not self._sends.is_waiting:
            self._came = 0
            self._sends.begin(self._body_moved)

    def _body_moved(self) -> int:
        came, self._came = self._came, 0
        return came

    def expect_reading(self) -> None:
        """Wait for the client to read, while output is pending."""
        self._unread = self.transport.get_write_buffer_size()
        if not self._unread:
            self._reads.end()
        elif not self._reads.is_waiting:
            self._reads.begin(self._answer_moved)

    def _answer_moved(self) -> int | None:
        before, self._unread = self._unread, self.transport.get_write_buffer_size()
        return max(before - self._unread, 0) if self._unread else None

    def _refuse(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"
                b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n\r\n%s"
                % (len(_TOO_LONG), _TOO_LONG)
            )
            self.transport.close()


def _nothing() -> int:
    """The time for a head does not grow with its length."""
    return 0


class _Joined:
    """A transport that sends an answer's head together with the first part of its body, if
    available.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._head = b""
        self._is_begun = False

    def write(self, data: bytes) -> None:
        """Send, or keep the head until its body follows. What comes after the client has gone, and
        before the application is told, is dropped: asyncio would log it.
        """
        if self._transport.is_closing() and not self._transport.get_write_buffer_size():
            return
        if self._is_begun:
            self._transport.write(self._head + data if self._head else data)
            self._head = b""
        else:
            self._is_begun, self._head = True, data
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._head:
            self.write(b"")

    def close(self) -> None:
        """Send what was written, then close the connection."""
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether it is closing."""
        return self._transport.is_closing()


class _Flow(FlowControl):
    """Reports when a body waits for the application, and when it resumes."""

    def __init__(
        self, transport: asyncio.Transport, resumed: Callable[[], None], paused: Callable[[], None]
    ) -> None:
        super().__init__(transport)
        self._resumed, self._paused = resumed, paused

    def pause_reading(self) -> None:
        """Stop reading a body."""
        super().pause_reading()
        self._paused()

    def resume_reading(self) -> None:
        """Read on."""
        super().resume_reading()
        self._resumed()
