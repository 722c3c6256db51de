"""The load generator's requests, against a runtime of the tests' own that does as it is told."""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.errors import Failed
from firstlight.lab.backends import Ask, Command, Execute
from firstlight.lab.load import Generator, Outcome, Sequence
from firstlight.lab.reply import Reply, read
from firstlight.model import Step

MS = 1_000_000
STAMPS = {"clone": 3, "requested": 10, "exec": 40, "running": 60}
Serve = Callable[["Peer"], None]


class Peer:
    """One connection as the runtime sees it, its greeting answered."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        assert connection.recv(100) == b"hello"
        connection.send(b"welcome")

    def request(self) -> tuple[bytes, list[int]]:
        message, streams, _, _ = socket.recv_fds(self.connection, 1000, 3)
        return message, streams

    def say(self, **answer: object) -> None:
        self.connection.send(json.dumps(answer, separators=(",", ":")).encode())


def behaves(peer: Peer) -> None:
    """As a runtime whose instance is ready at once and ends with its input."""
    _, (stdin, stdout, stderr) = peer.request()
    os.write(stdout, b"firstlight ready 50\n")
    peer.say(type="started", id="1", stamps=STAMPS)
    while os.read(stdin, 10):
        pass
    os.write(stderr, b"last words\n")
    for descriptor in (stdin, stdout, stderr):
        os.close(descriptor)
    ended = {"status": 3, "signal": None, "user_ns": 5, "system_ns": 7}
    peer.say(type="ended", id="1", ended=ended)


@contextmanager
def runtime(path: Path, *serves: Serve) -> Iterator[Path]:
    """Listens; each connection, in turn, is served by one of ``serves``."""
    errors: list[BaseException] = []

    def serve_in_turn(serve: Serve, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(60)
                serve(Peer(connection))
        except BaseException as error:
            errors.append(error)

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(200)

        def accept() -> None:
            threads = []
            for serve in serves:
                threads.append(
                    threading.Thread(target=serve_in_turn, args=(serve, listener.accept()[0]))
                )
                threads[-1].start()
            for thread in threads:
                thread.join()

        accepting = threading.Thread(target=accept)
        accepting.start()
        yield path
        accepting.join()
    assert not errors, errors


def asking(path: Path, message: str = "start") -> Command:
    return Ask(path, "hello", message)


def both(
    generator: Generator, *commands: Command, deadline: float = 60
) -> tuple[list[Outcome], list[Outcome]]:
    seen = generator.run(1, commands, deadline=deadline)
    return seen, generator.stop(1, deadline=60)


def test_request_is_stamped_and_ends_with_input(generator: Generator, tmp_path: Path) -> None:
    with runtime(tmp_path / "socket", behaves) as path:
        [seen], [ended] = both(generator, asking(path))
    assert 0 < seen.intended <= seen.spawned <= seen.seen
    assert (seen.pid, seen.status, seen.exited, seen.expired) == (0, None, 0, False)
    assert ended.exited > seen.seen
    assert ended.status is not None
    assert os.waitstatus_to_exitcode(ended.status) == 3
    assert (ended.user_ns, ended.system_ns) == (5, 7)
    assert ended.reply == Reply(
        (Step("requested", 10, 40), Step("exec", 40, 60)), 50, output="last words"
    )


def test_a_handlers_result_is_ready_and_the_end_of_its_instance(
    generator: Generator, tmp_path: Path
) -> None:
    def serve(peer: Peer) -> None:
        peer.request()
        result = {"value": [1], "requested": 10, "began": 40, "finished": 60, "warm": True}
        peer.say(type="invoked", result=result)

    with runtime(tmp_path / "socket", serve) as path:
        [seen], [ended] = both(generator, asking(path))
    assert (seen.status, ended.status) == (0, 0)
    assert seen.spawned <= seen.seen <= seen.exited
    assert seen.reply == Reply((Step("start", 10, 40), Step("handler", 40, 60)), 40)


def test_the_message_comes_whole_with_its_streams(generator: Generator, tmp_path: Path) -> None:
    words = '{"type":"start","é":"' + "x" * 3000 + '"}'
    received = []

    def listen(peer: Peer) -> None:
        message, _, _, _ = socket.recv_fds(peer.connection, 10_000, 3)
        received.append(message)
        peer.say(type="error", message="no", hint=None)

    with runtime(tmp_path / "socket", listen) as path:
        both(generator, asking(path, words))
    assert received == [words.encode()]


def test_an_error_is_reported_in_the_runtimes_words(generator: Generator, tmp_path: Path) -> None:
    def refuse(peer: Peer) -> None:
        for descriptor in peer.request()[1]:
            os.close(descriptor)
        peer.say(type="error", message='no "pids"\nare left', hint="stop some")

    with runtime(tmp_path / "socket", refuse, behaves) as path:
        [refused, good], [ended, _] = both(generator, asking(path), asking(path))
    assert refused.reply == Reply(error='no "pids" are left (stop some)')
    assert refused.seen
    assert ended.status
    assert good.reply.ready == 50


def test_where_no_one_listens_it_says_so(generator: Generator, tmp_path: Path) -> None:
    [nowhere, too_long], _ = both(
        generator, asking(tmp_path / "none"), asking(Path("/" + "x" * 200))
    )
    assert nowhere.reply == Reply(error=f"reach {tmp_path / 'none'}: No such file or directory")
    assert "File name too long" in str(too_long.reply.error)
    assert nowhere.seen >= nowhere.spawned >= nowhere.intended > 0


def test_a_runtime_that_is_gone_before_it_answers_says_so(
    generator: Generator, tmp_path: Path
) -> None:
    def vanish(peer: Peer) -> None:
        for descriptor in peer.request()[1]:
            os.close(descriptor)

    with runtime(tmp_path / "socket", vanish, lambda _: None) as path:
        lost, _ = both(generator, asking(path), asking(path))
    message = ("Connection reset by peer", "Broken pipe")
    assert all(str(each.reply.error).endswith(message) for each in lost)


def test_lost_runtime_ends_request(generator: Generator, tmp_path: Path) -> None:
    def vanish(peer: Peer) -> None:
        _, streams = peer.request()
        os.write(streams[1], b"firstlight ready 50\n")
        peer.say(type="started", id="1", stamps=STAMPS)
        for descriptor in streams:
            os.close(descriptor)

    with runtime(tmp_path / "socket", vanish) as path:
        [seen], [ended] = both(generator, asking(path))
    assert seen.seen
    assert ended.status == 9


@pytest.mark.parametrize("ready", [True, False])
def test_unanswered_start_hangs_until_stopped(
    generator: Generator, tmp_path: Path, ready: bool
) -> None:
    def hang(peer: Peer) -> None:
        _, streams = peer.request()
        if ready:
            os.write(streams[1], b"firstlight ready 50\n")
        assert peer.connection.recv(10) == b""  # the generator gives it up
        for descriptor in streams:
            os.close(descriptor)

    with runtime(tmp_path / "socket", hang) as path:
        [seen], [ended] = both(generator, asking(path), deadline=2)
    assert (seen.expired, seen.status, bool(seen.seen)) == (True, None, ready)
    assert ended.status == 9


def test_request_times_out_on_unanswered_greeting(generator: Generator, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        [seen], _ = both(generator, asking(tmp_path / "socket"), deadline=0.3)
    assert "Connection timed out" in str(seen.reply.error)


def test_leaving_is_not_held_up_by_a_greeting(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, Generator() as generator:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()

        held: list[object] = []

        def leave() -> None:
            held.append(listener.accept())
            generator._socket.shutdown(socket.SHUT_RDWR)

        leaving = threading.Thread(target=leave)
        leaving.start()
        with pytest.raises(Failed, match="has ended"):
            generator.run(1, [asking(tmp_path / "socket")], deadline=1000)
        leaving.join()


def test_sequence_asks_next_after_answer(generator: Generator, tmp_path: Path) -> None:
    with runtime(tmp_path / "socket", *[behaves] * 5) as path:
        seen = generator.run(1, [asking(path)] * 5, Sequence(), deadline=60)
        generator.stop(1, deadline=60)
    for before, after in pairwise(seen):
        assert before.seen <= after.intended


def test_a_hundred_at_once_and_commands_among_them(generator: Generator, tmp_path: Path) -> None:
    ready = Execute(("/bin/sh", "-c", "echo firstlight ready 1; cat"))
    with runtime(tmp_path / "socket", *[behaves] * 100) as path:
        seen, ended = both(generator, *[asking(path)] * 50, ready, *[asking(path)] * 50)
    assert all(sample.seen for sample in seen)
    assert [sample.pid > 0 for sample in seen] == [False] * 50 + [True] + [False] * 50
    assert {sample.status for sample in ended} == {0, 3 << 8}


def test_a_nul_is_refused_and_the_generator_lives(generator: Generator, tmp_path: Path) -> None:
    with pytest.raises(Failed, match="it contains a NUL"):
        generator.run(1, [asking(tmp_path, "a\0b")], deadline=1)
    assert both(generator) == ([], [])


@given(st.text(), st.text() | st.text("0123456789abcdef").map("node:".__add__))
def test_what_is_no_answer_is_left_as_it_is(text: str, answer: str) -> None:
    kept = text.replace("firstlight ", "")
    assert read(kept) == Reply(output=kept.rstrip("\n"))
    refused = read(f"firstlight answer {answer.replace(chr(10), '')}\n")
    assert (refused.steps, refused.ready, refused.output) == ((), None, "")


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 1000)), st.integers(1, 1000))
def test_steps_follow_one_another_from_the_request_on(stamps: dict[str, int], at: int) -> None:
    answer = {"type": "started", "stamps": {**stamps, "requested": at}}
    steps = read(f"firstlight answer {json.dumps(answer)}\n").steps
    edges = [(step.start, step.end) for step in steps]
    assert all(before[1] == after[0] for before, after in pairwise(edges))
    assert all(at <= start <= end for start, end in edges)
    assert len(edges) == sum(stamp >= at for stamp in stamps.values())
