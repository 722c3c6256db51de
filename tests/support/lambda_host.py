"""A runtime with the Lambda API on a loopback port, and an unmodified boto3 that calls it."""

import asyncio
import base64
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.agile_host import on_host

from firstlight.agile import Config, Runtime
from firstlight.agile.config import Events, Http
from firstlight.agile.functions.catalogue import Functions
from firstlight.agile.http import node
from firstlight.agile.serving import Serving

PORT = 9311
GUARD_SECONDS = 240.0
ENDPOINT = f"http://127.0.0.1:{PORT}"
AWS = Path(sys.executable).parent.parent / "aws/bin/python"
AGENT = """
import base64, json, sys
import boto3, botocore
from botocore.config import Config
from botocore.eventstream import EventStream
client = boto3.client(
    "lambda", endpoint_url=sys.argv[1], region_name="us-east-1", aws_access_key_id=sys.argv[2],
    aws_secret_access_key=sys.argv[3], config=Config(retries={"max_attempts": 0}, read_timeout=60))
wrong = []
COMMON = {"AccessDeniedException", "InvalidSignatureException", "UnrecognizedClientException"}
TYPES = {"structure": dict, "list": list, "map": dict, "string": str, "integer": int, "long": int,
         "boolean": bool, "double": float, "timestamp": (str, int, float)}
def check(shape, value, where):
    if not isinstance(value, TYPES.get(shape.type_name, object)):
        wrong.append(f"{where} is {value!r}, not of type {shape.type_name}")
    elif shape.type_name == "structure":
        wrong.extend(f"{where} has no {name}" for name in shape.required_members
                     if name not in value)
        for name, each in value.items():
            if name in shape.members:
                check(shape.members[name], each, f"{where}.{name}")
            else:
                wrong.append(f"{where}.{name} is not known")
    elif shape.type_name == "list":
        for each in value:
            check(shape.member, each, f"{where}[]")
    elif shape.type_name == "map":
        for name, each in value.items():
            check(shape.value, each, f"{where}.{name}")
def as_described(http_response, parsed, model, **_):
    "Whether an answer is what botocore's description of the API says, which botocore does not ask."
    if http_response.status_code >= 400:
        name = parsed["Error"]["Code"]
        statuses = {each.name: each.metadata["error"]["httpStatusCode"]
                    for each in model.error_shapes}
        if name not in COMMON and statuses.get(name) != http_response.status_code:
            wrong.append(f"{model.name}: {name}, {http_response.status_code}")
    elif http_response.status_code != 204 and not model.name.startswith("Invoke"):
        check(model.output_shape, json.loads(http_response.content), model.name)
client.meta.events.register("after-call.lambda", as_described)
def plain(value):
    if isinstance(value, EventStream):
        value = list(value)
    if hasattr(value, "read"):
        value = value.read()
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value
def raw(value):
    if isinstance(value, dict):
        return base64.b64decode(value["$bytes"]) if "$bytes" in value else {
            key: raw(each) for key, each in value.items()}
    return value
for line in sys.stdin:
    method, arguments = json.loads(line)
    try:
        if method == "wait":
            client.get_waiter(arguments.pop("waiter")).wait(**arguments)
            answer = {}
        else:
            answer = plain(getattr(client, method)(**raw(arguments)))
    except botocore.exceptions.ClientError as error:
        answer = {"$error": error.response["Error"]["Code"], "message": str(error),
                  "status": error.response["ResponseMetadata"]["HTTPStatusCode"]}
    except botocore.exceptions.BotoCoreError as error:
        answer = {"$error": "connection", "message": str(error)}
    if wrong:
        answer["$wrong"] = wrong
    print(json.dumps(answer, default=str), flush=True)
"""


class Boto:
    """boto3's client of Lambda, in an interpreter of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def __call__(self, method: str, **arguments: Any) -> dict[str, Any]:
        """The answer of a method; an error of the API has ``$error``."""
        assert self._process.stdin
        assert self._process.stdout
        line = json.dumps([method, arguments], default=_bytes) + "\n"
        self._process.stdin.write(line.encode())
        answer = json.loads(await self._process.stdout.readline())
        assert isinstance(answer, dict)
        assert "$wrong" not in answer, answer["$wrong"]
        return {key: _plain(value) for key, value in answer.items()}


def _bytes(value: object) -> dict[str, str]:
    assert isinstance(value, bytes)
    return {"$bytes": base64.b64encode(value).decode()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        if "$bytes" in value:
            return base64.b64decode(value["$bytes"])
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


@asynccontextmanager
async def boto(
    endpoint: str = ENDPOINT, key: str = "none", secret: str = "none"
) -> AsyncIterator[Boto]:
    """A client."""
    if not AWS.exists():
        pytest.skip(".venv/aws is missing: make setup")
    process = await asyncio.create_subprocess_exec(
        AWS, "-c", AGENT, endpoint, key, secret, limit=64 << 20,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Boto(process)
    finally:
        assert process.stdin
        process.stdin.close()
        await process.wait()


def configuration(store: Path, credentials: str = "") -> Config:
    """Of a runtime with the API; events are tried again at once."""
    return Config(
        name="t4", store=str(store), events=Events(retry_seconds=0.05),
        http=Http(listen=f"127.0.0.1:{PORT}", credentials=credentials),
    )  # fmt: skip


@asynccontextmanager
async def functions(config: Config) -> AsyncIterator[Functions]:
    """The registry of a runtime that serves HTTP."""
    assert config.http
    async with (
        Runtime(config) as runtime,
        Serving(runtime) as serving,
        Functions(runtime, serving) as kept,
        node.opened(config, kept, serving),
    ):
        yield kept


def with_functions(
    store: Path,
    main: Callable[[Functions], Awaitable[None]],
    credentials: str = "",
    seconds: float = GUARD_SECONDS,
) -> None:
    """Run a coroutine beside such a runtime, in namespaces of their own."""

    async def on() -> None:
        async with functions(configuration(store, credentials)) as kept:
            await main(kept)

    on_host(on, seconds)


def zipped(**files: str) -> bytes:
    """A zip file of Python modules."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"{name}.py", text)
    return written.getvalue()


def run(*words: object) -> str:
    """The output of a program that must succeed."""
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout
