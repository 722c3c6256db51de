"""A node or a manager that is stopped, or hangs: who waits for it is told so, by its pid.

The deadlines are shortened, and nothing depends on how quick the host is: who is stopped never
answers.
"""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.agile_host import SOCKET, daemon, on_host, serve, stopped
from tests.support.laboratory import compiled
from tests.support.pod_host import CONF, PodHost, host

from firstlight.agile import Config, Function, Runtime
from firstlight.agile import daemon as daemons
from firstlight.agile.client import Client
from firstlight.agile.functions.version import FunctionVersion
from firstlight.agile.node import liveness, process, starter, wire
from firstlight.agile.node.process import pid_of
from firstlight.agile.serving import Serving
from firstlight.agile.sockets import is_readable, rights
from firstlight.errors import Failed

__all__ = ["host"]  # a fixture
Make = Callable[..., Function]
CONFIG = Config(name="t5")
NATIVE = Path(__file__).parents[3] / "native"


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "LOOK_SECONDS", 0.1)


@contextmanager
def impatient(seconds: float = 0.5) -> Iterator[None]:
    """Deadlines are short in here alone: elsewhere a loaded host may take its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(liveness, "HANG_SECONDS", seconds)
        patch.setattr(starter, "ANSWER_SECONDS", seconds)
        yield


@contextmanager
def null() -> Iterator[tuple[int, int, int]]:
    descriptor = os.open(os.devnull, os.O_RDWR)
    try:
        yield descriptor, descriptor, descriptor
    finally:
        os.close(descriptor)


def hold(seconds: str = "0") -> Function:
    return Function(rootfs="/", command=("/bin/sleep", seconds), network="none")


def test_a_client_of_a_stopped_node_gets_an_error() -> None:
    async def main() -> None:
        async with daemon():
            with Client(SOCKET) as client, null() as streams:
                started = client.start(hold("600"), streams)
                node = pid_of(CONFIG)
                named = f"the node, pid {node}, does not answer"
                number, version = client.register(hold())
                with stopped(node), impatient():
                    with pytest.raises(Failed, match=named):
                        client.wait(started.id)
                    with pytest.raises(Failed, match=named), Client(SOCKET) as other:
                        other.running()
                    with pytest.raises(Failed, match=named):
                        client.start(hold(), streams)
                assert client.stop(started.id).signal == 9
                assert client.wait(started.id).signal == 9
                assert client.register(hold()) == (number, version)

    on_host(main)


def test_a_client_of_a_stopped_manager_gets_an_error() -> None:
    async def main() -> None:
        async with daemon() as manager:
            with Client(SOCKET) as client:
                with (
                    stopped(manager),
                    impatient(3.0),  # in which the node answers
                    pytest.raises(Failed, match=f"the manager, pid {manager}, does not"),
                ):
                    client.running()
                with Client(SOCKET) as other:
                    assert other.running() == []

    on_host(main)


def test_a_client_of_a_node_without_a_manager_gets_an_error() -> None:
    async def main() -> None:
        first = await serve()
        first.kill()
        await first.wait()
        with (
            impatient(3.0), Client(SOCKET) as client,
            pytest.raises(Failed, match="has no manager"),
        ):  # fmt: skip
            client.running()
        daemons.end(CONFIG)

    on_host(main)


def test_down_ends_a_node_that_is_stopped() -> None:
    async def main() -> None:
        manager = await serve()
        before = pid_of(CONFIG)
        pidfd = os.pidfd_open(before)
        os.kill(before, signal.SIGSTOP)
        with impatient():
            ending = asyncio.create_task(asyncio.to_thread(daemons.end, CONFIG))
            assert await asyncio.to_thread(is_readable, pidfd, 60)
        await ending
        os.close(pidfd)
        assert await manager.wait() == 0
        assert pid_of(CONFIG) == -1

    on_host(main)


def test_down_ends_a_manager_that_is_stopped() -> None:
    async def main() -> None:
        manager = await serve()
        with Client(SOCKET) as client, null() as streams:
            started = client.start(hold("600"), streams, detached=True)
        os.kill(manager.pid, signal.SIGSTOP)
        with impatient(3.0):  # in which the node answers
            await asyncio.to_thread(daemons.end, CONFIG)
        assert await manager.wait() == -signal.SIGKILL
        assert not SOCKET.exists()
        assert not Path(f"/proc/{started.pid}").exists()

    on_host(main)


@contextmanager
def as_manager() -> Iterator[socket.socket]:
    """A client that greets the node as its manager does."""
    top = os.open("/", os.O_PATH)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.settimeout(60)
        other.connect(str(SOCKET.with_name("node")))
        greeting = wire.order(wire.OrderVerb.HELLO, flags=wire.STAY, id=7, count=wire.VERSION)
        other.sendmsg([greeting], rights([top]))
        yield other
    os.close(top)


def test_nobody_takes_the_place_of_a_manager_that_is_there() -> None:
    async def main() -> None:
        async with daemon():
            with as_manager() as other:
                with Client(SOCKET) as client, null() as streams:
                    for _ in range(3):
                        assert client.wait(client.start(hold(), streams).id).status == 0
                    assert client.running() == []
                other.setblocking(False)
                with pytest.raises(BlockingIOError):
                    other.recv(4096)

    on_host(main)


def test_down_ends_a_node_whose_manager_is_another_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "END_SECONDS", 0.2)

    async def main() -> None:
        first = await serve()
        first.kill()
        await first.wait()
        with as_manager() as other:
            assert other.recv(4096)
            with (
                impatient(3.0),  # in which the node answers
                pytest.raises(Failed, match="another process is the manager"),
            ):
                await Runtime(CONFIG, stay=True).__aenter__()
            daemons.end(CONFIG)
        assert pid_of(CONFIG) == -1
        assert not SOCKET.exists()

    on_host(main)


def test_down_kills_no_program_that_has_a_runtime_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "END_SECONDS", 0.2)

    async def main() -> None:
        async with Runtime(CONFIG):
            with pytest.raises(Failed, match=f"pid {os.getpid()} has runtime .* takes no requests"):
                await asyncio.to_thread(daemons.end, CONFIG)
        assert pid_of(CONFIG) == -1

    on_host(main)


def test_manager_that_its_node_left_says_so_and_ends_both(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process, "END_SECONDS", 0.2)

    async def main() -> None:
        async with Runtime(CONFIG, stay=True) as runtime:
            node = runtime._instances._node
            assert node
            assert node._connection
            node._connection._socket.shutdown(socket.SHUT_RDWR)
            while "has left its manager" not in caplog.text:
                await asyncio.sleep(0.01)
            assert pid_of(CONFIG) == node.pid
        assert pid_of(CONFIG) == -1

    on_host(main)


def test_node_stop_is_reported_and_late_starts_end() -> None:
    async def main() -> None:
        async with Runtime(CONFIG) as runtime, Serving(runtime) as serving:
            await runtime.prepare(hold("600"))
            up = await runtime.start(hold("600"))
            named = f"the node, pid {runtime.node}, does not answer"
            version = FunctionVersion(
                name="f", kind="command", root="/", command=("/bin/cat",), network="none"
            )
            with stopped(runtime.node), impatient():
                for waiting in (
                    up.wait(), up.stop(), runtime.start(hold("600")), runtime.sync(),
                    serving.invoke(version, b"{}", request_id="1"),
                ):  # fmt: skip
                    with pytest.raises(Failed, match=named):
                        await asyncio.wait_for(waiting, 60)
                gone = asyncio.create_task(runtime.start(hold("600")))
                await asyncio.sleep(0.1)
                gone.cancel()
            assert (await asyncio.wait_for(up.ended, 60)).signal == 9
            while runtime.running():  # those whose starts nobody waited for
                await asyncio.sleep(0.01)
            again = await runtime.start(hold())
            assert (await asyncio.wait_for(again.ended, 60)).status == 0
            while runtime._instances._hung.done():
                await asyncio.sleep(0.01)
            assert (await serving.invoke(version, b"{}", request_id="2")).payload == b"{}"

    on_host(main)


def test_the_smallest_client_gets_an_error(tmp_path: Path) -> None:
    program = compiled(
        NATIVE / "agile/start.c", tmp_path / "start", f"-I{NATIVE}", "-DSILENCE_SECONDS=1",
        str(NATIVE / "common/socket.c"),
    )  # fmt: skip

    async def main() -> None:
        async with daemon():
            with Client(SOCKET) as client:
                number, version = client.register(hold("600"))
            node = pid_of(CONFIG)
            words = [str(program), str(SOCKET), str(number), str(version)]
            starting = subprocess.Popen(words, stdout=subprocess.PIPE)
            while not listed():
                assert starting.poll() is None, starting.communicate()[0]
                await asyncio.sleep(0.01)
            with stopped(node), impatient():
                assert await asyncio.to_thread(starting.wait, 60) == 1
            assert starting.stdout  # its instance has it too, until the node goes on
            out = starting.stdout.read()
            assert out == b"firstlight error the node, pid %d, does not answer\n" % node

    on_host(main)


def listed() -> int:
    with Client(SOCKET) as client:
        return len(client.running())


def test_a_plugin_whose_agent_is_stopped_says_so(host: PodHost) -> None:
    with stopped(host.agents[-1].pid), impatient():
        host.pods("pod")
        answer = host.plugin("ADD", "pod", {**CONF, "seconds": 1})
    assert "no answer from firstlight's agent at /run/firstlight-agile/pods/socket" in answer["msg"]
    assert "timed out" in answer["msg"] + answer.get("details", "")
    assert "ips" in host.plugin("ADD", "pod")
