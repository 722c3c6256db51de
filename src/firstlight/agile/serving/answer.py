"""The answer to an event."""

from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

from firstlight.agile.function import Ended, NodeFailed
from firstlight.agile.functions.version import FunctionVersion
from firstlight.errors import Failed

PAYLOAD_MAX = 6 << 20
"""Bytes of an answer, as Lambda limits them."""


_CAUSES = {
    "Sandbox.Timedout": "timeout", "Runtime.OutOfMemory": "memory", "Runtime.ExitError": "exit",
    "Function.ResponseSizeTooLarge": "size", "Runtime.InitError": "init",
    "Runtime.ImportModuleError": "init",
}  # fmt: skip


class Throttled(Failed):
    """The function or the node is at its limit of requests."""


class Step(NamedTuple):
    """A step of an instance's start, in ns of CLOCK_MONOTONIC."""

    name: str
    began: int
    ended: int


class Answer(Struct, frozen=True, kw_only=True):
    """An answer, or the error of the function: then ``payload`` is the error as Lambda words it.

    ``cold``: the instance was started for this event, in ``init_ns``. ``duration_ns`` is the
    handler's time, ``log_tail`` the end of its output in that time. ``cause`` is the kind of
    failure in a word: ``timeout``, ``memory``, ``exit``, ``size``, ``init`` or ``handler``.
    ``steps`` are those of a cold instance's start.
    """

    payload: bytes
    error: Literal["Handled", "Unhandled"] | None = None
    log_tail: bytes = b""
    cold: bool = True
    init_ns: int = 0
    duration_ns: int = 0
    cause: str = ""
    steps: tuple[Step, ...] = ()


class Invocation(Struct, frozen=True, kw_only=True):
    """The outcome of a request. Times in ns: ``arrived`` of the epoch, the others durations.

    ``start_ns`` is the time until a handler received it, None if none did. ``cause`` is empty, an
    answer's, ``throttled``, ``lost`` or ``node``. ``steps`` are those of the answer.
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
    """A version's idle and busy instances, and the requests that wait for one."""

    name: str
    idle: int
    busy: int
    waiting: int


def failure(answer: Answer, kind: str, message: str, trace: tuple[str, ...] = ()) -> Answer:
    """The same answer with an error of the function as its payload."""
    error: dict[str, str | tuple[str, ...]] = {"errorType": kind, "errorMessage": message}
    if trace:
        error["stackTrace"] = trace
    payload = msgspec.json.encode(error)
    cause = _CAUSES.get(kind, "handler")
    return msgspec.structs.replace(answer, payload=payload, error="Unhandled", cause=cause)


def too_long(answer: Answer) -> Answer:
    """The same answer with the error of one that is too long."""
    return failure(answer, "Function.ResponseSizeTooLarge",
                   f"the answer exceeds the maximum of {PAYLOAD_MAX} bytes")  # fmt: skip


def timed_out(seconds: float) -> str:
    """What Lambda says of an event that took too long."""
    return f"Task timed out after {seconds:.2f} seconds"


def ending(ended: Ended, memory: int, output: bytes = b"") -> tuple[str, str]:
    """The error type of an instance that ended before it answered, and the message, with the last
    line of its output.

    Raises NodeFailed if it was killed from outside.
    """
    if ended.lost:
        raise NodeFailed(f"the instance was {ended}", "try again")
    if ended.out_of_memory:
        kind, text = (
            "Runtime.OutOfMemory",
            f"the instance exceeded its memory limit of {memory >> 20} MiB",
        )
    else:
        how = f"exit status {ended.status}" if ended.signal is None else f"signal {ended.signal}"
        kind, text = "Runtime.ExitError", f"Runtime exited with error: {how}"
    return kind, with_last_line(text, output)


def with_last_line(text: str, output: bytes) -> str:
    """A message with the last line of output that is not blank."""
    line = last_line(output)
    return f"{text}: {line}" if line else text


def last_line(output: bytes) -> str:
    """The last line that is not blank."""
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
