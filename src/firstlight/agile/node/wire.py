"""Messages between the node, its clients and its manager: ``native/agile/wire.h`` in Python.

Integers are in host order; stamps are ns of CLOCK_MONOTONIC.
"""

import errno
import os
from enum import IntEnum, IntFlag
from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SHRINK, F_SEAL_WRITE, fcntl
from struct import Struct
from typing import NamedTuple, get_args

from firstlight.agile.function import Function, Reach, Reuse
from firstlight.errors import Failed

MAGIC = 0x314E4C46
WORDS_MAX, ARGUMENTS_MAX, NOTE_MAX = 2 << 20, 65536, 120
RESOLVERS_MAX = 4096
_WORD_MAX = 128 << 10
PARTS = 16384
FUNCTIONS = 4096
KEPT = 4096
REACHES: tuple[Reach, ...] = get_args(Reach)
REUSES: tuple[Reuse, ...] = get_args(Reuse)


class Step(IntEnum):
    """The steps of a start, in order; a failed start names one."""

    CLONE = 0
    CGROUP = 1
    MOUNT_NAMESPACE = 2
    PROC = 3
    MASK = 4
    TMPFS = 5
    WAIT = 6
    FUNCTION = 7
    NETWORK = 8
    CGROUP_LIMITS = 9
    ROOT = 10
    HOST_NAME = 11
    STREAMS = 12
    USER = 13
    LIMITS = 14
    CAPABILITIES = 15
    SECCOMP = 16
    EXEC = 17


class RequestVerb(IntEnum):
    """Requests of a client to the node."""

    PING = 1
    START = 2
    SIGNAL = 3
    EXEC = 5


class AnswerVerb(IntEnum):
    """Kinds of the node's answers."""

    PONG = 1
    STARTED = 2
    ENDED = 3
    REFUSED = 4


class Flag(IntFlag):
    """How a function's instances are made, as flags."""

    ZYGOTE = 2
    USER_NAMESPACE = 4
    REFUSES = 8
    OWN_IDENTITY = 16
    TERMINALS = 32
    VOLUMES = 64


class OrderVerb(IntEnum):
    """Orders of a manager to the node."""

    HELLO = 1
    PROFILE = 2
    FUNCTION = 3
    FORGET = 4
    PART = 5
    WITHDRAW = 6
    SANDBOXES = 7
    SIGNAL = 8
    END = 9
    REFUSE = 10
    RESOLVERS = 11
    SYNC = 12
    KEEP = 13
    DROP = 14
    LOG = 15
    STAY = 16


class EventVerb(IntEnum):
    """Kinds of events that the node reports to its manager."""

    DONE = 1
    STARTED = 2
    ENDED = 3
    FAILED = 4
    WANT = 5
    RICH = 6
    FUNCTION = 7
    PART = 8
    STATE_END = 9
    WAITING = 10
    KEPT = 11
    RESTED = 12


NETWORK, CGROUP = 1, 2
SHELVED, USED, LEFT = 1, 2, 3
STAY, UNIFIED = 1, 2
VERSION = 4
DETACHED, WITH_WORDS, KEEP_LOG, TERMINAL, AWAITED = 1, 2, 4, 8, 16
WARM, OUT_OF_MEMORY, TIMED_OUT, IS_DETACHED, CARRIED = 1, 2, 4, 1 << 16, 1 << 17

REQUEST = Struct("=IHHIIQqQiI")
_ANSWER = Struct(f"=IHHQQiiiIIIqq{len(Step) + 2}q")
_WORDS = Struct("=III")
_LIMITS = "QII"
DEFINITION = Struct(f"=8IQQ{_LIMITS}64s")
PART = Struct(f"=IIiiII{_LIMITS}Q{NOTE_MAX}s")
_ORDER = Struct("=IIQII")
_BODY = max(DEFINITION.size, PART.size)
_EVENT = Struct("=IIQIIiiiIiiqqqq")


class Answer(NamedTuple):
    """An answer of the node to a client."""

    verb: int
    flags: int
    tag: int
    instance: int
    pid: int
    status: int
    error: int
    step: int
    address: int
    version: int
    user: int
    system: int
    stamps: dict[str, int]


class Event(NamedTuple):
    """An event that the node reports to its manager."""

    verb: int
    flags: int
    id: int
    function: int
    version: int
    pid: int
    status: int
    error: int
    step: int
    network: int
    cgroup: int
    requested: int
    """Of an instance that has ended, when it ended."""
    running: int
    user: int
    system: int


