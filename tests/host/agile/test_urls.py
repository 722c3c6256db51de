"""Functions that serve HTTP, called by their URLs."""

import asyncio
import json
import os
import signal
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import msgspec
import pytest
from tests.support import lambda_host
from tests.support.lambda_host import ENDPOINT, PORT, with_functions, zipped

from firstlight.agile import config, logs
from firstlight.agile.functions.catalogue import Functions
from firstlight.agile.functions.records import Settings, ZipSource
from firstlight.agile.http import urls, websockets
from firstlight.agile.serving import web
from firstlight.agile.sockets import is_readable
from firstlight.errors import Failed

SERVER = """
import base64, hashlib, http.server, json, os, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Own", "yes")
        self.send_header("Set-Cookie", "session=secret")
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        if self.path == "/sleep":
            try:
                time.sleep(float(os.environ.get("SLEEP", "600")))
            finally:
                pass
        if self.path == "/exit":
            print("gave up", flush=True)
            os._exit(9)
        if self.headers.get("Upgrade") == "websocket" and self.path != "/refuse":
            key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
            self.send_header("Sec-WebSocket-Accept", accept)
            self.end_headers()
            while (part := self.rfile.read1(65536)) and part != b"bye":
                self.wfile.write(part.upper())
            self.wfile.write(b"END")
            self.close_connection = True
            return
        if self.path == "/stream":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in (b"one", b"two"):
                self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(part), part))
                self.wfile.flush()
                if part == b"one":
                    open("/tmp/go").close() if os.path.exists("/tmp/go") else None
            self.wfile.write(b"0\\r\\n\\r\\n")
            return
        self.answer({"path": self.path, "pid": os.getpid(), "headers": dict(self.headers)}, 203)
    def do_POST(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({"size": len(body), "end": body[-3:].decode()})
http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
"""
ODD = """
import http.server, os, urllib.parse
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_GET(self):
        self.wfile.write(urllib.parse.unquote_to_bytes(self.path[2:]))
        self.close_connection = self.path[2:] in ("", "hello")
http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
"""
SETTINGS = Settings(
    kind="http", command=("/usr/bin/python3", "/var/task/app.py"), port=8085, timeout=30.0,
    network="internal", memory=256 << 20,
)  # fmt: skip


def with_site(
    store: Path, main: Callable[[httpx.AsyncClient, Functions], Awaitable[None]],
    settings: Settings = SETTINGS, server: str = SERVER,
) -> None:  # fmt: skip
    async def on(functions: Functions) -> None:
        await functions.add("site", ZipSource(data=zipped(app=server)), settings)
        base = f"{ENDPOINT}/function/site"
        async with httpx.AsyncClient(base_url=base, timeout=60) as client:
            await main(client, functions)

    with_functions(store, on)


def test_requests_reach_one_instance_with_their_headers(tmp_path: Path) -> None:
    async def main(client: httpx.AsyncClient, functions: Functions) -> None:
        forged = {"X-Forwarded-For": "8.8.8.8", "X_Forwarded_For": "8.8.8.8"}
        first = await client.get("/a%20b%0Ac/?q=1", headers={"X-Mine": "1", **forged})
        assert first.status_code == 203
        assert first.headers["x-own"] == "yes"
        seen = first.json()
        assert seen["path"] == "/a%20b%0Ac/?q=1"
        headers = {name.lower(): value for name, value in seen["headers"].items()}
        assert headers["x-mine"] == "1"
        assert headers["x-forwarded-for"] == "127.0.0.1"
        assert "x_forwarded_for" not in headers
        assert headers["x-forwarded-prefix"] == "/function/site"
        assert headers["host"] == headers["x-forwarded-host"] == ENDPOINT.removeprefix("http://")
        others = await asyncio.gather(*(client.get("/") for _ in range(8)))
        assert {other.json()["pid"] for other in others} == {seen["pid"]}
        assert functions.running("site") == 0

    with_site(tmp_path, main)


