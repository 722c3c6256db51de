"""Messages between clients and the runtime, except starts: JSON over a seqpacket unix socket.

A message has a ``type``, the name of its record here in lower case. Each request has one answer.
Starts go to the node itself, on a separate connection, in its binary messages (``node/wire.py``).
The first message of a connection decides its kind.
"""

import json
import os
import re
import socket
from fcntl import F_ADD_SEALS, F_GET_SEALS, F_SEAL_GROW, F_SEAL_SHRINK, F_SEAL_WRITE, fcntl
from functools import lru_cache

import msgspec
from msgspec import Struct

from firstlight.agile import coding
from firstlight.agile.function import (
    Counts,
    Ended,
    Function,
    HandlerFailed,
    Happened,
    Listed,
    Result,
)
from firstlight.agile.functions.records import Registration, Settings, Source
from firstlight.errors import Failed

_REPEATED_MOST = 4096
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
MESSAGE_MAX = 192 * 1024  # fits a socket's default buffer
LARGE_MAX = 16 << 20
_SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE
GRACE_MOST = 86400.0
"""Seconds from SIGTERM to SIGKILL."""
RIGHTS_MAX = socket.CMSG_SPACE(4)


class Register(Struct, frozen=True, tag="register"):
    """Register a function, which the node then starts by itself; the answer is ``registered``."""

    function: Function


class Publish(Struct, frozen=True, tag="publish"):
    """Forward the ports of its function to an instance; the answer is ``done``."""

    id: str


class Explain(Struct, frozen=True, tag="explain"):
    """Ask why a part for this function's starts could not be made; the answer is ``error``."""

    function: Function


class Prepare(Struct, frozen=True, tag="prepare"):
    """Make a function's parts, and this many complete sandboxes; the answer is ``done``."""

    function: Function
    sandboxes: int = 0


class Invoke(Struct, frozen=True, tag="invoke"):
    """Run a handler on an event, any JSON."""

    function: Function
    event: bytes


class Attach(Struct, frozen=True, tag="attach"):
    """Ask for a connection to a WebAssembly function's worker (``native/agile/wasm.h``).

    The connection comes with the answer, ``done``.
    """

    function: Function


class Stop(Struct, frozen=True, tag="stop"):
    """End an instance by a signal, then after ``grace`` seconds by SIGKILL: ``stopped``."""

    id: str
    grace: float = 0.0
    signal: int = 15


class KeepLogs(Struct, frozen=True, tag="keeplogs"):
    """Keep the output of detached instances from now on; the answer is ``done``."""


class Logs(Struct, frozen=True, tag="logs"):
    """Ask for the log of an instance, or of a function of the registry, from a position on.

    ``seconds`` is how long to wait for more.

    The answer is ``logpart``.
    """

    id: str
    position: tuple[int, int] = (0, 0)
    seconds: float = 0.0


class Events(Struct, frozen=True, tag="events"):
    """Ask for the events after a serial, -1 for the newest; ``seconds`` is how long to wait for
    one.

    The answer is ``happenings``.
    """

    after: int = 0
    seconds: float = 0.0


class List(Struct, frozen=True, tag="list"):
    """List running instances with ids above ``after``, as many as fit one message."""

    after: int = 0
    ended: bool = False
    """Of those that have ended the last ones instead."""


class Pools(Struct, frozen=True, tag="pools"):
    """Ask for the pools' counts."""


class Ping(Struct, frozen=True, tag="ping"):
    """Ask whether the runtime answers; the answer is ``done``."""


class Leave(Struct, frozen=True, tag="leave"):
    """Leave the node and its instances to the next runtime; the answer is ``leaving``."""


class End(Struct, frozen=True, tag="end"):
    """End all instances, the node and the runtime; the answer is ``leaving``."""


class Leaving(Struct, frozen=True, tag="leaving"):
    """The runtime's process is about to end."""

    pid: int


class AddFunction(Struct, frozen=True, tag="add_function"):
    """Add a function to the registry; its first version gets the alias, if given."""

    name: str
    source: Source
    settings: Settings = Settings()
    alias: str = ""
    owner: str = ""


