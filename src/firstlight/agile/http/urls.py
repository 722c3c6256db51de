"""Function URLs: ``/function/NAME/…`` and ``/function/NAME:VERSION/…`` lead to an instance of it.

Bodies are streamed both ways. A request ends when its client disconnects. Hop-by-hop headers are
not passed on (RFC 9110, 7.6.1). ``X-Forwarded-…`` describe the client's connection.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import suppress

import h11
import msgspec
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from firstlight.agile.functions.catalogue import Functions
from firstlight.agile.functions.errors import NotFound
from firstlight.agile.http import access, websockets
from firstlight.agile.serving import Serving, Throttled
from firstlight.agile.serving.answer import timed_out
from firstlight.agile.serving.upstream import Broken, Exchange, Headers, Late, Malformed, Unreached
from firstlight.agile.serving.web import WebInstance
from firstlight.errors import Failed, longer

PREFIX = "/function"
_ONE_HOP = {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"proxy-connection",
}  # fmt: skip
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_END_SECONDS, _SOON_SECONDS = longer(1.0), longer(0.1)
"""How long a broken connection waits for the news that the instance has ended: one whose first
process is ending, and another, such as a shell, which ends when its server has.
"""

_log = logging.getLogger(__name__)


class _Rest(PathConvertor):
    """The rest of a path, which may have line breaks too."""

    regex = r"[\s\S]*"


register_url_convertor("rest", _Rest())


def routes(functions: Functions, serving: Serving) -> list[BaseRoute]:
    """The routes of all functions that serve HTTP."""
    return [Route(f"{PREFIX}/{{name}}/{{path:rest}}", _Proxy(functions, serving), methods=None)]


class _Gone(Exception):
    """The client has disconnected."""


class _NoServer(Failed):
    """A function that does not serve HTTP."""


class _Missed(Failed):
    """An instance had ended before a connection to it was made."""


class _Proxy:
    """Passes requests on."""

    def __init__(self, functions: Functions, serving: Serving) -> None:
        self._functions, self._serving = functions, serving
        self._websockets, self._websockets_most = 0, max(functions.config.functions.at_once // 2, 1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(scope, receive, send)
        try:
            access.check(scope, "invoke", "InvokeFunctionUrl", exchange.name.partition(":")[0])
        except access.Refused as error:
            await exchange.refuse(403, Failed(str(error)))
            return
        if scope["method"] == "CONNECT":
            await exchange.refuse(405, Failed("CONNECT is for proxies", "ask for the URL itself"))
            return
        loop = asyncio.get_running_loop()
        work = loop.create_task(self._answer(exchange))
        leaves = loop.create_task(exchange.client_leaves())
        try:
            await asyncio.wait((work, leaves), return_when=asyncio.FIRST_COMPLETED)
            if exchange.is_websocket:
                await work  # data read before the client disconnected is passed on
        finally:
            for task in (work, leaves):
                task.cancel()
                with suppress(asyncio.CancelledError, _Gone):
                    await task

    async def _answer(self, exchange: "_Exchange") -> None:
        if not exchange.asks_websocket:
            await self._respond(exchange)
        elif self._websockets < self._websockets_most:
            self._websockets += 1
            try:
                await self._respond(exchange)
            finally:
                self._websockets -= 1
        else:
            failed = Failed(
                f"the node has {self._websockets} WebSockets, which is the most",
                "try again, or raise functions.at_once: half of that may be",
            )
            await exchange.refuse(429, failed)

    async def _respond(self, exchange: "_Exchange") -> None:
        name, _, qualifier = exchange.name.partition(":")
        try:
            async with self._functions.using(name, qualifier) as version:
                if version.kind != "http":
                    raise _NoServer(f"{name} does not serve HTTP", "invoke it")
                try:
                    async with self._serving.web(version) as instance:
                        await exchange.through(instance)
                except _Missed:  # it had ended, and has nothing of the request
                    async with self._serving.web(version) as instance:
                        await exchange.through(instance)
        except (NotFound, _NoServer) as error:
            await exchange.refuse(404, error)
        except Throttled as error:
            await exchange.refuse(429, error)
        except Failed as error:
            await exchange.refuse(502, error)
        except h11.LocalProtocolError as error:
            failed = Failed(
                f"the request to {name} cannot be passed on: {error}", "mend its client"
            )
            await exchange.refuse(400, failed)
        except Late:
            await exchange.refuse(504, Failed(timed_out(version.timeout), "raise its timeout"))
        except Unreached as error:
            await exchange.refuse(502, Failed(f"{name} accepts no connection: {error}"))
        except Broken as error:
            await exchange.refuse(502, Failed(f"{name} {error.words}: {error}"))


class _Exchange:
    """A request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self.name: str = scope["path_params"]["name"]
        self._read = asyncio.Event()
        self._begun = self.is_websocket = False
        self.asks_websocket = websockets.asked(scope)
        named = {name for name, _ in scope["headers"]}
        self._has_body = bool(named & {b"content-length", b"transfer-encoding"})
        if not self._has_body:
            self._read.set()

    async def client_leaves(self) -> None:
        """Return when the client has disconnected, which shows once its body is read."""
        await self._read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def through(self, instance: WebInstance) -> None:
        """Have an instance answer the request. Raises Broken, Late, Unreached, Failed,
        h11.LocalProtocolError.
        """
        raw: bytes = self._scope["raw_path"].split(b"?")[0]
        path = b"/" + raw.removeprefix(f"{PREFIX}/".encode()).partition(b"/")[2]
        if self._scope["query_string"]:
            path += b"?" + self._scope["query_string"]
        headers = self._headers(instance.upstream.host)
        request = h11.Request(method=self._scope["method"], target=path, headers=headers)
        body = self._body() if self._has_body else None
        try:
            answer = await instance.upstream.ask(request, body)
        except Malformed:
            raise
        except (Broken, Unreached) as error:
            seconds = _END_SECONDS if instance.is_ending else _SOON_SECONDS
            await asyncio.wait((instance.instance.ended,), timeout=seconds)
            if instance.is_up:
                raise
            ended = await instance.ended()
            if isinstance(error, Unreached):
                raise _Missed(ended.message, ended.hint) from None
            raise ended from None
        try:
            if answer.status == 101:
                await self._switch(answer)
                return
            await self._start(answer.status, _answered(answer, self.name))
            async for part in answer.parts():
                await self._send({"type": "http.response.body", "body": part, "more_body": True})
            await self._send({"type": "http.response.body", "body": b""})
        finally:
            await answer.close()

    async def _switch(self, answer: Exchange) -> None:
        if not self.asks_websocket:
            raise Failed(f"{self.name} switches to a protocol that was not requested")
        client = websockets.switch(self._scope, answer.headers)
        self.is_websocket = self._begun = True
        await websockets.lead(client, answer)

    async def refuse(self, status: int, error: Failed) -> None:
        """Answer with an error; an answer that has begun is cut off, as the server then does."""
        if self._begun:
            _log.warning("%s", error.message)
            return
        body = msgspec.json.encode({"message": error.message, "hint": error.hint})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await self._start(status, headers)
        await self._send({"type": "http.response.body", "body": body})

    async def _start(self, status: int, headers: Headers) -> None:
        self._begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _body(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            more = message.get("more_body", False)
            yield message.get("body", b"")
        self._read.set()

    def _headers(self, server: bytes) -> Headers:
        headers = [
            (name, value) for name, value in _passed(self._scope["headers"])
            if not name.replace(b"_", b"-").startswith(b"x-forwarded-")  # CGI's names are the same
        ]  # fmt: skip
        client = self._scope.get("client")
        host = next((value for name, value in headers if name == b"host"), b"")
        if not host:
            headers = [(b"host", server), *(each for each in headers if each[0] != b"host")]
        if self._has_body and b"content-length" not in dict(headers):
            headers += [(b"transfer-encoding", b"chunked")]
        if self.asks_websocket:
            headers += [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")]
        return [
            *headers,
            (b"x-forwarded-for", client[0].encode() if client else b"unix"),
            (b"x-forwarded-proto", self._scope["scheme"].encode()),
            (b"x-forwarded-host", host),
            (b"x-forwarded-prefix", f"{PREFIX}/{self.name}".encode()),
        ]


def _answered(answer: Exchange, name: str) -> Headers:
    """The headers of a function's answer that are passed on. Raises Failed."""
    if answer.status > 599:
        raise Failed(f"{name} answers with status {answer.status}", "HTTP has none above 599")
    is_chunked = b"transfer-encoding" in {each.lower() for each, _ in answer.headers}
    left_out = {b"date"}  # the server adds its own
    if is_chunked or answer.status in {204, 304}:
        left_out.add(b"content-length")  # which is not the length of what follows
    headers = [each for each in _passed(answer.headers) if each[0] not in left_out]
    for header, value in headers:
        if _CONTROL.search(value):
            raise Failed(
                f"{name} answers with a control character in its header {header.decode()}",
                "have it encode the value",
            )
    return headers


def _passed(headers: Headers) -> Headers:
    """The end-to-end headers: neither hop-by-hop nor named by Connection."""
    lowered = [(name.lower(), value) for name, value in headers]
    named = {
        word.strip().lower() for name, value in lowered if name == b"connection"
        for word in value.split(b",")
    }  # fmt: skip
    return [(name, value) for name, value in lowered if name not in _ONE_HOP | named]
