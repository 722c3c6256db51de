"""All that one node serves over HTTP."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from firstlight.agile.config import Http
from firstlight.agile.http.app import served
from firstlight.agile.runtime import Runtime
from firstlight.agile.serving import Serving


@asynccontextmanager
async def opened(config: Http, runtime: Runtime) -> AsyncIterator[None]:
    """Serve the runtime's functions while in the context. Raises Failed."""
    async with Serving(runtime), served(config, []):
        yield
