"""All that one node serves over HTTP."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from firstlight.agile.config import Http
from firstlight.agile.functions.catalogue import Functions
from firstlight.agile.http import lambda_api, metrics, urls
from firstlight.agile.http.app import served
from firstlight.agile.serving import Serving


@asynccontextmanager
async def opened(config: Http, functions: Functions, serving: Serving) -> AsyncIterator[None]:
    """Serve a runtime's functions while in the context. Raises Failed."""
    routes = [
        *metrics.routes(metrics.Metrics(serving)),
        *lambda_api.routes(functions),
        *urls.routes(functions, serving),
    ]
    async with served(config, routes):
        yield