class UpdateFunction(Struct, frozen=True, tag="update_function"):
    """Change a function's code, settings, or both; the alias points at the new version."""

    name: str
    source: Source | None = None
    settings: Settings = Settings()
    alias: str = ""


class ApplyFunction(Struct, frozen=True, tag="apply_function"):
    """Make a function of this owner exactly this, with one version."""

    name: str
    source: Source
    settings: Settings
    owner: str
    tags: dict[str, str]
    concurrency: int | None = None
    queue: int = 0


class RemoveFunction(Struct, frozen=True, tag="remove_function"):
    """Remove a function, or one of its versions."""

    name: str
    version: str = ""


class SetAlias(Struct, frozen=True, tag="set_alias"):
    """Point an alias of a function at a version; without a version, remove the alias."""

    name: str
    alias: str
    version: str = ""


class Reserve(Struct, frozen=True, tag="reserve"):
    """Limit how many requests of a function are answered at once; None removes the limit.

    ``queue`` more wait for their turn.
    """

    name: str
    concurrency: int | None = None
    queue: int = 0


class ListFunctions(Struct, frozen=True, tag="list_functions"):
    """Ask for a function by its name, or for all."""

    name: str = ""


class CallFunction(Struct, frozen=True, tag="call_function"):
    """Call a function of the registry with an event, any JSON; the answer is ``called``.

    ``later``: the event is queued, and the answer is ``done``.
    """

    name: str
    event: bytes
    qualifier: str = ""
    later: bool = False


Change = AddFunction | UpdateFunction | ApplyFunction | RemoveFunction | SetAlias | Reserve
"""What changes the registry: answered with the function as it is then, or none."""

FunctionRequest = Change | ListFunctions | CallFunction
"""What the registry answers."""


class Registered(Struct, frozen=True, tag="registered"):
    """A function has a number, by which the node starts it, and the version of its files."""

    number: int
    version: int


class Stopped(Struct, frozen=True, tag="stopped"):
    """An instance was ended on request."""

    ended: Ended


class Invoked(Struct, frozen=True, tag="invoked"):
    """What a handler returned."""

    result: Result


class Instances(Struct, frozen=True, tag="instances"):
    """Running instances by id; empty after the last."""

    instances: list[Listed]


class LogPart(Struct, frozen=True, tag="logpart"):
    """Lines of a log (logs.py), the position after them, and whether nothing can follow."""

    text: bytes
    position: tuple[int, int]
    ended: bool


class Happenings(Struct, frozen=True, tag="happenings"):
    """Events in the order of their serials."""

    events: list[Happened]


class PoolCounts(Struct, frozen=True, tag="counts"):
    """The pools' counts."""

    pools: list[Counts]


class Functions(Struct, frozen=True, tag="functions"):
    """Functions of the registry."""

    functions: list[Registration]


class Called(Struct, frozen=True, tag="called"):
    """A function's answer or error, and the end of its output."""

    payload: bytes
    version: str
    error: str | None = None
    log: bytes = b""
    cold: bool = False
    init_ns: int = 0
    duration_ns: int = 0


class Large(Struct, frozen=True, tag="large"):
    """The request or answer is in the attached memory file."""


class Done(Struct, frozen=True, tag="done"):
    """The request is done."""


class Error(Struct, frozen=True, tag="error"):
    """The request failed and has no effects."""

    message: str
    hint: str | None = None


RuntimeRequest = Register | Publish | Explain | Prepare | Invoke | Stop | List | Pools
ProcessRequest = Ping | Leave | End
RecordRequest = KeepLogs | Logs | Events
Request = RuntimeRequest | Attach | FunctionRequest | RecordRequest | ProcessRequest
Answer = (
    Registered | Stopped | Invoked | Instances | PoolCounts | Functions | Called | Large | Done
    | Leaving | LogPart | Happenings | Error
)  # fmt: skip

_requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_answers: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


@lru_cache(maxsize=256)
def _decoded(message: bytes) -> Request:
    return coding.decode(message, _requests)


