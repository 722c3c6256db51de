"""The resident runtime behind its socket: clients that behave, and those that do not."""

import asyncio
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import pytest
from tests.support.agile_host import streams, with_daemon

from firstlight.agile import Function, protocol, wire
from firstlight.agile.client import Client
from firstlight.errors import Failed
from firstlight.native import native

Make = Callable[..., Function]


def test_a_client_starts_lists_and_stops(function: Make) -> None:
    async def main(path: Path) -> None:
        with Client(path) as client, Client(path) as other:
            _, to_read, theirs = streams()
            started = client.start(function("hold", "60"), theirs)
            assert os.read(to_read, 100) == b"holding\n"
            [listed] = other.running()
            assert (listed.id, listed.pid, listed.address) == (
                started.id, started.pid, started.address
            )  # fmt: skip
            assert other.stop(started.id).signal == signal.SIGKILL
            assert client.wait(started.id).signal == signal.SIGKILL
            assert other.running() == []
            with pytest.raises(Failed, match="no instance"):
                other.stop(started.id)
            assert {pool.name.split()[0] for pool in other.pools()} == {
                "network", "cgroup", "sandbox"
            }  # fmt: skip

    with_daemon(main)


def test_a_client_that_vanishes_takes_its_instances_with_it_but_not_the_detached(
    function: Make,
) -> None:
    async def main(path: Path) -> None:
        gone = Client(path)
        _, _, theirs = streams()
        mine = gone.start(function("hold", "60"), theirs)
        detached = gone.start(function("hold", "60"), theirs, detached=True)
        gone.close()
        with Client(path) as client:
            while mine.id in {one.id for one in client.running()}:
                await asyncio.sleep(0)
            assert [one.id for one in client.running()] == [detached.id]
            client.stop(detached.id)

    with_daemon(main)


@pytest.mark.parametrize(
    "message",
    [
        b"\0",
        b"{}",
        b'{"type":"none"}',
        b'{"type":"start"}',
        b'{"type":"stop","id":7}',
        b"\xff" * 99,
    ],
)
def test_a_message_that_is_not_of_the_protocol_is_answered_so(
    message: bytes, function: Make
) -> None:
    async def main(path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as raw:
            raw.settimeout(10)
            raw.connect(str(path))
            raw.send(message)
            answer = json.loads(raw.recv(65536))
            assert answer["type"] == "error"
            assert "violates the protocol" in answer["message"]
            raw.send(b'{"type":"list"}')
            assert json.loads(raw.recv(65536)) == {"type": "instances", "instances": []}

    with_daemon(main)


REQUESTS = 2000
"""Whose answers fit no socket's buffer."""


@contextmanager
def much_asked(path: Path) -> Iterator[socket.socket]:
    """A client that has asked REQUESTS times and read nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as raw:
        raw.settimeout(30)
        raw.connect(str(path))
        for _ in range(REQUESTS):
            raw.send(b'{"type":"list"}')
        yield raw


def test_a_client_that_asks_much_before_it_reads_gets_every_answer() -> None:
    async def main(path: Path) -> None:
        with much_asked(path) as raw:
            answers = {raw.recv(65536) for _ in range(REQUESTS)}
            assert answers == {b'{"type":"instances","instances":[]}'}

    with_daemon(main)


def test_clients_after_one_that_never_read_its_answers_are_served() -> None:
    async def main(path: Path) -> None:
        with much_asked(path):
            pass
        with ExitStack() as clients:
            for _ in range(5):
                assert clients.enter_context(Client(path)).running() == []

    with_daemon(main)


def test_more_instances_than_one_message_holds_are_listed(function: Make) -> None:
    async def main(path: Path) -> None:
        _, _, theirs = streams()
        with Client(path) as client:
            large = function("hold", "60", env={"FILL": "x" * 40_000}, network="none")
            ids = [client.start(large, theirs).id for _ in range(8)]
            assert [one.id for one in client.running()] == ids

    with_daemon(main)


def test_a_start_without_streams_is_refused(function: Make) -> None:
    async def main(path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as raw:
            raw.settimeout(10)
            raw.connect(str(path))
            raw.sendmsg([protocol.encode(protocol.Start(function("hold", "0")))], wire.rights([0]))
            assert "came with 1 descriptors" in json.loads(raw.recv(65536))["message"]

    with_daemon(main)


def test_more_descriptors_than_streams_are_refused(function: Make) -> None:
    async def main(path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as raw:
            raw.settimeout(10)
            raw.connect(str(path))
            message = protocol.encode(protocol.Start(function("hold", "0")))
            raw.sendmsg([message], wire.rights([0, 1, 2, 0, 1, 2]))
            assert "more than 3 descriptors" in json.loads(raw.recv(65536))["message"]

    with_daemon(main)


def test_the_small_client_ends_as_its_instance_does(function: Make, tmp_path: Path) -> None:
    def run(path: Path, request: bytes) -> tuple[int, str]:
        (tmp_path / "request").write_bytes(request)
        argv = [native("spawn-client"), path, tmp_path / "request"]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        return done.returncode, done.stdout

    async def main(path: Path) -> None:
        def start(one: Function) -> tuple[int, str]:
            return run(path, protocol.encode(protocol.Start(one)))

        assert start(function("ping", "10.213.0.1")) == (0, "answered\n")
        assert start(function("nonsense")) == (2, "")
        assert start(function("memory", memory=16 << 20)) == (128 + 9, "")
        status, said = start(msgspec.structs.replace(function("x"), rootfs="/none"))
        assert status == 1
        assert said.startswith("firstlight error ")
        assert "/none is not a directory" in said
        assert run(Path("/none/socket"), b"{}")[1].startswith("firstlight error reach the runtime")

    with_daemon(main)
