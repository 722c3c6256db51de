"""What an event is answered with."""

from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

from firstlight.agile.function import Ended
from firstlight.agile.functions.version import FunctionVersion
from firstlight.errors import Failed

PAYLOAD_MAX = 6 << 20
"""Bytes of an answer, as Lambda limits them."""


_CAUSES = {
    "Sandbox.Timedout": "timeout", "Runtime.OutOfMemory": "memory", "Runtime.ExitError": "exit",
    "Function.ResponseSizeTooLarge": "size", "Runtime.InitError": "init",
}  # fmt: skip


class Throttled(Failed):
    """A function has as many instances as it may have."""


class Step(NamedTuple):
    """A step of an instance's start, in ns of CLOCK_MONOTONIC."""

    name: str
    began: int
    ended: int


class Answer(Struct, frozen=True, kw_only=True):
    """An answer, or the error of the function: then ``payload`` is the error as Lambda words it.

    ``cold``: the instance was started for this event, in ``init_ns``. ``duration_ns`` is the
    handler's time. ``log_tail`` is the end of what it wrote meanwhile. ``cause`` is the kind of
    failure in a word: ``timeout``, ``memory``, ``exit``, ``size``, ``init`` or ``handler``.
    ``steps`` are those of the instance's start, where it is cold.
    """

    payload: bytes
    error: Literal["Handled", "Unhandled"] | None = None
    log_tail: bytes = b""
    cold: bool = True
    init_ns: int = 0
    duration_ns: int = 0
    cause: str = ""
    steps: tuple[Step, ...] = ()


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of a request. Times in ns: ``arrived`` of the epoch, the others durations.

    ``start_ns`` is the time until its handler had it, None if none had. ``cause`` is empty, that of
    an answer, ``throttled`` or ``node``. ``steps`` are those of the answer.
    """

    version: FunctionVersion
    request_id: str
    arrived: int
    cold: bool = False
    start_ns: int | None = None
    duration_ns: int = 0
    cause: str = ""
    steps: tuple[Step, ...] = ()


class Load(Struct, frozen=True):
    """What a version has: instances that are idle or busy, and requests that wait for one."""

    name: str
    idle: int
    busy: int
    waiting: int


def failure(answer: Answer, kind: str, message: str) -> Answer:
    """The same with an error of the function for its payload."""
    payload = msgspec.json.encode({"errorType": kind, "errorMessage": message})
    cause = _CAUSES.get(kind, "handler")
    return msgspec.structs.replace(answer, payload=payload, error="Unhandled", cause=cause)


def timed_out(seconds: float) -> str:
    """How Lambda says it."""
    return f"Task timed out after {seconds:.2f} seconds"


def ending(ended: Ended, memory: int) -> tuple[str, str]:
    """The error type and the message of an instance that ended before it answered."""
    if ended.out_of_memory:
        return "Runtime.OutOfMemory", f"the instance exceeded its memory limit of {memory} bytes"
    how = f"exit status {ended.status}" if ended.signal is None else f"signal {ended.signal}"
    return "Runtime.ExitError", f"Runtime exited with error: {how}"