class Definition(NamedTuple):
    """A function as the node knows it."""

    number: int
    version: int
    flags: int
    profile: int
    reach: int
    reuse: int
    uid: int
    gid: int
    files: int
    scratch: int
    memory: int
    quota: int
    pids: int
    host_name: bytes


class Part(NamedTuple):
    """A network or a cgroup as the node knows it."""

    place: int
    kind: int
    reach: int
    function: int
    address: int
    cgroup: int
    memory: int
    quota: int
    pids: int
    quick: int
    note: bytes


def request(
    verb: RequestVerb, function: int = 0, flags: int = 0, tag: int = 0, requested: int = 0,
    instance: int = 0, signal: int = 0, version: int = 0,
) -> bytes:  # fmt: skip
    """Encode a client's request."""
    return REQUEST.pack(MAGIC, verb, flags, function, version, tag, requested, instance, signal, 0)


def answer(message: bytes) -> Answer:
    """Parse an answer. Raises struct.error."""
    _, *fields = _ANSWER.unpack(message)
    stamps = fields[12:]
    names = [*(step.name.lower() for step in Step), "requested", "running"]
    named = {name: stamp for name, stamp in zip(names, stamps, strict=True) if stamp}
    return Answer._make([*fields[:12], dict(sorted(named.items(), key=lambda pair: pair[1]))])


PART_REFUSED = 1 << 48
"""Beyond all others: with a part's index, the id of the order that puts it on its shelf."""


def order(
    verb: OrderVerb, body: bytes = b"", flags: int = 0, id: int = 0, count: int = 0, length: int = 0
) -> bytes:
    """Encode an order."""
    return _ORDER.pack(verb, flags, id, count, length) + body.ljust(_BODY, b"\0")


