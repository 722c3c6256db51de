"""All that one node serves over HTTP."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from firstlight.agile.config import Http
from firstlight.agile.functions.catalogue import Functions
from firstlight.agile.http import lambda_api
from firstlight.agile.http.app import served


@asynccontextmanager
async def opened(config: Http, functions: Functions) -> AsyncIterator[None]:
    """Serve a runtime's functions while in the context. Raises Failed."""
    async with served(config, lambda_api.routes(functions)):
        yield
