"""The resident runtime behind its socket: clients that behave, and those that do not."""

import asyncio
import errno
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from tests.support.agile_host import CONFIG, streams, with_daemon

from firstlight.agile import Function
from firstlight.agile.client import Client
from firstlight.agile.node import wire
from firstlight.agile.node.process import pid_of
from firstlight.agile.node.wire import AnswerVerb, RequestVerb, Step
from firstlight.agile.sockets import rights
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
                "cgroup", "network", "sandbox"
            }  # fmt: skip

    with_daemon(main)


def test_what_has_just_been_started_can_be_stopped(function: Make) -> None:
    """The node starts it, and may tell the manager later than the client asks for it."""

    async def main(path: Path) -> None:
        hold = function("hold", "60", network="none")
        with Client(path) as client, Client(path) as other:
            _, _, theirs = streams()
            for _ in range(50):
                before = client.start(hold, theirs)
                started = client.start(hold, theirs)
                assert other.stop(started.id).signal == signal.SIGKILL
                assert other.stop(before.id).signal == signal.SIGKILL

    with_daemon(main)


def test_client_end_ends_attached_instances_only(
    function: Make,
) -> None:
    async def main(path: Path) -> None:
        gone = Client(path)
        _, _, theirs = streams()
        mine = gone.start(function("hold", "60"), theirs)
        detached = gone.start(function("hold", "60"), theirs, detached=True)
        gone.close()
        with Client(path) as client:
            while mine.id in {each.id for each in client.running()}:
                await asyncio.sleep(0)
            assert [each.id for each in client.running()] == [detached.id]
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
            raw.settimeout(60)
            raw.connect(str(path))
            raw.send(message)
            answer = json.loads(raw.recv(65536))
            assert answer["type"] == "error"
            assert "violates the protocol" in answer["message"]
            raw.send(b'{"type":"list"}')
            assert json.loads(raw.recv(65536)) == {"type": "instances", "instances": []}

    with_daemon(main)


@contextmanager
def much_asked(path: Path) -> Iterator[tuple[socket.socket, int]]:
    """A client that has read nothing and asked until it was not read any more; how often."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as raw:
        raw.settimeout(1.0)
        raw.connect(str(path))
        asked = 0
        with suppress(TimeoutError):
            while asked < 100_000:
                raw.send(b'{"type":"list"}')
                asked += 1
        assert 0 < asked < 100_000, "the runtime's memory is bounded"
        raw.settimeout(60)
        yield raw, asked


def test_pipelining_client_gets_every_answer() -> None:
    async def main(path: Path) -> None:
        with much_asked(path) as (raw, asked):
            answers = {raw.recv(65536) for _ in range(asked)}
            assert answers == {b'{"type":"instances","instances":[]}'}

    with_daemon(main)


def test_clients_are_served_after_one_that_never_read() -> None:
    async def main(path: Path) -> None:
        with much_asked(path), Client(path) as client:
            assert client.running() == []
        with ExitStack() as clients:
            for _ in range(5):
                assert clients.enter_context(Client(path)).running() == []

    with_daemon(main)


def test_only_who_reads_the_output_can_wait_for_its_line(function: Make) -> None:
    async def main(path: Path) -> None:
        _, _, theirs = streams()
        with (
            Client(path) as client,
            pytest.raises(Failed, match="only the reader of an instance's output"),
        ):
            client.start(function("hold", "60", ready="holding"), theirs)

    with_daemon(main)


def test_more_instances_than_one_message_holds_are_listed(function: Make) -> None:
    async def main(path: Path) -> None:
        _, _, theirs = streams()
        with Client(path) as client:
            large = function("hold", "60", env={"FILL": "x" * 40_000}, network="none")
            ids = [client.start(large, theirs).id for _ in range(8)]
            assert [each.id for each in client.running()] == ids

    with_daemon(main)


def refusal(path: Path, message: bytes, descriptors: list[int]) -> tuple[Step, int]:
    """The step and the errno with which the node refuses a message."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as raw:
        raw.settimeout(60)
        raw.connect(str(path))
        raw.sendmsg([message], rights(descriptors))
        answer = wire.answer(raw.recv(4096))
    assert answer.verb == AnswerVerb.REFUSED
    return Step(answer.step), answer.error


