"""The Lambda Runtime API of one instance: it fetches events, and answers one at a time.

https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html. The server listens on the instance's
own loopback, which identifies its connections. httptools reads the requests; their size and the
number of connections are bounded.
"""

import asyncio
import base64
import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

from msgspec import Struct

from firstlight.agile import upgrade_request
from firstlight.agile.function import NodeFailed
from firstlight.agile.partial_answers import Partial
from firstlight.agile.serving.answer import PAYLOAD_MAX
from firstlight.errors import Failed, install_extra

_PREFIX = b"/2018-06-01/runtime/"
_CONNECTIONS_MAX = 16
_PIPELINED_MAX = 16
"""Requests that may come at once on a connection: no runtime sends a second before its answer."""
_HEAD_MAX = 32 << 10
_OTHER_MAX = 64 << 10
"""Bytes of a body that is no answer to the event at work."""
_TOO_LARGE = (
    b'{"errorType":"RequestEntityTooLarge","errorMessage":"Exceeded maximum allowed payload size"}'
)
_ERROR_TYPE = b"lambda-runtime-function-error-type"
_ERROR_BODY = b"lambda-runtime-function-error-body"
_ACCEPTED = b'{"status":"OK"}'
_REASONS = {200: b"OK", 202: b"Accepted", 400: b"Bad Request", 403: b"Forbidden", 404: b"Not Found",
            413: b"Payload Too Large"}  # fmt: skip


class Event(Struct):
    """An event, with what its handler gets in addition. ``seconds`` is its time limit."""

    request_id: str
    payload: bytes
    seconds: float
    arn: str = ""
    trace: str | None = None
    client_context: bytes | None = None

    def head(self) -> bytes:
        """The headers of the response that delivers it, one line each."""
        deadline = int((time.time() + self.seconds) * 1000)
        lines = [
            f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(self.payload)}\r\n"
            f"Lambda-Runtime-Aws-Request-Id: {self.request_id}\r\n"
            f"Lambda-Runtime-Deadline-Ms: {deadline}\r\n"
            f"Lambda-Runtime-Invoked-Function-Arn: {_line(self.arn)}\r\n"
        ]
        if self.trace:
            lines.append(f"Lambda-Runtime-Trace-Id: {_line(self.trace)}\r\n")
        if self.client_context:
            lines.append(f"Lambda-Runtime-Client-Context: {_context(self.client_context)}\r\n")
        return "".join(lines).encode() + b"\r\n"


class Reply(Struct):
    """The outcome of an event or of the initialization; ``error`` if ``payload`` is an error."""

    payload: bytes
    error: bool = False
    too_large: bool = False


class Lost(Exception):
    """The instance ended. ``taken``: it had fetched the event."""

    def __init__(self, taken: bool) -> None:
        super().__init__()
        self.taken = taken


@dataclass
class _Pending:
    event: Event
    reply: "asyncio.Future[Reply]"
    taken: bool = False