def test_request_is_forwarded_unchanged_and_alone(tmp_path: Path) -> None:
    async def main(client: httpx.AsyncClient, functions: Functions) -> None:
        assert (await client.get("/")).headers["set-cookie"] == "session=secret"
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
        writer.write(b"GET /function/site/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        seen = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
        writer.close()
        assert {name.lower() for name in seen["headers"]} == {
            "host", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host",
            "x-forwarded-prefix",
        }  # fmt: skip

    with_site(tmp_path, main)


def test_bodies_are_streamed_both_ways(tmp_path: Path) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * (1 << 16)
        yield b"end"

    async def main(client: httpx.AsyncClient, functions: Functions) -> None:
        answer = await client.post("/", content=parts())
        assert answer.json() == {"size": (64 << 16) + 3, "end": "end"}
        async with client.stream("GET", "/stream") as stream:
            assert b"".join([part async for part in stream.aiter_raw()]) == b"onetwo"

    with_site(tmp_path, main)


HANDSHAKE = (
    "GET /function/site{} HTTP/1.1\r\nHost: node\r\nUpgrade: websocket\r\n"
    "Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Sec-WebSocket-Version: 13\r\n\r\n"
)
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, 1.3


async def opened(path: str = "/ws") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address, _, port = ENDPOINT.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(address, int(port))
    writer.write(HANDSHAKE.format(path).encode())
    return reader, writer


def test_websocket_passes_bytes_until_a_side_ends_it(tmp_path: Path) -> None:
    async def main(client: httpx.AsyncClient, functions: Functions) -> None:
        for ends in ("server", "client", "node"):
            reader, writer = await opened()
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101 ")
            assert ACCEPT in head
            for part in (b"a", bytes(300_000)):
                writer.write(part)
                assert await reader.readexactly(len(part)) == part.upper()
            assert functions.running("site") == 1
            if ends == "server":
                writer.write(b"bye")
                assert await reader.read() == b"END"
            elif ends == "node":
                [instance] = functions._runtime.running()
                os.kill(instance.pid, signal.SIGKILL)
                assert await reader.read() == b""
                await until_load(functions, 0, 0, 0)
            writer.close()
            while functions.running("site"):
                await asyncio.sleep(0.01)
            assert (await client.get("/")).status_code == 203
        reader, writer = await opened("/refuse")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 203 ")
        writer.close()

    with_site(tmp_path, main)


def test_websockets_take_half_of_what_the_node_answers_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = lambda_host.configuration
    monkeypatch.setattr(lambda_host, "configuration", lambda *given: msgspec.structs.replace(
        made(*given), functions=config.Functions(at_once=4)))  # fmt: skip

    async def main(client: httpx.AsyncClient, functions: Functions) -> None:
        held = [await opened() for _ in range(2)]
        for reader, _ in held:
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        reader, writer = await opened()
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 429 ")
        assert (await client.get("/")).status_code == 203
        for _, each in (*held, (reader, writer)):
            each.close()
        while functions.running("site"):
            await asyncio.sleep(0.01)
        reader, writer = await opened()
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        writer.close()

    with_site(tmp_path, main)


def test_a_websocket_on_which_nothing_comes_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websockets, "IDLE_SECONDS", 0.2)

    async def main(_: httpx.AsyncClient, functions: Functions) -> None:
        reader, writer = await opened()
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.read() == b""
        writer.close()
        while functions.running("site"):
            await asyncio.sleep(0.01)

    with_site(tmp_path, main)


def test_a_version_that_was_replaced_has_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "_DRAIN_SECONDS", 0.2)

    async def main(client: httpx.AsyncClient, functions: Functions) -> None:
        reader, writer = await opened()
        await reader.readuntil(b"\r\n\r\n")
        await functions.update("site", given=Settings(environment={"NEW": "1"}))
        assert await reader.read() == b""  # while the client goes on
        writer.close()
        assert (await client.get("/")).status_code == 203
        await until_load(functions, 1, 0, 0)

    with_site(tmp_path, main)