@pytest.mark.parametrize("descriptors", [[], [0], [0, 1, 2, 0], [0] * 8, [0] * 20])
def test_start_refuses_descriptors_other_than_three(function: Make, descriptors: list[int]) -> None:
    async def main(path: Path) -> None:
        with Client(path) as client:
            number, version = client.register(function("hold", "0"))
        message = wire.request(RequestVerb.START, number, version=version)
        step, error = refusal(path, message, descriptors)
        assert (step, error) in ((Step.STREAMS, errno.EBADMSG), (Step.CLONE, errno.EPROTO))

    with_daemon(main)


@pytest.mark.parametrize("message", [b"F", b"FLN1", b"F" * 47, b"FLN1" * 12, b"F" * 4000])
def test_what_is_no_message_of_the_fast_path_is_refused(message: bytes) -> None:
    async def main(path: Path) -> None:
        assert refusal(path, message, []) == (Step.CLONE, errno.EPROTO)

    with_daemon(main)


def test_start_refuses_unknown_function_or_old_version(function: Make) -> None:
    async def main(path: Path) -> None:
        with Client(path) as client:
            number, version = client.register(function("hold", "0"))
        for unknown in (0, number + 1, 4095, 4096, 2**32 - 1):
            message = wire.request(RequestVerb.START, unknown)
            assert refusal(path, message, [0, 1, 2]) == (Step.FUNCTION, errno.ENOENT)
        message = wire.request(RequestVerb.START, number, version=version + 1)
        assert refusal(path, message, [0, 1, 2]) == (Step.FUNCTION, errno.ESTALE)

    with_daemon(main)


def test_a_connection_to_the_node_is_no_standard_stream(function: Make) -> None:
    async def main(path: Path) -> None:
        with Client(path) as client, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as own:
            own.connect(str(path))
            with pytest.raises(Failed, match="a standard stream is a connection to the runtime"):
                client.start(function("hold", "0"), (own.fileno(), 1, 2))

    with_daemon(main)


def test_the_small_client_of_a_killed_node_ends_as_killed(function: Make) -> None:
    def kill_node(path: Path) -> tuple[int, str]:
        with Client(path) as client:
            numbers = map(str, client.register(function("hold", "60")))
            argv = [str(native("firstlight-start")), str(path), *numbers]
            with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as started:
                assert started.stdout is not None
                assert started.stdout.readline() == "holding\n"
                os.kill(pid_of(CONFIG), signal.SIGKILL)
                return started.wait(60), started.stdout.read()

    async def main(path: Path) -> None:
        assert await asyncio.to_thread(kill_node, path) == (128 + 9, "")

    with_daemon(main)


def test_the_small_client_ends_as_its_instance_does(function: Make) -> None:
    def run(path: Path, *numbers: int, stdin: int = subprocess.DEVNULL) -> tuple[int, str]:
        argv = [str(native("firstlight-start")), str(path), *map(str, numbers)]
        done = subprocess.run(argv, stdin=stdin, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout

    async def main(path: Path) -> None:
        with Client(path) as client:

            def start(wanted: Function) -> tuple[int, str]:
                return run(path, *client.register(wanted))

            assert start(function("ping", "10.213.0.1")) == (0, "answered\n")
            assert start(function("nonsense")) == (2, "")
            assert start(function("memory", memory=16 << 20)) == (128 + 9, "")
            assert run(path, 99, 1) == (1, "firstlight error function: No such file or directory\n")
            assert run(Path("/none/socket"), 1, 1)[1].startswith("firstlight error reach the node")
            directory = os.open("/", os.O_RDONLY)
            refused = run(path, *client.register(function("nonsense")), stdin=directory)
            assert refused == (1, "firstlight error streams: Is a directory\n")
            os.close(directory)

    with_daemon(main)
