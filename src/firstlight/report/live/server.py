"""Serves the live page, its changes as server-sent events, and the metrics, on a thread."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from ipaddress import ip_address
from threading import Thread

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from firstlight.errors import Failed
from firstlight.report.live.board import Board
from firstlight.report.live.metrics import Metrics

_BACKLOG = 64
_FASTEST_SECONDS = 0.5
_ALIVE_SECONDS = 15
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_PAGE = {"/": ("live.html", "text/html"), "/live.css": ("live.css", "text/css"),
         "/live.js": ("live.js", "text/javascript")}  # fmt: skip


class _Server(uvicorn.Server):
    """A server that sleeps between requests: uvicorn's own loop wakes ten times a second."""

    _loop: asyncio.AbstractEventLoop | None = None

    async def main_loop(self) -> None:
        """Wait until ``stop``."""
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        if not self.should_exit:
            await self._stopped.wait()

    def stop(self) -> None:
        """Stop, from another thread."""
        self.should_exit = True
        if self._loop:
            self._loop.call_soon_threadsafe(self._stopped.set)


def page(board: Board) -> list[Route]:
    """The routes of the page."""
    here = files("firstlight.report.live")
    routes = []
    for path, (name, kind) in _PAGE.items():
        content = here.joinpath(name).read_bytes()

        def answer(_: Request, content: bytes = content, kind: str = kind) -> Response:
            return Response(content, media_type=kind, headers=_HEADERS)

        routes.append(Route(path, answer))

    def events(_: Request) -> Response:
        headers = {**_HEADERS, "X-Accel-Buffering": "no"}
        return StreamingResponse(_changes(board), media_type="text/event-stream", headers=headers)

    return [*routes, Route("/events", events)]


def metrics(counted: Metrics) -> list[Route]:
    """The route of the metrics."""

    def answer(request: Request) -> Response:
        content, kind = counted.text(request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": kind})

    return [Route("/metrics", answer)]


async def _changes(board: Board) -> AsyncIterator[bytes]:
    """The board's state now and after each change, at most twice a second."""
    with board.changes() as changed:
        while not board.ended:
            changed.clear()
            yield b"data: " + board.state() + b"\n\n"
            await asyncio.sleep(_FASTEST_SECONDS)
            while not changed.is_set():
                try:
                    async with asyncio.timeout(_ALIVE_SECONDS):
                        await changed.wait()
                except TimeoutError:
                    yield b":\n\n"


@contextmanager
def serving(
    address: str, routes: Sequence[Route], end: Callable[[], None] = lambda: None
) -> Iterator[str]:
    """Serve routes at ``PORT`` of the loopback or ``HOST:PORT``; yields the URL. Raises Failed.

    ``end`` is called at the end, and ends answers that have no end of their own.

    On the loopback only requests for this machine's own names are answered, against DNS rebinding.
    """
    opened = _listening(address)
    host, port = opened.getsockname()[:2]
    own = ip_address(host).is_loopback and opened.family is socket.AF_INET
    guards = [Middleware(TrustedHostMiddleware, allowed_hosts=["localhost", host])] if own else []
    server = _Server(
        uvicorn.Config(
            Starlette(routes=list(routes), middleware=guards), http="httptools", ws="none",
            lifespan="off", log_config=None, access_log=False, server_header=False,
            date_header=False, log_level="critical", timeout_graceful_shutdown=1,
        )
    )  # fmt: skip
    thread = Thread(target=server.run, args=([opened],), daemon=True)
    thread.start()
    try:
        yield f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    finally:
        end()
        server.stop()
        thread.join()
        opened.close()


def _listening(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    try:
        family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
        return socket.create_server((host, int(port)), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not an address"
        raise Failed(
            f"cannot listen at {address}: {reason}", "give PORT or ADDRESS:PORT"
        ) from error
