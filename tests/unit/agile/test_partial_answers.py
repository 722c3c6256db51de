"""Answers that have begun to come take a bounded room, and none that of another function's."""

import asyncio
import socket
from contextlib import ExitStack, closing
from typing import Any

import msgspec
import pytest

from firstlight.agile import partial_answers
from firstlight.agile.function import Function, HandlerFailed, NodeFailed
from firstlight.agile.partial_answers import Partial
from firstlight.agile.python import fork as forks
from firstlight.agile.python.fork import Fork

FUNCTION = Function(rootfs="/", name="one", kind="python", handler="f")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of other tests do not count."""
    monkeypatch.setattr(Partial, "_all", set())
    monkeypatch.setattr(Partial, "_total", 0)


def test_function_with_most_loses_its_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_answers, "MOST", 1000)
    with (
        closing(Partial("", "a")) as short,
        closing(Partial("", "a")) as long,
        closing(Partial("", "b")) as other,
    ):
        short.add(bytes(300))
        long.add(bytes(301))
        other.add(bytes(390))
        other.add(bytes(10))
        with pytest.raises(NodeFailed, match="an answer of a was dropped"):
            long.take()
        with pytest.raises(NodeFailed, match="an answer of b was dropped"):
            other.add(bytes(400))
        assert short.take() == bytes(300)
    assert Partial._total == 0
    assert not Partial._all


def test_owner_with_most_gives_way_however_many_functions_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(partial_answers, "MOST", 1000)
    with ExitStack() as stack:
        many = [stack.enter_context(closing(Partial("many", f"{i}"))) for i in range(6)]
        one = stack.enter_context(closing(Partial("one", "f")))
        for each in many:
            each.add(bytes(100))
        one.add(bytes(390))
        many[0].add(bytes(5))
        with pytest.raises(NodeFailed, match="an answer of 0 was dropped"):
            many[0].add(bytes(10))
        assert one.take() == bytes(390)


def test_long_answer_is_checked_and_not_parsed() -> None:
    place: Any = None
    fork = Fork(FUNCTION, place, socket.socket(), [])
    for size in (10, 1 << 17):
        text = b"[" + b"[]," * size + b'"\xc3\xa9"]'
        result = fork.parsed(b'{"began":1,"result":' + text + b"}\n").result
        assert isinstance(result, msgspec.Raw) == (size > 10)
        assert msgspec.json.encode(result) == text
        for wrong in (text[:-1], text.replace(b"\xa9", b""), b"[" * 99999, b"NaN" + b" " * size):
            with pytest.raises(HandlerFailed, match="something other than an answer"):
                fork.parsed(b'{"began":1,"result":' + wrong + b"}\n")
    fork._events.close()


def test_answer_of_a_fork_is_bounded_alone_and_with_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read(line: bytes) -> bytes:
        ours, theirs = socket.socketpair()
        place: Any = None
        fork = Fork(FUNCTION, place, ours, [])
        await fork.listen()
        theirs.setblocking(False)
        sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(theirs, line))
        try:
            return await fork._read_line()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            theirs.close()
            fork._writer.close()

    monkeypatch.setattr(forks, "ANSWER_MOST", 300_000)
    for size in (1, 1 << 16, (1 << 16) + 1, 299_999):
        line = b"x" * (size - 1) + b"\n"
        assert asyncio.run(read(line)) == line
    with pytest.raises(ValueError, match=r"^$"):
        asyncio.run(read(bytes(600_000)))
    monkeypatch.setattr(partial_answers, "MOST", 100_000)
    with pytest.raises(NodeFailed, match="answer of one"):
        asyncio.run(read(bytes(299_999) + b"\n"))
    assert Partial._total == 0