def profile(number: int, program: bytes) -> bytes:
    """Encode the order that sets a seccomp profile."""
    return _ORDER.pack(OrderVerb.PROFILE, 0, 0, number, len(program) // 8) + bytes(_BODY) + program


def resolvers(text: bytes) -> bytes:
    """Encode the order that sets resolv.conf. Raises Failed if it is too long."""
    if len(text) >= RESOLVERS_MAX or b"\0" in text:
        raise Failed(f"a resolv.conf of {len(text)} bytes is too long", "set network.resolvers")
    return _ORDER.pack(OrderVerb.RESOLVERS, 0, 0, 0, len(text)) + bytes(_BODY) + text


def events(message: bytes) -> tuple[list[Event], bytes]:
    """Parse a message of the node: events, or one event and the state record that follows it."""
    kind = int.from_bytes(message[:4], "little")
    if kind in (EventVerb.FUNCTION, EventVerb.PART):
        return [Event(*_EVENT.unpack_from(message))], message[_EVENT.size :]
    return list(map(Event._make, _EVENT.iter_unpack(message))), b""


def definition(body: bytes) -> Definition:
    """Parse a function of the node's state."""
    return Definition(*DEFINITION.unpack_from(body))


def part(body: bytes) -> Part:
    """Parse a part of the node's state."""
    return Part(*PART.unpack_from(body))


def words(
    argv: tuple[str, ...], env: dict[str, str], directory: str | None = None, more: bytes = b""
) -> int:
    """Write a function's or a start's words to a memory file, followed by ``more``; returns its
    descriptor. Raises Failed if they are longer than a child reads.
    """
    texts = [*argv, *(f"{name}={value}" for name, value in env.items())]
    texts += [] if directory is None else [directory]
    what = f"the command {argv[0][:80]!r}" if argv else "the start"
    for name in env:
        if not name or "=" in name:
            raise Failed(f"{name[:80]!r} cannot name a variable", "without =, and not empty")
    try:
        coded = [text.encode(errors="surrogateescape") for text in texts]
    except UnicodeEncodeError as error:
        raise Failed(f"{what} or its environment cannot be encoded: {error}",
                     "surrogates stand for bytes that are not UTF-8") from error  # fmt: skip
    if any(b"\0" in each for each in coded):
        raise Failed(f"{what} or its environment has a NUL", "leave it out")
    if (longest := max(map(len, coded), default=0)) >= _WORD_MAX:
        raise Failed(f"{what} or its environment has a word of {longest} bytes",
                     f"Linux allows {_WORD_MAX - 1}; pass it by standard input")  # fmt: skip
    text = b"".join(each + b"\0" for each in coded)
    if len(text) > WORDS_MAX or len(argv) + len(env) > ARGUMENTS_MAX:
        raise Failed(
            f"{what} and its environment are {len(text)} bytes",
            f"at most {WORDS_MAX} bytes and {ARGUMENTS_MAX} words are possible",
        )
    descriptor = os.memfd_create("words", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    whole = _WORDS.pack(len(argv), len(env), len(text)) + text + more
    while whole:
        whole = whole[os.write(descriptor, whole) :]
    fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
    return descriptor


def after_words(descriptor: int) -> bytes:
    """Read what follows the words in such a file."""
    head = os.pread(descriptor, _WORDS.size, 0)
    begin = _WORDS.size + _WORDS.unpack(head)[2]
    return os.pread(descriptor, os.fstat(descriptor).st_size - begin, begin)


def refused(answer: Answer, function: Function | None = None) -> Failed:
    """Describe a refused start. Raises ValueError for an unknown step."""
    step = Step(answer.step)
    match (step, answer.error):
        case (Step.FUNCTION, errno.ENOENT | errno.ESTALE | errno.ESRCH | errno.EOPNOTSUPP):
            return _not_there(answer.error)
        case (Step.CLONE, errno.EUSERS):
            return Failed("the configured number of instances and sandboxes is reached",
                          "stop some, or configure more instances")  # fmt: skip
        case (Step.CLONE, errno.EBUSY):
            return Failed("too many starts are waiting", "retry later")
        case (Step.NETWORK | Step.CGROUP, errno.EAGAIN):
            return Failed(
                f"no {step.name.lower()} is ready", "retry later, or raise the pool's marks"
            )
        case (Step.NETWORK, errno.ETIMEDOUT):
            return Failed("no network or cgroup was ready in time", "see the runtime's log")
        case (Step.STREAMS, _):
            return _no_stream(answer.error)
        case (_, errno.ECANCELED):
            return Failed(f"the instance ended before it ran, in the step {_words(step)}")
        case (Step.EXEC, _) if function:
            return _not_executed(answer.error, function)
    return Failed(f"cannot start an instance: {_words(step)}: {os.strerror(answer.error)}")


def _not_there(error: int) -> Failed:
    match error:
        case errno.ENOENT:
            return Failed("the function is not registered", "register it again")
        case errno.ESTALE:
            return Failed("the function has a newer version", "register it again")
        case errno.ESRCH:
            return Failed("the instance has ended", "list them: firstlight agile ps")
    return Failed("no other program runs in an interpreter's sandbox, or in one that is reused",
                  "give the function reuse network")  # fmt: skip


def _no_stream(error: int) -> Failed:
    match error:
        case errno.EAGAIN | errno.ETOOMANYREFS:
            return Failed("no log can be kept: firstlight-log does not take more instances now",
                          "retry later; if it is stopped or hangs, kill it")  # fmt: skip
        case errno.EISDIR:
            return Failed("a standard stream is a directory, by which an instance would leave its "
                          "root", "give a file, a pipe or a terminal")  # fmt: skip
        case errno.EOPNOTSUPP:
            return Failed("a standard stream is a connection to the runtime",
                          "open descriptors 0 to 2 before it")  # fmt: skip
        case errno.ENOTCONN:
            return Failed("no log is kept", "try again")
    return Failed(f"the standard streams cannot be used: {os.strerror(error)}")


def _not_executed(error: int, function: Function) -> Failed:
    command, root = function.command[0], function.rootfs
    match error:
        case errno.ENOENT if "/" not in command:
            return Failed(f"no directory of PATH in the root file system {root} has {command}",
                          "give its path, or set PATH")  # fmt: skip
        case errno.ENOENT | errno.ENOTDIR:
            return Failed(f"{command}, its interpreter or the directory {function.directory} "
                          f"is not in the root file system {root}",
                          "add it there, or name another")  # fmt: skip
        case errno.EACCES:
            return Failed(f"the instance's user may not execute {command}, or not enter "
                          f"{function.directory} or a directory above them, or it is no file",
                          f"chmod a+rx them in {root}; name a program")  # fmt: skip
        case errno.ELOOP:
            return Failed(f"{command} or the directory {function.directory} is a circle of links "
                          f"in the root file system {root}", "name them without links")  # fmt: skip
        case errno.ENOEXEC:
            return Failed(f"{command} is neither a program for this machine nor a script that "
                          "begins with #!", "build it for this architecture")  # fmt: skip
        case errno.E2BIG:
            return Failed(f"the command {command} and its environment are longer than Linux allows",
                          "2 MiB in all, 128 KiB a word; pass it by standard input")  # fmt: skip
    return Failed(f"{command} cannot be executed: {os.strerror(error)}")


def _words(step: Step) -> str:
    return step.name.lower().replace("_", " ")
