"""A node's HTTP server, on the runtime's own event loop."""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from firstlight.agile.config import Http
from firstlight.agile.http import sigv4
from firstlight.agile.http.bounded import Bounded
from firstlight.agile.http.connection import Connection
from firstlight.agile.http.sigv4 import Verified
from firstlight.errors import Failed, longer

_BACKLOG = 1024
_CLOSE_SECONDS = round(longer(5))


class _Server(uvicorn.Server):
    """A server that leaves signals to its owner."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


@asynccontextmanager
async def served(
    config: Http, routes: Sequence[BaseRoute], around: Callable[[ASGIApp], ASGIApp] | None = None
) -> AsyncIterator[None]:
    """Serve these routes in the context. ``around`` wraps the whole application. Raises Failed."""
    application: ASGIApp = Starlette(routes=routes)
    if around:
        application = around(application)
    if config.credentials:
        application = Verified(application, sigv4.load(Path(config.credentials)))
    application = Bounded(application, Connection.give_up_slowest)
    listening = _listening(config.listen)
    # clients could make it log warnings without end
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    server = _Server(
        uvicorn.Config(
            application, http=Connection, ws="none", lifespan="off",
            log_config=None, access_log=False, server_header=False, proxy_headers=False,
            timeout_graceful_shutdown=_CLOSE_SECONDS,
        )
    )  # fmt: skip
    task = asyncio.get_running_loop().create_task(server.serve([listening]))
    try:
        yield
    finally:
        server.should_exit = True
        await task
        listening.close()
        if config.listen.startswith("unix:"):
            Path(config.listen.removeprefix("unix:")).unlink(missing_ok=True)


def _listening(listen: str) -> socket.socket:
    """Raises Failed."""
    try:
        if listen.startswith("unix:"):
            return _listening_at(Path(listen.removeprefix("unix:")))
        address, _, port = listen.rpartition(":")
        address = address.strip("[]")
        family = socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET
        # asyncio sets TCP_NODELAY only if the protocol is named; without it an answer takes 40 ms
        # longer.
        opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind((address, int(port)))
            opened.listen(_BACKLOG)
        except BaseException:
            opened.close()
            raise
    except OSError as error:
        raise Failed(f"cannot listen at {listen}: {error.strerror}",
                     "configure another http.listen") from error  # fmt: skip
    opened.setblocking(False)
    return opened


def _listening_at(path: Path) -> socket.socket:
    """Make a socket that only its owner can connect to; it replaces one that is not served."""
    opened = socket.socket(socket.AF_UNIX)
    opened.setblocking(False)
    with (
        suppress(ConnectionRefusedError, FileNotFoundError),
        socket.socket(socket.AF_UNIX) as probe,
    ):
        probe.connect(str(path))
        opened.close()
        raise Failed(f"somebody serves {path} already", "configure another http.listen")
    path.unlink(missing_ok=True)
    mask = os.umask(0o177)
    try:
        opened.bind(str(path))
    except BaseException:
        opened.close()
        raise
    finally:
        os.umask(mask)
    opened.listen(_BACKLOG)
    return opened
