"""What an event is answered with."""

from typing import Literal

import msgspec
from msgspec import Struct

from firstlight.agile.function import Ended
from firstlight.errors import Failed

PAYLOAD_MAX = 6 << 20
"""Bytes of an answer, as Lambda limits them."""


class Throttled(Failed):
    """A function has as many instances as it may have."""


class Answer(Struct, frozen=True, kw_only=True):
    """An answer, or the error of the function: then ``payload`` is the error as Lambda words it.

    ``cold``: the instance was started for this event, in ``init_ns``. ``duration_ns`` is the
    handler's time. ``log_tail`` is the end of what it wrote meanwhile.
    """

    payload: bytes
    error: Literal["Handled", "Unhandled"] | None = None
    log_tail: bytes = b""
    cold: bool = True
    init_ns: int = 0
    duration_ns: int = 0


def failure(answer: Answer, kind: str, message: str) -> Answer:
    """The same with an error of the function for its payload."""
    payload = msgspec.json.encode({"errorType": kind, "errorMessage": message})
    return msgspec.structs.replace(answer, payload=payload, error="Unhandled")


def timed_out(seconds: float) -> str:
    """How Lambda says it."""
    return f"Task timed out after {seconds:.2f} seconds"


def ending(ended: Ended, memory: int) -> tuple[str, str]:
    """The error type and the message of an instance that ended before it answered."""
    if ended.out_of_memory:
        return "Runtime.OutOfMemory", f"the instance exceeded its memory limit of {memory} bytes"
    how = f"exit status {ended.status}" if ended.signal is None else f"signal {ended.signal}"
    return "Runtime.ExitError", f"Runtime exited with error: {how}"
