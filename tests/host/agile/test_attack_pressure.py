"""Attacks by quantity: whoever asks, writes or hangs without end costs himself, and nobody else."""

import asyncio
import errno
import os
import resource
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.support.agile_host import on_host, stopped

from firstlight.agile import Config, Function, Runtime
from firstlight.agile.config import Functions, Pools, PoolSize
from firstlight.agile.node import wire
from firstlight.agile.node.wire import AnswerVerb, RequestVerb, Step
from firstlight.agile.sockets import rights
from firstlight.errors import Failed

Make = Callable[..., Function]
GROWTH_MOST = 8 << 20
CLIENTS, PENDING = 4096, 1024  # native/agile/node.h
NETWORKS = 4


def with_runtime(main: Callable[[Runtime], Awaitable[None]], config: Config | None = None) -> None:
    async def on() -> None:
        async with Runtime(config or Config(name="t7")) as runtime:
            await main(runtime)

    on_host(on)


def memory(pid: int) -> int:
    """Its own memory, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


class Fast:
    """A client of the node that does not wait."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.connect(str(path))
        self.socket.setblocking(False)

    def ask(self, message: bytes, given: list[int] | None = None) -> bool:
        try:
            self.socket.sendmsg([message], rights(given or []))
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            return False
        return True

    async def answer(self) -> wire.Answer:
        loop = asyncio.get_running_loop()
        message = await asyncio.wait_for(loop.sock_recv(self.socket, 4096), 60)
        assert message, "hung up"
        return wire.answer(message)


async def ends(runtime: Runtime, function: Function) -> int | None:
    async with await runtime.start(function) as instance:
        return (await instance.wait()).status


def test_client_that_never_reads_costs_node_no_memory(function: Make) -> None:
    async def main(runtime: Runtime) -> None:
        assert await ends(runtime, function("hold", "0")) == 0
        before = memory(runtime.node)
        clients = [Fast(runtime.config.socket) for _ in range(8)]
        request = 0
        for client in clients:
            with suppress(BrokenPipeError, ConnectionResetError):  # or it was disconnected
                for number in range(100_000):
                    if not client.ask(wire.request(RequestVerb.PING, 0, tag=number)):
                        await asyncio.sleep(0)
                        if not client.ask(wire.request(RequestVerb.PING, 0, tag=number)):
                            break
                    request += 1
        assert 0 < request < 800_000, "the node stops to read"
        assert await ends(runtime, function("hold", "0")) == 0
        assert memory(runtime.node) - before < GROWTH_MOST
        for client in clients:
            client.socket.close()

    with_runtime(main)


def test_ten_thousand_starts_at_once_have_an_answer_each(function: Make) -> None:
    async def main(runtime: Runtime) -> None:
        hold = function("hold", "60", network="none")
        registered = await runtime._instances.registered(hold)
        await runtime.prepare(hold)
        null = os.open(os.devnull, os.O_RDWR)
        before, held = memory(runtime.node), descriptors(runtime.node)
        message = wire.request(RequestVerb.START, registered.number)
        clients = [Fast(runtime.config.socket) for _ in range(20)]
        answers: list[wire.Answer] = []

        async def read(client: Fast, count: int) -> None:
            answers.extend([await client.answer() for _ in range(count)])

        async def ask(client: Fast) -> None:
            reading = asyncio.create_task(read(client, 500))
            for _ in range(500):
                while not client.ask(message, [null, null, null]):
                    await asyncio.sleep(0.001)
            await reading

        asking = asyncio.gather(*map(ask, clients))
        other = Fast(runtime.config.socket)
        for tag in range(20):
            assert other.ask(wire.request(RequestVerb.PING, 0, tag=tag))
            assert (await other.answer()).verb == AnswerVerb.PONG
        await asking
        assert len(answers) == 10_000
        started = [answer for answer in answers if answer.verb == AnswerVerb.STARTED]
        refused = {(Step(a.step), a.error) for a in answers if a.verb == AnswerVerb.REFUSED}
        assert 16 <= len(started) <= 24
        assert refused <= {(Step.CLONE, errno.EUSERS), (Step.CLONE, errno.EBUSY)}
        assert memory(runtime.node) - before < GROWTH_MOST
        for client in clients:
            client.socket.close()
        while runtime.running():
            await asyncio.sleep(0.01)
        assert await ends(runtime, hold_briefly(function)) == 0
        assert descriptors(runtime.node) <= held + 64
        os.close(null)

    with_runtime(main, Config(name="t7", instances=24))


def hold_briefly(function: Make) -> Function:
    return function("hold", "0", network="none")


