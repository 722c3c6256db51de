"""Everything that a node serves over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from firstlight.agile.config import Config
from firstlight.agile.functions.catalogue import Functions
from firstlight.agile.http import lambda_api, metrics, urls
from firstlight.agile.http.app import served
from firstlight.agile.serving import Serving


@asynccontextmanager
async def opened(config: Config, functions: Functions, serving: Serving) -> AsyncIterator[None]:
    """Serve a runtime's functions in the context. Raises Failed."""
    routes = [
        *lambda_api.routes(functions),
        *metrics.routes(metrics.Metrics(serving, functions.names)),
        *urls.routes(functions, serving),
    ]
    assert config.http
    if config.telemetry is None:
        async with served(config.http, routes):
            yield
        return
    from firstlight.agile.http.tracing import Tracing  # it imports a hundred modules

    tracing = Tracing(config.telemetry, serving)
    try:
        async with served(config.http, routes, tracing.traced):
            yield
    finally:
        await asyncio.to_thread(tracing.close)