def test_a_client_that_leaves_ends_its_request(tmp_path: Path) -> None:
    async def main(client: httpx.AsyncClient, functions: Functions) -> None:
        request = asyncio.ensure_future(client.get("/sleep"))
        while not functions.running("site"):
            await asyncio.sleep(0.01)
        request.cancel()
        while functions.running("site"):
            await asyncio.sleep(0.01)

    with_site(tmp_path, main)


def test_each_failure_has_its_status_and_words(tmp_path: Path) -> None:
    async def main(client: httpx.AsyncClient, functions: Functions) -> None:
        causes: list[str] = []
        functions._serving.observers.append(lambda outcome: causes.append(outcome.cause))
        assert (await client.get("/")).status_code == 203
        ended = await client.get("/exit")
        assert ended.status_code == 502
        assert "exit status 9" in ended.json()["message"]
        assert "gave up" in ended.json()["hint"]
        assert (await client.get("/")).status_code == 203, "another takes its place"
        slow = await client.get("/sleep")
        assert slow.status_code == 504
        assert "timed out" in slow.json()["message"]
        assert (await client.request("CONNECT", "/", content=b"abc")).status_code == 405
        asks = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c"}  # as Java does
        assert (await client.post("/", headers=asks, content=b"abc")).json()["end"] == "abc"
        assert (await client.get("/")).status_code == 203
        other = ZipSource(data=zipped(app="def main(event): return 1"))
        await functions.add("other", other, Settings(handler="app:main"))
        assert (await client.get(f"{ENDPOINT}/function/other/")).status_code == 404
        unknown = await client.get(f"{ENDPOINT}/function/nothing/")
        assert unknown.status_code == 404
        await functions.reserve("site", 0)
        assert (await client.get("/")).status_code == 429
        assert [cause for cause in causes if cause] == ["exit", "timeout", "throttled"]

    import msgspec

    with_site(tmp_path, main, msgspec.structs.replace(SETTINGS, timeout=3.0))


def test_odd_answers_are_passed_on_whole_or_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urls, "_END_SECONDS", 600.0)  # its process does not end
    chunked = "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"

    async def main(client: httpx.AsyncClient, _: Functions) -> None:
        for answer, status, words in (
            ("304 Not Modified\r\nETag: a\r\nContent-Length: 500\r\n\r\n", 304, ""),
            ("204 No Content\r\nContent-Length: 5\r\n\r\n", 204, ""),
            (f"200 OK\r\nContent-Length: 2\r\n{chunked}", 200, "hello"),
            (f"200 OK\r\nContent-Length: 9\r\n{chunked}", 200, "hello"),
            ("two hundred\r\n\r\n", 502, "what is not HTTP"),
            ("200 OK\r\nContent-Length: x\r\n\r\n", 502, "what is not HTTP"),
            ("999 Denied\r\nContent-Length: 0\r\n\r\n", 502, "status 999"),
            ("200 OK\r\nX-A: \x01\r\nContent-Length: 0\r\n\r\n", 502, "in its header x-a"),
            ("200 OK\r\nX-A: a\tb\r\nContent-Length: 2\r\n\r\nok", 200, "ok"),
        ):
            got = await client.get("/?" + urllib.parse.quote(f"HTTP/1.1 {answer}", safe=""))
            assert got.status_code == status, answer
            assert words in got.text
        for answer in ("", "hello"):
            got = await client.get("/?" + answer)
            assert got.status_code == 502
            assert "closed the connection" in got.text

    with_site(tmp_path, main, server=ODD)


def test_failed_server_is_reported_with_output(tmp_path: Path) -> None:
    async def main(client: httpx.AsyncClient, functions: Functions) -> None:
        failed = await client.get("/")
        assert failed.status_code == 502
        assert "no such cow" in json.dumps(failed.json())

    with_site(tmp_path, main, server="raise SystemExit('no such cow')\n")


def load(functions: Functions) -> tuple[int, int, int]:
    """Idle and busy instances, and requests that wait for one."""
    loads = functions._serving.loads()
    idle, busy, waiting = (sum(getattr(load, name) for load in loads)
                           for name in ("idle", "busy", "waiting"))  # fmt: skip
    return idle, busy, waiting


