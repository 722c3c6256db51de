"""Bounds the number of requests, and the memory that their bodies and answers take."""

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from firstlight.agile.http import urls
from firstlight.agile.http.lambda_requests import failure
from firstlight.agile.serving import Throttled

REQUESTS_MOST = 4096
BYTES_MOST = 256 << 20
"""Of bodies and answers in memory, of all requests. Function URLs pass on what they get."""


class Bounded:
    """An application that answers 429 to requests beyond its bounds.

    From half of the memory on, ``relieve`` is called to drop slow clients.
    """

    def __init__(self, application: ASGIApp, relieve: Callable[[], object] = lambda: None) -> None:
        self._application, self._relieve = application, relieve
        self.requests = self.bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on. The protocol: asgi.readthedocs.io."""
        if 2 * self.requests >= REQUESTS_MOST or 2 * self.bytes >= BYTES_MOST:
            self._relieve()
        if self.requests >= REQUESTS_MOST:
            await _refuse(f"{self.requests} requests are under way", scope, receive, send)
            return
        request = _Request(self, scope, receive, send)
        self.requests += 1
        try:
            await self._application(scope, request.receive, request.send)
        except Throttled:
            if not request.over:
                raise
        except asyncio.CancelledError:  # the server ends, and has waited for it
            if request.begun:
                raise
            status = 503 if request.streams else 500
            response = failure(status, "ServiceException", "the runtime stops: call again later")
            await response(scope, receive, send)
        finally:
            self.requests -= 1
            self.bytes -= request.held
        if request.over:
            await _refuse(f"requests hold more than {BYTES_MOST} bytes", scope, receive, send)


class _Request:
    """A request, and the memory that it takes. ``over``: it took too much.

    ``begun``: its answer has. ``streams``: it is of a function URL.
    """

    def __init__(self, all_of_them: Bounded, scope: Scope, receive: Receive, send: Send) -> None:
        self._all, self._receive, self._send = all_of_them, receive, send
        self.streams = scope.get("path", "").startswith(f"{urls.PREFIX}/")
        self.begun = self.over = False
        self.held = 0

    def _hold(self, message: Message) -> None:
        if not self.streams:
            size = len(message.get("body", b""))
            self.held += size
            self._all.bytes += size

    async def receive(self) -> Message:
        """Receive a part of its body. Raises Throttled."""
        message = await self._receive()
        self._hold(message)
        if not self.streams and self._all.bytes > BYTES_MOST and not self.begun:
            self.over = True
            raise Throttled(f"requests hold {self._all.bytes} bytes")
        return message

    async def send(self, message: Message) -> None:
        """Send a part of its answer."""
        if self.over:
            return  # the application's own message; ours follows
        self.begun = True
        self._hold(message)
        await self._send(message)


async def _refuse(why: str, scope: Scope, receive: Receive, send: Send) -> None:
    reason = "ConcurrentInvocationLimitExceeded"
    response = failure(429, "TooManyRequestsException", f"{why}: try again", Reason=reason)
    await response(scope, receive, send)
