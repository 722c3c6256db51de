"""A connection of a client: uvicorn's, within bounds, for strangers may send what they like."""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_MOST = 512 << 10
"""Bytes of a request's head, or of what follows the last part of its body."""
HEAD_SECONDS = 60.0
BODY_SECONDS = 60.0
"""Between two parts of a body, while the server reads."""
CONNECTIONS_MOST = 8192


class Connection(HttpToolsProtocol):
    """Is closed if a head is too long or takes too long, or a body stops, or there are too many."""

    _silent = 0
    """Bytes since the last that an application was told of."""
    _late: asyncio.TimerHandle | None = None
    _in_body = False
    _moved = 0.0
    """When a part of the body came, or the application asked for one."""

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - as uvicorn has it
        """Expect a head."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS_MOST:
            transport.abort()
            return
        self.flow = _Flow(transport, self._move)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect no more."""
        self._expect_nothing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless it is too much."""
        if self._silent > HEAD_MOST:
            self._refuse()
            return
        self._silent += len(data)
        super().data_received(data)
        if self._late:
            return
        if self._in_body:
            self._late = self.loop.call_later(BODY_SECONDS, self._look)
        elif self._silent:
            self._expect_head()

    def on_headers_complete(self) -> None:
        """The application is told of a request."""
        self._silent = 0
        self._expect_nothing()
        self._move()
        super().on_headers_complete()
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        """And of a part of its body."""
        self._silent = 0
        self._move()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """And of its end."""
        self._silent = 0
        self._in_body = False
        self._expect_nothing()
        super().on_message_complete()

    def _expect_head(self) -> None:
        self._late = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _move(self) -> None:
        self._moved = self.loop.time()

    def _look(self) -> None:
        """End it if its body has stopped, but not while the client waits for the server."""
        if self.flow.read_paused or self.cycle.waiting_for_100_continue:
            self._move()
        left = self._moved + BODY_SECONDS - self.loop.time()
        if left > 0:
            self._late = self.loop.call_later(left, self._look)
        else:
            self.transport.abort()

    def _expect_nothing(self) -> None:
        if self._late:
            self._late.cancel()
            self._late = None

    def _refuse(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"
                b"content-length: 0\r\n\r\n"
            )
            self.transport.close()


class _Flow(FlowControl):
    """Tells when the application asks for more of a body."""

    def __init__(self, transport: asyncio.Transport, asked: Callable[[], None]) -> None:
        super().__init__(transport)
        self._asked = asked

    def resume_reading(self) -> None:
        """Read on."""
        super().resume_reading()
        self._asked()