def test_dry_pools_that_refuse_do_so_by_name_and_serve_again(function: Make) -> None:
    async def main(runtime: Runtime) -> None:
        hold = function("hold", "60")
        registered = await runtime._instances.registered(hold)
        await runtime.prepare(hold)
        null = os.open(os.devnull, os.O_RDWR)
        client = Fast(runtime.config.socket)
        helper = runtime._networks._parts.pid
        with stopped(helper):  # nothing is made meanwhile
            for _ in range(40):
                assert client.ask(wire.request(RequestVerb.START, registered.number), [null] * 3)
            answers = [await client.answer() for _ in range(40)]
        refused = {(Step(a.step), a.error) for a in answers if a.verb == AnswerVerb.REFUSED}
        assert refused == {(Step.NETWORK, errno.EAGAIN)}
        assert any(a.verb == AnswerVerb.STARTED for a in answers)
        client.socket.close()
        os.close(null)

    pools = Pools(network=PoolSize(low=2, high=4, dry="refuse"))
    with_runtime(main, Config(name="t7", pools=pools))


def test_hung_network_helper_delays_only_networked_starts(function: Make) -> None:
    async def main(runtime: Runtime) -> None:
        alone = function("hold", "0", network="none")
        mine = function("hold", "0", network="outbound")
        for each in (alone, mine):
            await runtime.prepare(each)
            for _ in range(3):
                assert await ends(runtime, each) == 0
        runtime._networks._parts._silence = 120.0  # it is not replaced meanwhile
        with stopped(runtime._networks._parts.pid):
            waiting = [
                asyncio.create_task(ends(runtime, function("hold", "0", env={"N": str(n)})))
                for n in range(60)
            ]
            while not runtime._instances._stock._shelves["outbound"].counts().misses:
                await asyncio.sleep(0.01)
            for _ in range(4):
                assert await ends(runtime, alone) == 0
            assert not all(each.done() for each in waiting), "they waited no longer than these"
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(r, Exception) or r == 0 for r in results)
        assert await ends(runtime, mine) == 0

    small = PoolSize(low=4, high=16)
    with_runtime(main, Config(name="t7", pools=Pools(network=small)))


def test_an_instance_that_writes_for_ever_waits_for_its_reader(tmp_path: Path) -> None:
    async def main(runtime: Runtime) -> None:
        before = memory(os.getpid())
        async with await runtime.start(
            Function(rootfs="/", command=("/usr/bin/yes",), network="none")
        ) as instance:
            assert instance.stdout
            await instance.stdout.read()
            assert (
                await ends(runtime, Function(rootfs="/", command=("/bin/true",), network="none"))
                == 0
            )
            assert memory(os.getpid()) - before < GROWTH_MOST
            assert not instance.ended.done()

    with_runtime(main)


def test_unused_functions_are_forgotten_and_freed(
    function: Make,
) -> None:
    """60 kinds by their words, limits and environment: what is held is bounded, and ends."""

    async def main(runtime: Runtime) -> None:
        async def kind(number: int) -> None:
            odd = function("hold", "0", str(number), memory=(16 << 20) + number * 4096,
                           network="none", env={"N": str(number)})  # fmt: skip
            await runtime.start(odd)

        def held() -> tuple[int, int, int]:
            groups = Path("/sys/fs/cgroup").glob("*/firstlight.agile.t7/*")
            mounts = Path(f"/proc/{runtime.node}/mountinfo").read_text().count("/roots/")
            return descriptors(runtime.node), sum(1 for group in groups if group.is_dir()), mounts

        await kind(0)
        before = held()
        for number in range(60):
            await kind(number)
            assert held()[2] <= 2 * 10
        while runtime.running():
            await asyncio.sleep(0.01)
        while len(runtime._instances._registry._by_number):
            await asyncio.sleep(0.05)
        assert held()[2] == 0
        assert held()[0] <= before[0] + 32 + 5, "networks that wait, and what is ahead of a start"
        assert held()[1] <= 3 * 64
        await kind(7)

    config = Config(name="t7", functions=Functions(most=8, idle_seconds=1.0, look_seconds=0.2))
    with_runtime(main, config)


def test_hanging_log_keeper_delays_only_logged_starts() -> None:
    true = Function(rootfs="/", command=("/bin/true",), network="none")

    async def start_on(runtime: Runtime) -> None:
        for _ in range(2000):
            await asyncio.wait_for(runtime.detach(true), 60)

    async def main(runtime: Runtime) -> None:
        await runtime.detach(true)
        assert runtime._instances._logs
        with stopped(runtime._instances._logs._pid):
            with pytest.raises(Failed, match="no log can be kept"):
                await start_on(runtime)
            for _ in range(4):
                assert await ends(runtime, true) == 0
        while True:
            try:
                first = await runtime.detach(true)
                break
            except Failed:
                await asyncio.sleep(0.05)
        assert (await first.wait()).status == 0
        while runtime.running():
            await asyncio.sleep(0.05)

    with_runtime(main)


