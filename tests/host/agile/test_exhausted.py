"""A host that has no pid or descriptor left: an error that says so, and then all is well again."""

import asyncio
import json
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.support.agile_host import (
    SOCKET,
    daemon,
    limits,
    on_host,
    pids_hierarchy,
    serve,
    stopped,
    streams,
)
from tests.support.pod_host import PodHost, host

from firstlight.agile import Config, Function, Runtime, protocol
from firstlight.agile.client import Client
from firstlight.agile.config import Functions, Pools, PoolSize
from firstlight.agile.node import wire
from firstlight.agile.node.process import pid_of
from firstlight.agile.node.wire import OrderVerb, RequestVerb
from firstlight.errors import Failed

__all__ = ["host"]  # a fixture
Make = Callable[..., Function]


def below(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []  # it has just ended
    return [pid, *(each for child in map(int, children) for each in below(child))]


@contextmanager
def no_pid_left(*pids: int) -> Iterator[None]:
    """Processes and those below them make no others: trees in a cgroup that is full."""
    hierarchy = pids_hierarchy()
    group = hierarchy / "firstlight.agile.t5full"
    group.mkdir()
    tree = [each for pid in pids for each in below(pid)]
    try:
        for each in tree:
            with suppress(ProcessLookupError):
                (group / "cgroup.procs").write_text(str(each))
        (group / "pids.max").write_text("1")
        yield
    finally:
        for each in [each for pid in pids for each in below(pid)]:
            with suppress(ProcessLookupError):
                (hierarchy / "cgroup.procs").write_text(str(each))
        group.rmdir()


@contextmanager
def no_descriptor_left(pid: int) -> Iterator[None]:
    """A process opens no more files than it has."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    numbers = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
    free = next(number for number in range(4096) if number not in numbers)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def starts(client: Client, function: Function) -> int:
    """How an instance ended whose command ends by itself."""
    _, _, theirs = streams()
    ended = client.wait(client.start(function, theirs).id)
    assert ended.status is not None
    return ended.status


def test_without_a_pid_a_start_says_so_and_the_next_is_served(function: Make) -> None:
    async def main() -> None:
        async with daemon() as pid:
            with Client(SOCKET) as client:
                hold = function("hold", "0")
                assert starts(client, hold) == 0
                with no_pid_left(pid, pid_of(Config(name="t5"))):
                    for _ in range(3):
                        with pytest.raises(Failed, match="an instance: clone: Resource"):
                            starts(client, hold)
                assert starts(client, hold) == 0
                assert client.running() == []

    on_host(main)


def test_start_without_pid_leaves_network_to_others(function: Make) -> None:
    async def main() -> None:
        two = PoolSize(low=2, high=2, dry="refuse")
        functions = Functions(idle_seconds=0.01, look_seconds=0.01)
        config = Config(name="t5", pools=Pools(network=two), functions=functions)
        first, other = (function("hold", "60", network="none", files=n) for n in (64, 65))
        async with Runtime(config) as runtime:
            await runtime.prepare(first)
            with no_pid_left(runtime.node), pytest.raises(Failed, match="clone"):
                await runtime.start(first)
            while runtime._instances._registry.number(1):
                await asyncio.sleep(0.01)
            await runtime.prepare(other)
            async with await runtime.start(other), await runtime.start(other):
                pass

    on_host(main)


def test_start_without_pid_keeps_cgroup_limits(function: Make) -> None:
    async def main() -> None:
        usual, few = (function("hold", "60", network="none", pids=pids) for pids in (64, 7))
        one_cgroup = Config(name="t5", pools=Pools(cgroup=PoolSize(low=1, high=1)))
        async with Runtime(one_cgroup) as runtime:
            async with await runtime.start(usual) as instance:
                assert limits(instance.pid)[1]["pids.max"] == "64"
            with no_pid_left(runtime.node):
                for _ in range(3):
                    with pytest.raises(Failed, match="clone"):
                        await runtime.start(few)
            async with await runtime.start(few) as instance:
                assert limits(instance.pid)[1]["pids.max"] == "7"

    on_host(main)


def test_a_helper_that_cannot_be_started_again_is_when_it_can(function: Make) -> None:
    async def main() -> None:
        async with daemon() as pid:
            with Client(SOCKET) as client:
                hold = function("hold", "0")
                assert starts(client, hold) == 0
                with no_pid_left(pid):
                    for helper in below(pid)[1:]:
                        os.kill(helper, signal.SIGKILL)
                    while len(below(pid)) > 1:
                        await asyncio.sleep(0)
                    with pytest.raises(Failed, match=r"cannot start .*: Resource"):
                        starts(client, function("hold", "0", network="internal"))
                assert starts(client, hold) == 0
                assert starts(client, function("hold", "0", network="internal")) == 0

    on_host(main)


def test_start_without_descriptor_fails_by_name(function: Make) -> None:
    async def main() -> None:
        async with daemon() as pid:
            with Client(SOCKET) as client:
                hold = function("hold", "0")
                assert starts(client, hold) == 0
                inward = function("hold", "0", network="internal")
                client.register(inward)
                with no_descriptor_left(pid):
                    for _ in range(3):
                        with pytest.raises(Failed, match=r"descriptor|open files"):
                            starts(client, inward)
                    assert client.running() == []  # what needs none is served
                assert starts(client, hold) == 0

    on_host(main)


def test_part_refused_by_node_is_reported_and_remade(function: Make) -> None:
    async def main() -> None:
        inward = function("hold", "0", network="internal")
        async with Runtime(Config(name="t5")) as runtime:
            await runtime._instances.registered(inward)
            await runtime.prepare(function("hold", "0", network="none"))
            with stopped(runtime._networks._parts.pid):
                start = asyncio.create_task(runtime.start(inward))
                while not any(pool.misses for pool in runtime.pools()):
                    await asyncio.sleep(0)
                with no_descriptor_left(runtime.node):
                    os.kill(runtime._networks._parts.pid, signal.SIGCONT)
                    with pytest.raises(Failed, match="can take no network internal: Too many"):
                        await start
                    with pytest.raises(Failed, match="Too many open files"):
                        await runtime._instances.registered(function("hold", "1"))
            for _ in range(2):
                async with await runtime.start(inward) as instance:
                    assert (await instance.ended).status == 0

    on_host(main)


def test_instance_for_events_gets_no_other_network(function: Make) -> None:
    async def main() -> None:
        serves = function("hold", "60", network="internal", serves="events", reuse="none")
        async with Runtime(Config(name="t5")) as runtime:
            await runtime.prepare(serves)
            with stopped(runtime.node):
                start = asyncio.create_task(runtime.start(serves))
                while not any("events" in pool.name for pool in runtime.pools()):
                    await asyncio.sleep(0)
                with no_descriptor_left(runtime.node):
                    os.kill(runtime.node, signal.SIGCONT)
                    with pytest.raises(Failed, match="can take no network internal: Too many"):
                        await start
            async with await runtime.start(serves) as instance:
                inside = Path(f"/proc/{instance.pid}/net/tcp").read_text().splitlines()[1:]
                assert [line.split()[3] for line in inside] == ["0A"], "nobody listens"

    on_host(main)


def test_without_a_descriptor_for_a_client_it_is_hung_up_on(function: Make) -> None:
    async def main() -> None:
        async with daemon() as pid:
            with no_descriptor_left(pid):
                for _ in range(3):
                    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                        client.settimeout(60)
                        client.connect(str(SOCKET))
                        client.send(protocol.encode(protocol.List()))
                        with pytest.raises(ConnectionResetError):
                            client.recv(1)
            with Client(SOCKET) as served:
                assert starts(served, function("hold", "0")) == 0

    on_host(main)


def cpu(pid: int) -> float:
    """Seconds of CPU time that a process has used."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def connected(path: Path) -> socket.socket:
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    opened.settimeout(60)
    opened.connect(str(path))
    return opened


def idles(pid: int) -> bool:
    """Whether a process does next to nothing in the next second."""
    before = cpu(pid)
    time.sleep(1)
    return cpu(pid) - before < 0.5


def test_node_without_descriptors_serves_waiting_clients(
    function: Make,
) -> None:
    """Nobody leaves in whose place another could come: it looks again by itself, now and then."""

    async def main() -> None:
        first = await serve()
        with Client(SOCKET) as client:
            assert starts(client, function("hold", "0")) == 0
        node = pid_of(Config(name="t5"))
        first.kill()
        await first.wait()
        with no_descriptor_left(node):
            asks, orders = (connected(SOCKET.with_name(name)) for name in ("socket", "node"))
            asks.send(wire.request(RequestVerb.PING, tag=7))
            orders.send(wire.order(OrderVerb.SYNC))
            assert idles(node)
        assert wire.answer(asks.recv(4096)).tag == 7
        assert orders.recv(4096)
        asks.close()
        orders.close()
        second = await serve()
        second.terminate()
        assert await second.wait() == 0

    on_host(main)


def test_agent_without_descriptors_serves_waiting_clients(
    host: PodHost,
) -> None:
    agent = host.agents[-1]
    host.pods("pod1", "pod2")
    with no_descriptor_left(agent.pid):
        adding = [host.popen("ADD", pod) for pod in ("pod1", "pod2")]
        assert idles(agent.pid)
        assert all(each.poll() is None for each in adding)
    for each in adding:
        output, _ = each.communicate(timeout=60)
        assert "ips" in json.loads(output), output
