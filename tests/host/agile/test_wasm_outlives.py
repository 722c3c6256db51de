"""WebAssembly workers whose manager is killed or replaced, and clients attached to them."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from tests.support.agile_host import on_host, serve

from firstlight.agile import Config, Function, daemon
from firstlight.agile.client import Client
from firstlight.agile.node.process import pid_of
from firstlight.errors import Failed

wasmtime = pytest.importorskip("wasmtime")

MODULE = """(module
  (func (export "next") (param i32) (result i32) local.get 0 i32.const 1 i32.add)
  (func (export "spin") (loop br 0)))"""
CONFIG = Config(name="t4")


async def end(manager: asyncio.subprocess.Process) -> None:
    manager.send_signal(signal.SIGINT)
    assert await manager.wait() == 0
    assert not CONFIG.socket.exists()


def workers() -> list[int]:
    with Client(CONFIG.socket) as client:
        return [instance.pid for instance in client.running()]


def value(function: Function, event: object) -> object:
    with Client(CONFIG.socket) as client:
        return msgspec.json.decode(client.invoke(function, event).value)


def with_module(tmp_path: Path, main: Callable[[Function], Awaitable[None]]) -> None:
    path = tmp_path / "module.wasm"
    path.write_bytes(wasmtime.wat2wasm(MODULE))

    async def on() -> None:
        try:
            await main(Function(rootfs=str(path), kind="wasm", handler="next", timeout=20.0))
        finally:
            with suppress(Failed):
                await asyncio.to_thread(daemon.end, CONFIG)

    on_host(on)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_and_its_clients_outlive_their_manager(tmp_path: Path, how: int) -> None:
    async def main(function: Function) -> None:
        manager = await serve(CONFIG, keep=True)
        with Client(CONFIG.socket) as client:
            attached = client.attach(function)
        assert msgspec.json.decode(attached.invoke([1]).value) == 2
        before = workers()
        assert len(before) == 1
        for _ in range(2):
            manager.send_signal(how)
            await manager.wait()
            for number in range(100):
                assert msgspec.json.decode(attached.invoke([number]).value) == number + 1
            manager = await serve(CONFIG, keep=True)
            assert value(function, [6]) == 7
            assert workers() == before, "no other was started"
        results = attached.invoke_all([[0], [0.5], [41]])
        assert [isinstance(result, Failed) for result in results] == [False, True, False]
        attached.connection.close()
        await end(manager)

    with_module(tmp_path, main)


def test_idle_worker_outlives_manager(tmp_path: Path) -> None:
    async def main(function: Function) -> None:
        first = await serve(CONFIG, keep=True)
        assert value(function, [1]) == 2
        [before] = workers()
        first.kill()
        await first.wait()
        await asyncio.sleep(1.2)  # longer than it once lingered for another client
        second = await serve(CONFIG, keep=True)
        assert workers() == [before]
        assert value(function, [2]) == 3
        assert kept(pid_of(CONFIG)) == 1
        os.kill(before, signal.SIGKILL)
        while workers():
            await asyncio.sleep(0.01)
        assert value(function, [3]) == 4
        while kept(pid_of(CONFIG)) != 1:  # the manager drops those of the worker that ended
            await asyncio.sleep(0.01)
        await end(second)

    with_module(tmp_path, main)


def kept(node: int) -> int:
    """How many workers a node holds the descriptors of."""
    links = Path(f"/proc/{node}/fd").iterdir()
    return sum(str(link.readlink()).startswith("/memfd:kept") for link in links)


def test_take_over_serves_new_code_to_new_clients(
    tmp_path: Path,
) -> None:
    async def main(function: Function) -> None:
        manager = await serve(CONFIG, keep=True)
        with Client(CONFIG.socket) as client:
            attached = client.attach(function)
        assert value(function, [1]) == 2
        for step in (10, 20):
            text = MODULE.replace("i32.const 1", f"i32.const {step}")
            fresh = tmp_path / "fresh"
            fresh.write_bytes(wasmtime.wat2wasm(text))
            fresh.rename(function.rootfs)
            manager.kill()
            await manager.wait()
            manager = await serve(CONFIG, keep=True)
            while value(function, [1]) != 1 + step:  # it looks five times a second
                await asyncio.sleep(0.05)
            assert msgspec.json.decode(attached.invoke([1]).value) == 2
        while len(workers()) > 2:
            await asyncio.sleep(0.05)
        attached.connection.close()
        while len(workers()) > 1:
            await asyncio.sleep(0.05)
        await end(manager)

    with_module(tmp_path, main)


def test_a_worker_that_was_not_ready_ends(tmp_path: Path) -> None:
    async def main(function: Function) -> None:
        first = await serve(CONFIG, keep=True)
        many = "".join(f'(func (export "f{n}") (result i32) i32.const {n})' for n in range(60_000))
        Path(function.rootfs).write_bytes(wasmtime.wat2wasm(f"(module {many})"))
        big = msgspec.structs.replace(function, handler="f1", cpus=0.05)
        waiting = asyncio.create_task(asyncio.to_thread(value, big, []))
        while not workers():
            await asyncio.sleep(0.01)
        [before] = workers()
        first.kill()
        await first.wait()
        with pytest.raises(Failed, match="runtime is gone"):
            await waiting
        second = await serve(CONFIG, keep=True)
        while before in workers():
            await asyncio.sleep(0.01)
        await end(second)

    with_module(tmp_path, main)


def test_attached_clients_learn_that_a_worker_ended(tmp_path: Path) -> None:
    async def main(function: Function) -> None:
        manager = await serve(CONFIG, keep=True)
        with Client(CONFIG.socket) as client, client.attach(function) as attached:
            spin = msgspec.structs.replace(function, handler="spin", timeout=0.2)
            with (
                client.attach(spin) as slow,
                pytest.raises(Failed, match="did not answer in"),
            ):
                slow.invoke([])
            for instance in client.running():
                client.stop(instance.id)
            with pytest.raises(Failed, match="the worker of next ended"):
                attached.invoke([1])
            with client.attach(function) as again:
                assert msgspec.json.decode(again.invoke([1]).value) == 2
        await end(manager)

    with_module(tmp_path, main)