def test_event_start_gets_own_network_on_busy_node() -> None:
    """The network comes by the manager's connection, and the start by another."""
    fetches = Function(rootfs="/", command=("/bin/sleep", "60"), serves="events", reuse="none")

    async def listened(runtime: Runtime) -> bool:
        instance = await runtime.start(fetches)
        network = await instance.network
        instance.kill()
        await instance.ended
        if network.listener:
            network.take_listener().close()
            return True
        return False

    async def main(runtime: Runtime) -> None:
        assert await listened(runtime)
        node = runtime._instances._node
        assert node
        for _ in range(3):
            with stopped(runtime.node):
                for unknown in range(100):
                    node.signal(10**9 + unknown, signal.SIGTERM)
                start = asyncio.create_task(listened(runtime))
                await asyncio.sleep(0.2)  # without a wait for the node both are sent by now
            assert await start

    with_runtime(main)


def test_an_instance_that_fails_takes_its_network_with_it() -> None:
    """The next that fetches events has one of its own again."""
    fetches = Function(rootfs="/", command=("/bin/sleep", "60"), serves="events", reuse="none")

    async def main(runtime: Runtime) -> None:
        directory = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        for _ in range(2):
            with pytest.raises(Failed):  # a directory is no stream
                await runtime._instances.start(fetches, (directory,) * 3, 0)
            instance = await runtime.start(fetches)
            assert (await instance.network).listener
            instance.kill()
            await instance.ended
        os.close(directory)

    with_runtime(main)


@contextmanager
def idle_clients(path: Path) -> Iterator[list[Fast]]:
    """As many as the node has places for: the last waits for one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    idle: list[Fast] = []
    try:
        for _ in range(min(CLIENTS, hard // 4)):
            idle.append(Fast(path))
        yield idle
    finally:
        for each in idle:
            each.socket.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_silent_clients_take_no_others_place(function: Make) -> None:
    async def main(runtime: Runtime) -> None:
        assert await ends(runtime, function("hold", "0")) == 0
        path = runtime.config.socket
        client = Fast(path)
        assert client.ask(wire.request(RequestVerb.PING, 0))
        await client.answer()
        with idle_clients(path):
            for tag in range(3):
                other = Fast(path)
                assert other.ask(wire.request(RequestVerb.PING, 0, tag=tag))
                assert (await other.answer()).tag == tag
            assert client.ask(wire.request(RequestVerb.PING, 0, tag=9))
            assert (await client.answer()).tag == 9, "who has asked of late keeps the place"
            assert await ends(runtime, function("hold", "0")) == 0
        client.socket.close()

    with_runtime(main)


async def client_that_is_held(path: Path) -> Fast:
    """A client whose first request the node leaves unread, as it holds all the starts it can."""
    loop = asyncio.get_running_loop()
    while True:
        client = Fast(path)
        assert client.ask(wire.request(RequestVerb.PING, 0, tag=9))
        try:
            await asyncio.wait_for(loop.sock_recv(client.socket, 4096), 1)
        except TimeoutError:
            return client
        client.socket.close()


def test_client_with_unread_request_keeps_its_place(function: Make) -> None:
    async def main(runtime: Runtime) -> None:
        hold = function("hold", "60")
        registered = await runtime._instances.registered(hold)
        await runtime.prepare(hold)
        null = os.open(os.devnull, os.O_RDWR)
        start = wire.request(RequestVerb.START, registered.number)
        path = runtime.config.socket
        runtime._networks._parts._silence = 120.0  # it is not replaced meanwhile
        with stopped(runtime._networks._parts.pid):  # what starts wait for is not made
            starter = Fast(path)
            async with asyncio.timeout(60):
                for _ in range(PENDING + 2 * NETWORKS):
                    while not starter.ask(start, [null] * 3):
                        await asyncio.sleep(0.001)
                client = await client_that_is_held(path)
            with idle_clients(path) as idle:
                lost = asyncio.get_running_loop().sock_recv(idle[0].socket, 1)
                assert await asyncio.wait_for(lost, 60) == b""
                starter.socket.close()  # with it go its starts
                assert (await client.answer()).tag == 9
        client.socket.close()
        os.close(null)

    small = PoolSize(low=NETWORKS, high=NETWORKS)
    with_runtime(main, Config(name="t7", pools=Pools(network=small)))
