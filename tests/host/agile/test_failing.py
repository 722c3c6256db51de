"""A system call of the node, of a sandbox before its program, or of the CNI plugin fails once: the
start says so or succeeds all the same, the next one is served, and nothing is held for ever.

One call in ``FAILING_EVERY`` is tried here, with one error each; ``FAILING_EVERY=1`` tries all.
"""

import asyncio
import ctypes
import mmap
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest
from tests.support import pod_host
from tests.support.agile_host import CONFIG, HERE, SOCKET, daemon, on_host, streams
from tests.support.laboratory import compiled
from tests.support.pod_host import PodHost, host

from firstlight.agile import Function
from firstlight.agile.client import Client
from firstlight.agile.node.process import pid_of
from firstlight.errors import Failed

__all__ = ["host"]  # a fixture

EVERY = int(os.environ.get("FAILING_EVERY", "53"))
WHICH = range(4) if EVERY == 1 else range(1)
MANY, FEWEST = 1 << 30, 20
"""More calls than a scenario has, and fewer."""
SLACK = 8
"""Descriptors of what is looked at or made ahead, and of networks that pools keep or not."""

Make = Callable[..., Function]
Scenario = Callable[[Make, Client, int], None]


class Order(ctypes.Structure):
    """See failing.c."""

    left: int
    which: int
    attached: int
    name: bytes
    _fields_ = (
        ("left", ctypes.c_int),
        ("which", ctypes.c_int),
        ("error", ctypes.c_int),
        ("attached", ctypes.c_int),
        ("name", ctypes.c_char * 32),
    )


@pytest.fixture(scope="session")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if platform.machine() != "x86_64":
        pytest.skip("calls are made to fail on x86-64 alone")
    return compiled(HERE / "failing.c", tmp_path_factory.mktemp("failing") / "failing")


def ordered(file: Path) -> Order:
    """What is shared with failing.c by a file; nothing fails yet."""
    file.write_bytes(b"\xff" * ctypes.sizeof(Order))
    with file.open("r+b") as opened:
        order = Order.from_buffer(mmap.mmap(opened.fileno(), ctypes.sizeof(Order)))
    order.attached = 0
    return order


@contextmanager
def traced(program: Path, directory: Path, pid: int) -> Iterator[Order]:
    file = directory / "order"
    order = ordered(file)
    process = subprocess.Popen([program, file, str(pid)])
    try:
        while not order.attached:
            assert process.poll() is None
        yield order
    finally:
        process.kill()
        process.wait()


def ends(client: Client, function: Function) -> None:
    """An instance that ends as it should, and says so."""
    held = streams()
    try:
        assert client.wait(client.start(function, held[2]).id).status == 2
    finally:
        for descriptor in {*held[:2], *held[2]}:
            os.close(descriptor)


def cloned(make: Make, client: Client, turn: int) -> None:
    ends(client, make("none", network="internal", reuse="none"))


def in_a_user_namespace(make: Make, client: Client, turn: int) -> None:
    ends(client, make("none", network="none", user_namespace=True))


def registered_and_reused(make: Make, client: Client, turn: int) -> None:
    again = make("none", network="none", reuse="sandbox", directory="/" + "./" * turn)
    ends(client, again)
    ends(client, again)


SCENARIOS = (cloned, in_a_user_namespace, registered_and_reused)


def held(pid: int) -> int:
    """The descriptors of a node, but for those of functions and of sandboxes that wait."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    total = -len(children)
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            total += not str(path.readlink()).startswith(("/roots", "/memfd", "net:"))
    return total


def test_a_call_that_fails_costs_one_start_at_most(
    function: Make, failing: Path, tmp_path: Path
) -> None:
    async def main() -> None:
        turns = count()
        async with daemon():
            node = pid_of(CONFIG)
            with Client(SOCKET) as client, traced(failing, tmp_path, node) as order:

                def fails(scenario: Scenario, nth: int, which: int) -> int:
                    """How many calls there were beyond those that were to pass."""
                    order.which, order.left = which, nth
                    with suppress(Failed):
                        scenario(function, client, next(turns))
                    left, order.left = order.left, -1
                    scenario(function, client, next(turns))
                    assert pid_of(CONFIG) == node, order.name
                    assert held(node) <= before + SLACK, order.name
                    return nth - left

                for scenario in SCENARIOS:
                    scenario(function, client, next(turns))
                    before = held(node)
                    calls = fails(scenario, MANY, 0)
                    assert calls > FEWEST
                    for nth in range(0, calls, min(EVERY, calls // 4)):
                        for which in WHICH:
                            fails(scenario, nth, which)
                while client.running():  # a sandbox may be renewed yet
                    await asyncio.sleep(0.01)

    on_host(main)


def test_a_call_of_the_plugin_that_fails_leaves_nothing(
    host: PodHost, failing: Path, tmp_path: Path
) -> None:
    order = ordered(tmp_path / "order")
    conf = {**pod_host.CONF, "seconds": 5}

    def fails(verb: str, nth: int, which: int) -> int:
        """How many calls there were beyond those that were to pass."""
        order.attached, order.which, order.left = 0, which, nth
        host.pods("a")
        added = {} if verb == "ADD" else {"prevResult": host.plugin("ADD", "a", pod_host.CONF)}
        host.within = (str(failing), str(tmp_path / "order"))
        answer = host.plugin(verb, "a", conf | added)
        calls, order.left, host.within = nth - order.left, -1, ()
        assert answer.get("code") != 102 or order.name == b"ioctl", order.name  # nothing changed
        if verb != "DEL" or answer:
            assert host.plugin("DEL", "a") == {}, order.name
        host.sh("umount /run/netns/a; rm /run/netns/a")  # one mount is the runtime's own
        assert host.leases() == []
        return calls

    for verb in ("ADD", "CHECK", "DEL"):
        calls = fails(verb, MANY, 0)
        assert calls > FEWEST // 2
        for nth in range(0, calls, min(EVERY, calls // 3)):
            for which in WHICH:
                fails(verb, nth, which)


def test_keeper_of_shim_answers_whatever_call_fails(failing: Path, tmp_path: Path) -> None:
    """Such as a send that the kernel has no memory for."""
    pytest.importorskip("grpc_tools", reason="needs grpcio-tools")
    from tests.support.shim_host import Refusal, shim

    from firstlight.agile.shim.service import TASK
    from firstlight.agile.shim.ttrpc import messages

    message = messages.TaskRequest(id="no")
    with shim(tmp_path) as server, traced(failing, tmp_path, server.keeper.pid) as order:
        connection = server.connect()
        for nth in range(12):
            for which in range(2):
                order.which, order.left = which, nth
                with pytest.raises(Refusal, match="not known"):
                    connection.ask(TASK, "Connect", message, messages.ConnectResponse)
                order.left = -1
                assert server.keeper.poll() is None, order.name
        connection.close()