async def until_load(functions: Functions, *expected: int) -> None:
    while load(functions) != expected:
        await asyncio.sleep(0.01)


def test_full_instance_makes_another_start(
    tmp_path: Path,
) -> None:
    settings = msgspec.structs.replace(SETTINGS, per_instance=2, timeout=600.0)

    async def main(client: httpx.AsyncClient, functions: Functions) -> None:
        await functions.reserve("site", 5, queue=1)
        requests = [asyncio.create_task(client.get("/sleep", timeout=300)) for _ in range(5)]
        await until_load(functions, 0, 3, 0)
        beyond = asyncio.create_task(client.get("/"))
        await until_load(functions, 0, 3, 1)
        assert (await client.get("/")).status_code == 429
        requests.pop().cancel()
        assert (await beyond).status_code == 203
        for task in requests:
            task.cancel()
        await until_load(functions, 3, 0, 0)

    with_site(tmp_path, main, settings)


def test_as_many_instances_are_up_as_are_always_kept(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, warm=2, keep_warm=0.01)

    async def main(client: httpx.AsyncClient, functions: Functions) -> None:
        await until_load(functions, 2, 0, 0)
        first, *_ = functions._runtime.running()
        os.kill(first.pid, signal.SIGKILL)
        while first.id in (instance.id for instance in functions._runtime.running()):
            await asyncio.sleep(0.01)
        await until_load(functions, 2, 0, 0)
        assert (await client.get("/")).status_code == 203
        await functions.update("site", None, Settings(warm=0))
        await until_load(functions, 0, 0, 0)

    with_site(tmp_path, main, settings)


def kill(pid: int) -> None:
    """Kill a process, and wait until the kernel has ended it."""
    ended = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert is_readable(ended, 60)
    os.close(ended)


def test_a_request_gets_no_instance_that_was_killed_just_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = msgspec.structs.replace(SETTINGS, warm=2)

    async def main(client: httpx.AsyncClient, functions: Functions) -> None:
        await until_load(functions, 2, 0, 0)
        async with functions.using("site") as version:
            async with functions._serving.web(version) as preferred:
                pass
            kill(preferred.instance.pid)  # nothing is awaited meanwhile: the runtime knows nothing
            async with functions._serving.web(version) as chosen:
                assert chosen is not preferred
        assert (await client.get("/")).status_code == 203
        await until_load(functions, 2, 0, 0)
        for instance in list(functions._runtime.running()):
            kill(instance.pid)
        assert (await client.get("/")).status_code == 203
        await until_load(functions, 2, 0, 0)
        looks = iter([True])  # it is killed just after the look at it
        alive = web.WebInstance.is_alive
        monkeypatch.setattr(web.WebInstance, "is_alive", property(
            lambda instance: next(looks, alive.__get__(instance))))  # fmt: skip
        for instance in list(functions._runtime.running()):
            kill(instance.pid)
        assert (await client.post("/", content=b"abc")).json()["end"] == "abc"

    with_site(tmp_path, main, settings)


def test_what_a_function_wrote_is_its_log(tmp_path: Path) -> None:
    async def main(client: httpx.AsyncClient, functions: Functions) -> None:
        assert (await client.get("/exit")).status_code == 502
        text, at = await functions.recent_output("site", (0, 0), 60)
        assert [line.text for line in logs.lines(text)] == ["gave up"]
        assert await functions.recent_output("site", at, 0) == (b"", at)
        with pytest.raises(Failed, match="no instance or function 'other'"):
            await functions.recent_output("other", (0, 0), 0)
        source = ZipSource(data=zipped(app="def main(event): print('said', event)"))
        await functions.add("hello", source, Settings(handler="app:main", timeout=60.0))
        await functions.invoke("hello", b'"it"', request_id="r")
        text, _ = await functions.recent_output("hello", (0, 0), 0)
        assert [line.text for line in logs.lines(text)] == ["said it"]

    with_site(tmp_path, main)