def encode(message: Request | Answer) -> bytes:
    """Encode a message."""
    return coding.encode(message)


def send(peer: socket.socket, text: bytes) -> None:
    """Send a message of any length on a blocking socket. Raises Failed, OSError."""
    if len(text) <= MESSAGE_MAX:
        peer.send(text)
        return
    if len(text) > LARGE_MAX:
        raise Failed(f"a message of {len(text)} bytes is too long", f"at most {LARGE_MAX}")
    descriptor = large(text)
    try:
        socket.send_fds(peer, [coding.encode(Large())], [descriptor])
    finally:
        os.close(descriptor)


def large(text: bytes) -> int:
    """Make a sealed memory file with a text that is too long for one message."""
    descriptor = os.memfd_create("message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    rest = memoryview(text)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    fcntl(descriptor, F_ADD_SEALS, _SEALS)
    return descriptor


def whole(message: bytes, descriptor: int) -> bytes:
    """The text of a message, or of its memory file. Raises Failed."""
    if descriptor < 0 or message != coding.encode(Large()):
        return message
    try:  # other files could be slow to read, or change
        sealed = fcntl(descriptor, F_GET_SEALS) & _SEALS == _SEALS
    except OSError:
        sealed = False
    size = os.fstat(descriptor).st_size
    if not sealed or size > LARGE_MAX:
        raise Failed("the message violates the protocol: it is not in a sealed memory file of at "
                     f"most {LARGE_MAX} bytes", "see firstlight.agile.protocol")  # fmt: skip
    return os.pread(descriptor, size, 0)


def check_json(text: bytes, hint: str = "") -> None:
    """Raise Failed, with that hint, if it is not JSON.

    A number of any size is JSON, and so is the escape of half a surrogate pair, which SDKs send for
    text that was cut in the middle of one.
    """
    try:
        text.decode()
        try:
            msgspec.json.decode(text, type=msgspec.Raw)
        except msgspec.DecodeError:
            msgspec.json.decode(_SURROGATE.sub(rb"\\u0000", text), type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Failed(f"the event is not JSON: {error}", hint) from error


def invoked(result: Result) -> Invoked:
    """The answer that a handler gave. Raises HandlerFailed for half a surrogate pair in it, which
    records hold in arguments and variables alone.
    """
    try:
        if rb"\ud" in bytes(result.value):
            msgspec.json.decode(result.value, type=msgspec.Raw)
    except msgspec.DecodeError as error:
        raise HandlerFailed(
            "Runtime.MarshalError", f"the handler returned half a surrogate pair: {error}",
            "return valid Unicode text, or add it as a function and call that",
        ) from None  # fmt: skip
    return Invoked(result)


def event(value: object) -> bytes:
    """Encode an event; one that is encoded already is msgspec.Raw. Raises Failed for values that
    JSON cannot represent.
    """
    if isinstance(value, msgspec.Raw):
        check_json(bytes(value))
        return bytes(value)
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        remedy = "give None, booleans, finite numbers, text, lists or dicts"
        raise Failed(f"the event is not JSON: {error}", remedy) from None


def listed(running: list[Listed], after: int) -> Instances:
    """The instances after an id, as many as fit one message."""
    room = MESSAGE_MAX // 2
    page: list[Listed] = []
    for instance in running:
        if room <= 0:
            break
        if int(instance.id) > after:
            page.append(instance)
            room -= len(coding.encode(instance))
    return Instances(page)


def request(message: bytes) -> Request:
    """Parse a client's message. Raises Failed."""
    try:
        # Cached: clients that start a function often repeat the message.
        if len(message) <= _REPEATED_MOST:
            return _decoded(message)
        return coding.decode(message, _requests)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Failed(f"the message violates the protocol: {error}",
                     "see firstlight.agile.protocol") from error  # fmt: skip


def answer(message: bytes) -> Answer:
    """Parse the runtime's message. Raises Failed."""
    try:
        return coding.decode(message, _answers)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Failed(f"the answer violates the protocol: {error}",
                     "use the runtime's version of firstlight") from error  # fmt: skip
