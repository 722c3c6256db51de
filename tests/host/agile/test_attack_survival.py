"""Killed at random and under load: the short form of ``python -m bench.survival``."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.agile_host import daemon, on_host, serve

from firstlight.agile import Config, Function
from firstlight.agile.client import Client
from firstlight.agile.network.networks import Network, Networks
from firstlight.agile.node.process import pid_of
from firstlight.agile.node.starter import Starter
from firstlight.agile.node.wire import AnswerVerb
from firstlight.agile.parts.cgroups import Cgroups, Limits
from firstlight.agile.parts.shelves import Parts
from firstlight.errors import Failed

CHECKOUT = Path(__file__).parents[3]


def survival(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "bench.survival", *words], capture_output=True, text=True,
        cwd=CHECKOUT, env={**os.environ, "SURVIVAL_NAME": Config(name="t9").name}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_random_kills_leave_nothing_behind() -> None:
    if not Path("/usr/bin/python3").exists():
        pytest.skip("/usr/bin/python3 is missing")
    assert '"left": "nothing"' in survival("--kills", "14", "--every", "7", "--seed", "2")


def test_no_instance_is_lost_with_its_manager() -> None:
    assert '"instances": 150' in survival("--instances", "150")


def test_killed_node_is_replaced_without_request() -> None:
    async def main() -> None:
        async with daemon():
            socket = Config(name="t5").socket
            before = pid_of(Config(name="t5"))
            os.kill(before, 9)
            while pid_of(Config(name="t5")) in (-1, before):
                await asyncio.sleep(0.01)
            null = os.open(os.devnull, os.O_RDWR)
            true = Function(rootfs="/", command=("/bin/true",), network="none")
            with Client(socket) as client:
                assert client.wait(client.start(true, (null, null, null)).id).status == 0
            os.close(null)

    on_host(main)


def test_stopped_manager_delays_no_registered_start() -> None:
    async def main() -> None:
        async with daemon() as manager:
            socket, null = Config(name="t5").socket, os.open(os.devnull, os.O_RDWR)
            true = Function(rootfs="/", command=("/bin/true",), network="none")
            with Client(socket) as client:
                number, version = client.register(true)
                client.prepare(true)  # as many go on as parts are ready
                os.kill(manager, signal.SIGSTOP)
                try:
                    starter = Starter(socket)
                    for _ in range(8):
                        answer = await starter.start(number, version, [null] * 3, {}, 0)
                        assert answer.verb == AnswerVerb.STARTED
                    starter.close()
                finally:
                    os.kill(manager, signal.SIGCONT)
                while client.running():
                    await asyncio.sleep(0.01)
            os.close(null)

    on_host(main)


async def answers(port: int) -> bytes:
    """What is sent by who listens there; nothing if nobody does."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return b""
    try:
        return await asyncio.wait_for(reader.read(99), 60)
    except (OSError, TimeoutError):
        return b""
    finally:
        writer.close()


def test_published_ports_survive_manager_restarts(
    function: Callable[..., Function],
) -> None:
    async def main() -> None:
        config = Config(name="t5")
        listens = function("listen", "7777", network="internal", ports={18081: 7777})
        first = await serve()
        ours, theirs = os.pipe()
        null = os.open(os.devnull, os.O_RDWR)
        with Client(config.socket) as client:
            detached = client.start(listens, (null, theirs, null), detached=True).id
        assert os.read(ours, 99) == b"listening\n"
        assert await answers(18081) == b"hello\n"
        first.kill()
        await first.wait()
        assert await answers(18081) == b"hello\n"
        second = await serve()
        try:
            assert await answers(18081) == b"hello\n"
            with Client(config.socket) as client:
                await asyncio.to_thread(client.stop, detached)
                while client.running():
                    await asyncio.sleep(0.01)
            assert await answers(18081) == b""
        finally:
            second.terminate()
            assert await second.wait() == 0
        for descriptor in (ours, theirs, null):
            os.close(descriptor)

    on_host(main)


def test_parts_of_an_earlier_node_are_not_mistaken() -> None:
    ended: list[Network] = []

    class Some(Networks):
        def __init__(self) -> None:
            pass

        def discard(self, network: Network) -> None:
            ended.append(network)

    class Link:
        def __init__(self) -> None:
            self.withdrawn: list[int] = []

        def add(self, *_: object) -> None:
            pass

        def withdraw(self, index: int) -> None:
            self.withdrawn.append(index)

    parts = Parts(Some(), Cgroups.__new__(Cgroups), Limits(1, 1.0, 1))
    first, other, link = Network(-1, None, 0), Network(-1, None, 0), Link()
    parts.node = link  # type: ignore[assignment]
    parts.give(first, "none", 1)
    [held] = parts._held.values()
    parts.lost()
    assert ended == [first]
    parts.give(other, "none", 1)
    parts.discard(held)
    parts.give_back(held, 1)
    assert ended == [first]
    assert link.withdrawn == []
    assert [h.made for h in parts._held.values()] == [other]
    parts.node = None
    with pytest.raises(Failed):
        parts.give(Network(-1, None, 0), "none", 1)
