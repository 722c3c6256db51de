"""Each operation of the Lambda API asks for its right before it does or tells anything."""

import asyncio
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from firstlight.agile.functions.errors import DiskFull
from firstlight.agile.http import lambda_api
from firstlight.agile.http.access import RIGHTS, Caller

BODY = {"FunctionName": "f", "Handler": "a.b", "Runtime": "python3.11", "Code": {"ZipFile": "AA=="}}
OPERATIONS = [
    (path, method, operation)
    for path, methods in lambda_api._OPERATIONS.items()
    for method, operation in methods.items()
    if operation.name != "ListFunctions"  # lists what may be read: tests/host
]


class Untouched:
    """A registry that notices whether it is asked for anything."""

    def __init__(self) -> None:
        self.touched: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.touched.append(name)
        raise RuntimeError(name)


def answered(
    path: str, method: str, caller: Caller, functions: Any = None
) -> tuple[httpx.Response, list[str]]:
    functions = functions or Untouched()
    application: ASGIApp = Starlette(routes=lambda_api.routes(functions))

    async def known(scope: Scope, receive: Receive, send: Send) -> None:
        await application({**scope, "state": {"caller": caller}}, receive, send)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(known)
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
            where = path.replace("{name}", "f").replace("{alias}", "live")
            return await client.request(method, where, json=BODY if method != "GET" else None)

    return asyncio.run(ask()), functions.touched


@pytest.mark.parametrize(
    ("path", "method", "operation"), OPERATIONS, ids=[each.name for _, _, each in OPERATIONS]
)
def test_no_operation_is_done_without_its_right(
    path: str, method: str, operation: lambda_api.Operation
) -> None:
    others: Any = {right: ("*",) for right in RIGHTS if right != operation.right}
    elsewhere: Any = dict.fromkeys(RIGHTS, ("g*",))
    for rights in (others, elsewhere):
        answer, touched = answered(path, method, Caller("shop", "s", rights))
        assert (answer.status_code, touched) == (403, [])
        assert answer.headers["x-amzn-errortype"] == "AccessDeniedException"
        assert f"user/shop is not authorized to perform: lambda:{operation.name} on resource" in (
            answer.json()["Message"])  # fmt: skip
    answer, _ = answered(path, method, Caller("shop", "s", {operation.right: ("*",)}))
    assert answer.status_code != 403


class Full(Untouched):
    """A registry whose disk is full."""

    def __getattr__(self, name: str) -> Any:
        raise DiskFull("cannot write it", "free space there")


@pytest.mark.parametrize(
    ("path", "method", "status", "name"),
    [
        ("/2015-03-31/functions", "POST", 400, "CodeStorageExceededException"),
        ("/2015-03-31/functions/{name}/versions", "POST", 400, "CodeStorageExceededException"),
        ("/2015-03-31/functions/{name}/invocations", "POST", 500, "ServiceException"),
        ("/2015-03-31/functions/{name}", "DELETE", 500, "ServiceException"),
    ],
)
def test_a_full_disk_is_an_error_that_the_operation_has(
    path: str, method: str, status: int, name: str
) -> None:
    every: Any = dict.fromkeys(RIGHTS, ("*",))
    answer, _ = answered(path, method, Caller("shop", "s", every), Full())
    assert (answer.status_code, answer.headers["x-amzn-errortype"]) == (status, name)
    assert "free space there" in answer.json()["Message"]