class RuntimeApi:
    """The server of one instance of a function; ``ask`` gives the instance an event."""

    def __init__(self, owner: str = "", function: str = "") -> None:
        self.owner, self.function = owner, function
        self._loop = asyncio.get_running_loop()
        self.initialized: asyncio.Future[Reply | None] = self._loop.create_future()
        """None once it asks for its first event; an error if it says that it failed before."""
        self._pending: _Pending | None = None
        self._polling: _Connection | None = None
        self._answering: _Connection | None = None
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self._ended = False

    async def open(self, listener: socket.socket) -> None:
        """Serve the connections to a listening socket. Raises Failed without the parser."""
        try:
            import httptools
        except ModuleNotFoundError as error:
            raise Failed(
                "the Lambda Runtime API needs httptools, which is not installed",
                install_extra("http"),
            ) from error
        self._server = await self._loop.create_server(
            lambda: _Connection(self, httptools), sock=listener
        )

    async def ask(self, event: Event) -> Reply:
        """Give it an event; returns its answer. Raises Lost if it ends before."""
        pending = self._pending = _Pending(event, self._loop.create_future())
        if self._ended:
            raise Lost(taken=False)
        if self._polling:
            self._deliver(self._polling, pending)
        try:
            return await pending.reply
        finally:
            self._pending = None

    def end(self) -> None:
        """Close the connections of an instance that has ended."""
        self._ended = True
        if self._server:
            self._server.close()
        for connection in list(self._connections):
            connection.close()
        if not self.initialized.done():
            self.initialized.set_exception(Lost(taken=False))
            self.initialized.exception()  # nobody may be waiting for it
        if self._pending and not self._pending.reply.done():
            self._pending.reply.set_exception(Lost(self._pending.taken))

    def admit(self, connection: "_Connection") -> bool:
        """Accept a connection, unless the instance has too many."""
        if len(self._connections) >= _CONNECTIONS_MAX or self._ended:
            return False
        self._connections.add(connection)
        return True

    def forget(self, connection: "_Connection") -> None:
        """Forget a closed connection."""
        self._connections.discard(connection)
        if self._polling is connection:
            self._polling = None
        if self._answering is connection:
            self._answering = None

    def room(self, connection: "_Connection", path: bytes) -> int:
        """The number of bytes of a request's body to keep: many for one answer at a time."""
        kind, identity, _ = _call(path)
        if kind != b"invocation" or not self._is_known(identity):
            return _OTHER_MAX
        if self._answering and self._answering is not connection:
            self._answering.abort()
        self._answering = connection
        return PAYLOAD_MAX

    def _is_known(self, identity: bytes) -> bool:
        """Whether an event of this id waits for an answer."""
        pending = self._pending
        if pending is None or not pending.taken or pending.reply.done():
            return False
        return pending.event.request_id.encode() == identity

    def handle(
        self, connection: "_Connection", method: bytes, path: bytes, body: bytes | None,
        headers: Mapping[bytes, bytes],
    ) -> None:  # fmt: skip
        """Answer a request; ``body`` is None if it was too long."""
        if self._answering is connection:
            self._answering = None
        kind, of, verb = _call(path)
        if method == b"GET" and (kind, of, verb) == (b"invocation", b"next", b""):
            self._next(connection)
        elif method == b"POST" and (kind, of, verb) == (b"init", b"error", b""):
            if not self.initialized.done():
                self.initialized.set_result(Reply(body or b"", error=True))
            connection.answer(*((413, _TOO_LARGE) if body is None else (202, _ACCEPTED)))
        elif method == b"POST" and kind == b"invocation" and verb in (b"response", b"error"):
            if verb == b"response" and _ERROR_TYPE in headers and body is not None:
                self._reply(connection, of, _cut_off(headers), True)
            else:
                self._reply(connection, of, body, verb == b"error")
        else:
            connection.refuse(404, "NotFound", "there is no such call")

    def give_up(self, connection: "_Connection", error: NodeFailed) -> None:
        """End a connection whose body gave way to others'. Who waits for it is told."""
        if self._answering is connection and self._pending and not self._pending.reply.done():
            self._pending.reply.set_exception(error)
        connection.abort()

    def _next(self, connection: "_Connection") -> None:
        if self._pending and self._pending.taken and not self._pending.reply.done():
            connection.refuse(403, "InvalidStateTransition", "an event is not answered yet")
            return
        if not self.initialized.done():
            self.initialized.set_result(None)
        if self._polling and self._polling is not connection:
            self._polling.close()  # it asks again: only one of them gets the next event
        for other in self._connections - {connection}:
            other.abort_unread()  # or events that it does not read would pile up here
        self._polling = connection
        if self._pending and not self._pending.reply.done():
            self._deliver(connection, self._pending)

    def _deliver(self, connection: "_Connection", pending: _Pending) -> None:
        pending.taken, self._polling = True, None
        connection.write(pending.event.head() + pending.event.payload)

    def _reply(
        self, connection: "_Connection", identity: bytes, body: bytes | None, error: bool
    ) -> None:
        pending = self._pending
        if pending is None or not self._is_known(identity):
            connection.refuse(400, "InvalidRequestID", "no event of this id waits for an answer")
        elif body is None:
            connection.answer(413, _TOO_LARGE)
            pending.reply.set_result(Reply(b"", error=True, too_large=True))
        else:
            connection.answer(202, _ACCEPTED)
            pending.reply.set_result(Reply(body, error))


