"""The protocol of clients and the resident runtime: JSON messages over a seqpacket unix socket.

A message has a ``type``: the tag of its record. ``start`` comes with three descriptors, the
instance's standard streams. Each request has one answer. The connection that started an instance
also gets its ``ended``, unless it was started detached; an instance that was not ends with its
connection.
"""

import socket
from functools import lru_cache

import msgspec
from msgspec import Struct

from firstlight.agile.function import Counts, Ended, Function, Listed, Result
from firstlight.errors import Failed

_REPEATED_MOST = 4096
MESSAGE_MAX = 192 * 1024  # fits a socket's default buffer
RIGHTS_MAX = socket.CMSG_SPACE(3 * 4)


class Start(Struct, frozen=True, tag="start"):
    """Start an instance. ``asked`` is the time of the request in ns; 0 means its arrival."""

    function: Function
    detached: bool = False
    asked: int = 0


class Prepare(Struct, frozen=True, tag="prepare"):
    """Make a function's parts, and this many whole sandboxes; the answer is ``done``."""

    function: Function
    sandboxes: int = 0


class Invoke(Struct, frozen=True, tag="invoke"):
    """Run a handler on an event, any JSON."""

    function: Function
    event: msgspec.Raw


class Stop(Struct, frozen=True, tag="stop"):
    """End an instance; the answer is ``stopped``."""

    id: str


class List(Struct, frozen=True, tag="list"):
    """List running instances with ids above ``after``, as many as fit one message."""

    after: int = 0


class Pools(Struct, frozen=True, tag="pools"):
    """Ask for the pools' counts."""


class Started(Struct, frozen=True, tag="started"):
    """An instance is ready. ``stamps`` are ns of CLOCK_MONOTONIC by step."""

    id: str
    pid: int
    address: str | None
    warm: bool
    stamps: dict[str, int]


class HasEnded(Struct, frozen=True, tag="ended"):
    """An instance has ended."""

    id: str
    ended: Ended


class Stopped(Struct, frozen=True, tag="stopped"):
    """An instance was ended on request."""

    ended: Ended


class Answered(Struct, frozen=True, tag="answered"):
    """What a handler returned."""

    result: Result


class Instances(Struct, frozen=True, tag="instances"):
    """Running instances in the order of their ids; empty after the last."""

    instances: list[Listed]


class PoolCounts(Struct, frozen=True, tag="counts"):
    """The pools' counts."""

    pools: list[Counts]


class Done(Struct, frozen=True, tag="done"):
    """The request is done."""


class Error(Struct, frozen=True, tag="error"):
    """The request failed and has no effects."""

    message: str
    hint: str | None = None


Request = Start | Prepare | Invoke | Stop | List | Pools
Answer = Started | HasEnded | Stopped | Answered | Instances | PoolCounts | Done | Error

_requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_answers: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


@lru_cache(maxsize=256)
def _decoded(message: bytes) -> Request:
    return _requests.decode(message)


def encode(message: Request | Answer) -> bytes:
    """Encode a message. Raises Failed if it is too long."""
    text = msgspec.json.encode(message)
    if len(text) > MESSAGE_MAX:
        raise Failed(f"a message of {len(text)} bytes is too long", f"at most {MESSAGE_MAX}")
    return text


def listed(running: list[Listed], after: int) -> Instances:
    """The instances after an id, as many as fit one message."""
    room = MESSAGE_MAX // 2
    found: list[Listed] = []
    for one in running:
        if room <= 0:
            break
        if int(one.id) > after:
            found.append(one)
            room -= len(msgspec.json.encode(one))
    return Instances(found)


def request(message: bytes) -> Request:
    """Parse a client's message. Raises Failed."""
    try:
        # Clients that start a function repeatedly repeat the message.
        return _decoded(message) if len(message) <= _REPEATED_MOST else _requests.decode(message)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Failed(f"the message violates the protocol: {error}",
                     "see firstlight.agile.protocol") from error  # fmt: skip


def answer(message: bytes) -> Answer:
    """Parse the runtime's message. Raises Failed."""
    try:
        return _answers.decode(message)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Failed(f"the answer violates the protocol: {error}",
                     "use the runtime's version of firstlight") from error  # fmt: skip
