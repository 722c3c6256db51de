"""Malformed requests: each gets the API's own error, and changes nothing.

FIRSTLIGHT_FUZZ=10000 makes so many, and FIRSTLIGHT_SEED others.
"""

import asyncio
import os
import sys
from pathlib import Path

import httpx
import pytest
from tests.support.lambda_fuzz import GOOD, Fuzz
from tests.support.lambda_host import ENDPOINT, GUARD_SECONDS, PORT, with_functions

from firstlight.agile.functions.catalogue import Functions
from firstlight.agile.functions.records import Settings, ZipSource

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
REQUESTS = int(os.environ.get("FIRSTLIGHT_FUZZ", "300"))
SEED = int(os.environ.get("FIRSTLIGHT_SEED", "11"))
OURS = {"InvalidRequestContentException", "MethodNotAllowedException", "RequestTooLargeException",
        "AccessDeniedException", "UnknownOperationException"}  # fmt: skip
MANGLED = (b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x00\xff" * 20,
           b"POST /2015-03-31/functions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
           b"POST /2015-03-31/functions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{",
           b"GET /2015-03-31/functions HTTP/1.1\r\nHost: " + b"x" * 200_000 + b"\r\n\r\n",
           b"POST /2015-03-31/functions/good/invocations HTTP/1.1\r\nHost: x\r\n"
           b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")  # fmt: skip


def test_malformed_requests_get_api_errors(tmp_path: Path) -> None:
    async def main(functions: Functions) -> None:
        fuzz = Fuzz(SEED)
        own = Settings(handler="app:main", network="none", timeout=60.0, kind="python")
        await functions.add("good", ZipSource(data=GOOD), own)
        await functions.set_alias("good", "live", "1")
        async with httpx.AsyncClient(base_url=ENDPOINT, timeout=60) as client:
            statuses: dict[int, int] = {}
            for number in range(REQUESTS):
                if number % 50 == 0 and "good" not in functions.names():
                    await functions.add("good", ZipSource(data=GOOD), own)
                before = {name: functions.get(name) for name in functions.names()}
                made = fuzz.request()
                answer = await client.request(
                    made.method, made.path, headers=made.headers, content=made.body
                )
                statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
                what = (SEED, number, made, answer.status_code, answer.text[:300])
                assert answer.status_code < 500, what
                if answer.status_code >= 400 and made.method != "HEAD" and made.path[:2] == "/2":
                    assert answer.headers["x-amzn-errortype"] in fuzz.errors | OURS, what
                    assert answer.json()["message"], what
                    after = {name: functions.get(name) for name in functions.names()}
                    assert before == after, what
        assert len(statuses) > 4, statuses
        for data in MANGLED:
            reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
            writer.write(data)
            writer.write_eof()
            await asyncio.wait_for(reader.read(), 60)
            writer.close()
        for name in functions.names():
            await functions.remove(name)
        while await functions.waiting():
            await asyncio.sleep(0.05)
        assert not list((functions.directory / "trees").iterdir())
        assert not list((functions.directory / "work").iterdir())
        await functions.add("good", ZipSource(data=GOOD), own)
        answered, _ = await functions.invoke("good", b"[7]", request_id="r")
        assert answered.payload == b"[7]"
        await functions.remove("good")
        while functions._runtime.running():  # what was released may take a moment
            await asyncio.sleep(0.05)
        sys.stdout.write(f"{REQUESTS} requests: {sorted(statuses.items())}\n")

    with_functions(tmp_path, main, seconds=max(GUARD_SECONDS, REQUESTS / 3))