class _Connection(asyncio.Protocol):
    """One connection of an instance, with one request at a time."""

    def __init__(self, api: RuntimeApi, httptools: ModuleType) -> None:
        self._api = api
        self._parser = httptools.HttpRequestParser(self)
        self._httptools = httptools
        self._transport: asyncio.Transport | None = None
        self._open = self._busy = False
        self._pipelined = 0
        self._stays = True
        """Whether the request leaves it open; the parser of an offer's content does not know."""
        self._begin()

    def _begin(self) -> None:
        self._path, self._in_head = b"", True
        self._head = 0
        """Bytes of a head, or since the last of the body: trailers are kept, too."""
        self._headers: dict[bytes, bytes] = {}
        self._body: Partial | None = Partial(self._api.owner, self._api.function)
        self._room = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._open = transport, True
        if not self._api.admit(self):
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._open = False
        self._drop_body()
        self._api.forget(self)

    def data_received(self, data: bytes) -> None:
        if self._busy or self._head > _HEAD_MAX:
            self.close()  # a second request before the answer to the first, or an endless head
            return
        self._head += len(data)
        self._pipelined = 0
        try:
            rest = memoryview(data)
            while rest:
                rest = self._parse(rest)
        except self._httptools.HttpParserError:
            self.refuse(400, "BadRequest", "that is not HTTP")
            self.close()

    def _parse(self, data: memoryview) -> memoryview:
        """Parse up to an offer to upgrade, which is ignored, or all. Returns the rest."""
        try:
            self._parser.feed_data(data)
        except self._httptools.HttpParserUpgrade as asked:
            if self._open and not self._in_head:
                head = upgrade_request.head(self._parser.get_method(), self._headers.items())
                self._parser = self._httptools.HttpRequestParser(upgrade_request.Content(self))
                self._parser.feed_data(head)
                return data[asked.args[0] :]
        return data[:0]

    # Callbacks of the parser.

    def on_message_begin(self) -> None:
        self._pipelined += 1
        if self._busy or self._unread() or self._pipelined > _PIPELINED_MAX:
            self.close()
        if self._transport is None or self._transport.is_closing():
            raise ConnectionError("closed")  # what else has come is not parsed
        self._begin()

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self._headers) < 64:
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._in_head, self._head = False, 0
        self._stays = self._parser.should_keep_alive()
        self._room = self._api.room(self, self._path)
        if self._headers.get(b"expect", b"").lower() == b"100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._head = 0
        if self._body is None:
            return
        if len(self._body) + len(body) > self._room:
            self._drop_body()  # the rest is read and dropped
            return
        try:
            self._body.add(body)
        except NodeFailed as error:
            self._api.give_up(self, error)

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade() and upgrade_request.has_content(self._headers.items()):
            return  # which follows
        self._in_head, self._busy, self._head = True, True, 0
        try:
            body = None if self._body is None else self._body.take()
        except NodeFailed as error:
            self._api.give_up(self, error)
            return
        self._body = None
        self._api.handle(self, self._parser.get_method(), self._path, body, self._headers)

    def _drop_body(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None

    def _unread(self) -> bool:
        """Whether it sends requests without reading the answers, which would pile up here."""
        return bool(self._transport and self._transport.get_write_buffer_size())

    # Methods for the API.

    def write(self, data: bytes) -> None:
        """Send a piece of an answer."""
        if self._open and self._transport:
            self._transport.write(data)
        if not self._in_head:
            return
        self._busy = False
        if not self._stays:
            self.close()

    def answer(self, status: int, body: bytes) -> None:
        """Answer its request."""
        self.write(
            b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (status, _REASONS[status], len(body), body)
        )

    def refuse(self, status: int, kind: str, message: str) -> None:
        """Answer its request with an error in the API's shape."""
        self.answer(status, json.dumps({"errorType": kind, "errorMessage": message}).encode())

    def abort(self) -> None:
        """Close it at once."""
        self._open = False
        if self._transport:
            self._transport.abort()

    def abort_unread(self) -> None:
        """Close it at once if it has not read all that was written."""
        if self._unread():
            self.abort()

    def close(self) -> None:
        """Close it, after what was written."""
        self._open = False
        if self._transport:
            self._transport.close()


def _call(path: bytes) -> tuple[bytes, bytes, bytes]:
    """The call that a path names, as in ``invocation``, an id, ``response``."""
    what = path.removeprefix(_PREFIX).split(b"?")[0] if path.startswith(_PREFIX) else b""
    kind, _, rest = what.partition(b"/")
    of, _, verb = rest.partition(b"/")
    return kind, of, verb


def _cut_off(headers: Mapping[bytes, bytes]) -> bytes:
    """The error that ended an answer that was streamed, as its trailers have it."""
    try:
        text = base64.b64decode(headers.get(_ERROR_BODY, b""), validate=True)
        json.loads(text)
        return text
    except (ValueError, RecursionError):
        kind = headers[_ERROR_TYPE].decode("ascii", "replace")
        message = "the function failed while it streamed its answer"
        return json.dumps({"errorType": kind, "errorMessage": message}).encode()


def _line(text: str) -> str:
    """The value as a header: printable ASCII in one line."""
    return text.encode("ascii", "replace").decode().replace("\r", " ").replace("\n", " ")


def _context(data: bytes) -> str:
    """JSON in one line of ASCII; empty if the value is not JSON."""
    try:
        return json.dumps(json.loads(data), ensure_ascii=True, separators=(",", ":"))
    except (ValueError, RecursionError):
        return ""
