"""What is done ahead of requests, and what a request does where it was left to it."""

import asyncio
import os
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from tests.host.agile.test_attack_pressure import Fast
from tests.support.agile_host import on_host, serve, stopped

from firstlight.agile import Config, Function, Runtime, protocol
from firstlight.agile.client import Client
from firstlight.agile.config import Ahead, Pools, PoolSize
from firstlight.agile.function import Counts
from firstlight.agile.node import wire
from firstlight.agile.node.process import pid_of
from firstlight.agile.node.wire import AnswerVerb, RequestVerb
from firstlight.agile.verify import cgroups, namespaces

Make = Callable[..., Function]
GATEWAY = "10.213.0.1"
CLIENTS = 600
"""More than fit into a connection, by which each of them is handed on."""


def neighbours(pid: int) -> str:
    return subprocess.run(
        ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "neighbour"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip


@pytest.mark.parametrize("preset", [True, False])
def test_gateway_neighbour_is_preset_or_resolved(function: Make, preset: bool) -> None:
    async def main() -> None:
        config = Config(name="t8", ahead=Ahead(neighbours=preset))
        async with Runtime(config) as runtime:
            async with await runtime.start(function("hold", "99")) as instance:
                assert (GATEWAY in neighbours(instance.pid)) is preset
            async with await runtime.start(function("ping", GATEWAY)) as instance:
                assert instance.stdout
                assert await instance.stdout.all() == b"answered\n"

    on_host(main)


def none_of(client: Client) -> Counts:
    """The pool of networks without links."""
    return next(pool for pool in client.pools() if pool.name == "network none")


def test_network_of_unseen_instance_is_replaced(function: Make) -> None:
    """A manager that does not read hears of their starts and ends at once."""

    def reuses(number: int) -> Function:
        return function("none", network="none", reuse="sandbox", directory="/" + "./" * number)

    async def main() -> None:
        size = PoolSize(low=6, high=6)
        config = Config(name="t5", pools=Pools(network=size, window=0))
        process = await serve(config)
        null = os.open(os.devnull, os.O_RDWR)
        with Client(config.socket) as client:
            fast = Fast(config.socket)

            async def ends(number: int) -> None:
                fast.ask(wire.request(RequestVerb.START, number), [null] * 3)
                while (await fast.answer()).verb != AnswerVerb.ENDED:
                    pass

            numbers = [client.register(reuses(turn))[0] for turn in range(9)]
            client.prepare(reuses(0))
            with stopped(process.pid), ExitStack() as clients:
                for _ in range(CLIENTS):
                    asks = clients.enter_context(Fast(config.socket).socket)
                    asks.send(protocol.encode(protocol.List()))
                for number in numbers[:4]:
                    await ends(number)
            while client.running() or none_of(client).ready < size.high:
                await asyncio.sleep(0.01)
            before = none_of(client).misses
            for number in numbers[4:]:
                await ends(number)
            assert none_of(client).misses == before
            fast.socket.close()
        os.close(null)
        process.terminate()
        assert await process.wait() == 0

    on_host(main)


OWN = ("pid", "mnt", "ipc", "uts", "net", "cgroup")


def test_no_two_starts_share_a_namespace_or_a_cgroup(function: Make) -> None:
    """One by one, when the node has made ahead what the next enters; at once, when it has not."""

    async def main() -> None:
        async with Runtime(Config(name="t8")) as runtime:
            node = pid_of(Config(name="t8"))
            up = [await runtime.start(function("hold", "99"))]
            for _ in range(5):
                while not (ahead := made_ahead(node)):
                    await asyncio.sleep(0.001)
                up.append(await runtime.start(function("hold", "99")))
                own = namespaces(up[-1].pid)
                assert ahead >= {own["mnt"], own["ipc"]}
            up += await asyncio.gather(*(runtime.start(function("hold", "99")) for _ in range(6)))
            pids = [instance.pid for instance in up]
            spaces = [namespaces(pid) for pid in (*pids, node)]
            for name in OWN:
                assert len({instance[name] for instance in spaces}) == len(spaces), name
            joined = [cgroups(pid) for pid in (*pids, node)]
            for names in joined[0]:
                if any(instance[names] != joined[-1][names] for instance in joined):
                    assert len({instance[names] for instance in joined}) == len(joined), names
            for instance in up:
                shown = Path(f"/proc/{instance.pid}/root/proc").iterdir()
                assert [each.name for each in shown if each.name.isdigit()] == ["1"]
                await instance.stop()

    on_host(main)


def made_ahead(node: int) -> set[str]:
    """The namespaces that the node holds, if one of each kind is for the next start: beside them it
    has its own two, and the blank one that mount namespaces are copied from.
    """
    held = set()
    for descriptor in Path(f"/proc/{node}/fd").iterdir():
        with suppress(OSError):
            held.add(str(descriptor.readlink()))
    spaces = {link for link in held if link.startswith(("mnt:[", "ipc:["))}
    return spaces if len(spaces) == 5 else set()
