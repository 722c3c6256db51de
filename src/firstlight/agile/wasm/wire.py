"""The protocol of a WebAssembly worker: ``native/agile/wasm.h`` in Python.

A request is a message with events, each a handler's arguments and standard input. Its answers are
messages with as many results as fit, in the events' order. Integers are in host order, stamps are
ns of CLOCK_MONOTONIC.
"""

from collections.abc import Iterable, Sequence
from enum import IntEnum
from struct import Struct, error
from typing import NamedTuple

from firstlight.agile.function import HANDLER_ERROR, HandlerFailed
from firstlight.errors import Failed

MESSAGE_MAX = 192 * 1024
_INTEGERS = range(-(1 << 63), 1 << 63)
_REQUEST = Struct("=QII")
_EVENT = Struct("=II")
_INTEGER = Struct("=IIq")
_REAL = Struct("=IId")
_ANSWER = Struct("=QII")
_RESULT = Struct("=IIiIIIqq")
_KIND = Struct("=I")


class WasmOutcome(IntEnum):
    """How an event's instance ended."""

    RETURNED = 0
    REFUSED = 1
    FAILED = 2
    TRAPPED = 3
    LATE = 4
    EXITED = 5


class Reply(NamedTuple):
    """An event's result. ``text`` says why there are no values; ``status`` is the exit status."""

    outcome: WasmOutcome
    values: tuple[int | float, ...]
    status: int
    text: str
    stdout: str
    stderr: str
    began: int
    finished: int


def event(arguments: Sequence[int | float] = (), stdin: bytes = b"") -> bytes:
    """Encode an event. Raises Failed for a number that does not fit 64 bits."""
    parts = [_EVENT.pack(len(arguments), len(stdin))]
    for number in arguments:
        if isinstance(number, float):
            parts.append(_REAL.pack(1, 0, number))
        elif number in _INTEGERS:
            parts.append(_INTEGER.pack(0, 0, number))
        else:
            raise HandlerFailed(HANDLER_ERROR, f"{number} does not fit 64 bits")
    return b"".join((*parts, stdin, bytes(-len(stdin) % 8)))


def request(identity: int, events: Sequence[bytes]) -> bytes:
    """Encode a message of encoded events. Raises Failed if it is too long."""
    message = b"".join((_REQUEST.pack(identity, len(events), 0), *events))
    if len(message) > MESSAGE_MAX:
        raise HandlerFailed(
            HANDLER_ERROR, f"the events are too long for a message: {len(message)} bytes",
            f"at most {MESSAGE_MAX}: send fewer at once, or shorter ones",
        )  # fmt: skip
    return message


def head(message: bytes) -> tuple[int, int, int]:
    """Parse an answer's head: request id, number of the first event, number of results.

    Raises Failed, because the worker is not trusted.
    """
    try:
        return _ANSWER.unpack_from(message)
    except error as wrong:
        raise Failed(f"a worker's message violates the protocol: {wrong}") from wrong


def answer(message: bytes) -> tuple[int, int, list[Reply]]:
    """Parse an answer: request id, number of the first event, the results from there on.

    Raises Failed, as ``head``.
    """
    identity, first, count = head(message)
    try:
        return identity, first, list(_replies(message, count))
    except (error, ValueError) as wrong:
        raise Failed(f"a worker's message violates the protocol: {wrong}") from wrong


def _replies(message: bytes, count: int) -> Iterable[Reply]:
    at = _ANSWER.size
    for _ in range(count):
        outcome, number, status, *sizes, began, finished = _RESULT.unpack_from(message, at)
        at += _RESULT.size
        values = []
        for place in range(at, min(at + number * _REAL.size, len(message)), _REAL.size):
            real = _KIND.unpack_from(message, place)[0] == 1
            values.append((_REAL if real else _INTEGER).unpack_from(message, place)[2])
        at += number * _REAL.size
        texts = []
        for size in sizes:
            texts.append(message[at : at + size].decode(errors="replace"))
            at += size
        at += -sum(sizes) % 8
        if at > len(message):
            raise ValueError(f"{len(message)} bytes are too few")
        text, stdout, stderr = texts
        yield Reply(
            WasmOutcome(outcome), tuple(values), status, text, stdout, stderr, began, finished
        )
