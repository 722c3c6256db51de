"""Functions called over HTTP, and how each kind of them answers."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.agile_host import on_host

from firstlight.agile import Config, Runtime
from firstlight.agile.config import Http
from firstlight.agile.functions.catalogue import Functions
from firstlight.agile.functions.version import FunctionVersion
from firstlight.agile.http import node
from firstlight.agile.serving import Answer, Serving
from firstlight.errors import Failed

LISTEN = "unix:/run/firstlight-t4.http"
Make = Callable[..., FunctionVersion]


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    """A root file system with a shell."""
    program = Path("/bin/busybox")
    if not program.exists():
        pytest.skip("/bin/busybox is missing")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sh").write_bytes(program.read_bytes())
    (tmp_path / "bin/sh").chmod(0o755)
    tmp_path.chmod(0o755)
    tmp_path.parent.chmod(0o755)
    return tmp_path


def with_serving(main: Callable[[Serving], Awaitable[None]]) -> None:
    async def on() -> None:
        async with Runtime(Config(name="t4")) as runtime, Serving(runtime) as serving:
            await main(serving)

    on_host(on)


async def called(serving: Serving, version: FunctionVersion, event: bytes = b"{}") -> Answer:
    return await serving.invoke(version, event, request_id="r")


def target(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except FileNotFoundError:  # of the listing itself
        return ""


def command(root: Path, script: str, **more: Any) -> FunctionVersion:
    return FunctionVersion(
        name="f", kind="command", root=str(root), command=("/bin/sh", "-c", script), **more
    )


def test_a_command_answers_what_it_reads(busybox: Path) -> None:
    async def main(serving: Serving) -> None:
        answer = await called(serving, command(busybox, "cat; echo seen >&2"), b'{"a": 1}')
        assert (answer.payload, answer.error, answer.log_tail) == (b'{"a": 1}', None, b"seen")
        assert not [
            each for each in Path("/proc/self/fd").iterdir() if "memfd:event" in target(each)
        ]

    with_serving(main)


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        ("echo bad >&2; exit 3", b"Runtime.ExitError", b"exit status 3: bad"),
        ("while :; do :; done", b"Sandbox.Timedout", b"Task timed out after 0.50 seconds"),
        ("yes", b"Function.ResponseSizeTooLarge", b"6291456"),
    ],
)
def test_a_command_that_fails_is_reported_as_lambda_does(
    busybox: Path, script: str, kind: bytes, words: bytes
) -> None:
    async def main(serving: Serving) -> None:
        timeout = 0.5 if "while" in script else 30.0
        answer = await called(serving, command(busybox, script, timeout=timeout))
        assert answer.error == "Unhandled"
        assert kind in answer.payload
        assert words in answer.payload

    with_serving(main)


def test_the_daemon_serves_http_where_it_is_configured_to(tmp_path: Path) -> None:
    async def main() -> None:
        config = Config(name="t4", store=str(tmp_path), http=Http(listen=LISTEN))
        assert config.http
        async with Runtime(config) as runtime, Serving(runtime) as serving:
            functions = Functions(runtime, serving)
            async with node.opened(config, functions, serving):
                with pytest.raises(Failed, match="somebody serves"):
                    await node.opened(config, functions, serving).__aenter__()
                transport = httpx.AsyncHTTPTransport(uds=LISTEN.removeprefix("unix:"))
                async with httpx.AsyncClient(transport=transport, base_url="http://n") as client:
                    assert (await client.get("/no-such-thing")).status_code == 404
            assert not Path(LISTEN.removeprefix("unix:")).exists()

    on_host(main)
