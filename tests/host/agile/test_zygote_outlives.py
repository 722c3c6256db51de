"""Python functions whose manager is killed or replaced: zygotes and forks go on."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from tests.support.agile_host import on_host, serve
from tests.support.python_functions import python_root

from firstlight.agile import Config, Function
from firstlight.agile.client import Client
from firstlight.errors import Failed

HANDLERS = """
def echo(event):
    return event

def work(event):
    print("x" * 100_000, flush=True)
    with open("/srv/begun", "w") as begun:
        begun.write("begun")
    with open("/srv/go") as go:
        go.read()
    print("y" * 100_000, flush=True)
    with open("/srv/done", "w") as done:
        done.write("done")
"""
SLOW = """
with open("/srv/begun", "w") as begun:
    begun.write("begun")
with open("/srv/go") as go:
    go.read()
def main(event):
    return event
"""
CONFIG = Config(name="t4")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root file system with these handlers, and pipes by which they are watched and told."""
    root = python_root(tmp_path, {"handlers": HANDLERS, "slow": SLOW})
    for name in ("begun", "go", "done"):
        os.mkfifo(root / "srv" / name)
        (root / "srv" / name).chmod(0o666)
    return root


def invoke(function: Function, event: object) -> object:
    with Client(CONFIG.socket) as client:
        return msgspec.json.decode(client.invoke(function, event).value)


def zygotes() -> list[int]:
    with Client(CONFIG.socket) as client:
        return [instance.pid for instance in client.running() if instance.function.kind == "python"]


def with_root(root: Path, main: Callable[[Callable[..., Function]], Awaitable[None]]) -> None:
    def function(handler: str) -> Function:
        return Function(rootfs=str(root), kind="python", handler=handler, directory="/srv")

    async def on() -> None:
        subprocess.run(["mount", "--bind", "/usr", root / "usr"], check=True)
        await main(function)
        assert not CONFIG.socket.exists()

    on_host(on)


async def end(manager: asyncio.subprocess.Process) -> None:
    manager.send_signal(signal.SIGINT)
    assert await manager.wait() == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_zygote_and_a_handler_at_work_outlive_their_manager(root: Path, how: int) -> None:
    """The next manager goes on with the zygote, and the handler ends its work."""

    async def main(function: Callable[..., Function]) -> None:
        first = await serve(CONFIG, keep=True)
        echo, work = function("handlers:echo"), function("handlers:work")
        assert await asyncio.to_thread(invoke, echo, 1) == 1
        working = asyncio.ensure_future(asyncio.to_thread(invoke, work, None))
        assert await asyncio.to_thread((root / "srv/begun").read_text) == "begun"
        before = zygotes()
        assert len(before) == 2
        first.send_signal(how)
        await first.wait()
        with pytest.raises(Failed, match="runtime is gone"):
            await working
        second = await serve(CONFIG, keep=True)
        assert zygotes() == before
        assert await asyncio.to_thread(invoke, echo, 2) == 2
        await asyncio.to_thread((root / "srv/go").write_text, "go")
        assert await asyncio.to_thread((root / "srv/done").read_text) == "done"
        assert await asyncio.to_thread(invoke, echo, 3) == 3
        assert zygotes() == before, "no other was started"
        await end(second)

    with_root(root, main)


def test_an_interpreter_that_has_not_imported_its_handler_ends(root: Path) -> None:
    async def main(function: Callable[..., Function]) -> None:
        first = await serve(CONFIG, keep=True)
        slow = function("slow:main")
        waiting = asyncio.ensure_future(asyncio.to_thread(invoke, slow, None))
        assert await asyncio.to_thread((root / "srv/begun").read_text) == "begun"
        [before] = zygotes()
        first.kill()
        await first.wait()
        with pytest.raises(Failed, match="runtime is gone"):
            await waiting
        second = await serve(CONFIG, keep=True)
        again = asyncio.ensure_future(asyncio.to_thread(invoke, slow, 7))
        assert await asyncio.to_thread((root / "srv/begun").read_text) == "begun"
        await asyncio.to_thread((root / "srv/go").write_text, "go")
        assert await again == 7
        [after] = zygotes()
        assert after != before
        await end(second)

    with_root(root, main)


def test_repeated_manager_kills_lose_no_zygote(root: Path) -> None:
    async def main(function: Callable[..., Function]) -> None:
        echo = function("handlers:echo")
        manager = await serve(CONFIG, keep=True)
        assert await asyncio.to_thread(invoke, echo, 0) == 0
        before = zygotes()
        for number in range(5):
            requests = [asyncio.to_thread(invoke, echo, n) for n in range(4)]
            under_way = asyncio.gather(*requests, return_exceptions=True)
            if number % 2:
                await asyncio.to_thread(invoke, echo, number)
            manager.kill()
            await manager.wait()
            manager = await serve(CONFIG, keep=True)
            await under_way  # what came while there was none is served by the next
            assert await asyncio.to_thread(invoke, echo, number) == number
            assert len(zygotes()) == 1
        assert before
        await end(manager)

    with_root(root, main)
