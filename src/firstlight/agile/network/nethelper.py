"""The network helper: work that may wait for the kernel's network locks, off the event loop.

Layouts: ``native/agile/net.h``.
"""

import asyncio
import json
import os
import signal
import socket
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import Any, NamedTuple

from firstlight.agile import helper
from firstlight.agile.helper import Helper
from firstlight.errors import Failed, longer
from firstlight.native import native

PROGRAM = "net-helper"
_REQUEST, _ANSWER = Struct("=IIQi4s4s16s16sI16s16s"), Struct("=QQQQi28s")
_RANGE = Struct("=4s4si")
RANGES_MAX, _BODY_MAX, _MESSAGE_MAX = 1024, 65536, 4096
SILENCE_SECONDS = longer(10.0)
"""A helper with requests that is silent for this long hangs."""
_FIRST = 6
"""So many times as long may the first answer take, for which the kernel loads modules."""


class Verb(IntEnum):
    """Its requests."""

    HOST = 1
    MAKE = 2
    CHECK = 3
    FORGET = 4
    RULES = 5
    LOCALNET = 6
    REMOVE = 7
    FILL = 8
    WASH = 9
    LISTEN = 10


class Flag(IntFlag):
    """Flags of MAKE and FILL; IPV6 also of HOST, and OURS of HOST alone: set up what exists."""

    WIRED = 1
    NEIGHBOURS = 2
    POD = 4
    IPV6 = 8
    OURS = 16


class Answer(NamedTuple):
    """``error`` is an errno or 0; ``step`` is the step that failed. The receiver owns the
    descriptor.
    """

    id: int
    digest: int
    counters: int
    quick: int
    error: int
    step: str
    rest: bytes
    descriptor: int

    def check(self, what: str) -> "Answer":
        """Return the answer; raises its error as Failed."""
        if self.error:
            raise Failed(f"cannot {what}: {self.step}: {os.strerror(self.error)}")
        return self


class Request(NamedTuple):
    """A request; ``link_index`` and ``link`` identify the link on the host, ``peer`` is the name
    of its other end.
    """

    verb: Verb
    flags: Flag = Flag(0)
    link_index: int = 0
    address: IPv4Address = IPv4Address(0)
    gateway: IPv4Address = IPv4Address(0)
    link: str = ""
    body: bytes = b""
    peer: str = "eth0"
    mtu: int = 0
    address6: IPv6Address = IPv6Address(0)
    gateway6: IPv6Address = IPv6Address(0)

    def encode(self, number: int) -> bytes:
        """Encode it. Raises Failed if the body is too long."""
        if len(self.body) > _BODY_MAX:
            raise Failed(f"the rules are too long: {len(self.body)} of at most {_BODY_MAX} bytes")
        return _REQUEST.pack(
            self.verb, self.flags, number, self.link_index,
            self.address.packed, self.gateway.packed, self.link.encode(), self.peer.encode(),
            self.mtu, self.address6.packed, self.gateway6.packed,
        ) + self.body  # fmt: skip


def rules(commands: str) -> Request:
    """nft commands, as one transaction."""
    return Request(Verb.RULES, body=commands.encode() + b"\0")


def forget(ranges: Sequence[tuple[IPv4Address, IPv4Address, int]]) -> Request:
    """End the tracked connections of a range of addresses whose links are gone."""
    body = b"".join(_RANGE.pack(a.packed, b.packed, index) for a, b, index in ranges)
    return Request(Verb.FORGET, body=body)


def read_rules(answer: Answer, what: str) -> list[dict[str, Any]]:
    """Parse nft's JSON listing. Raises Failed with nft's message."""
    try:
        text = _read(answer.descriptor) if answer.descriptor >= 0 else ""
    finally:
        if answer.descriptor >= 0:
            os.close(answer.descriptor)
    if answer.error:
        line = text.strip().partition("\n")[0].removeprefix("Error: ")
        raise Failed(f"cannot {what}: {line or os.strerror(answer.error)}")
    return list(json.loads(text)["nftables"]) if text else []


def _read(descriptor: int) -> str:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        return file.read().decode(errors="replace")


def _decode(message: bytes, descriptor: int) -> Answer:
    number, digest, counters, quick, error, step = _ANSWER.unpack_from(message)
    text, rest = step.rstrip(b"\0").decode(errors="replace"), message[_ANSWER.size :]
    return Answer(number, digest, counters, quick, error, text, rest, descriptor)


class Unanswered(Failed):
    """The helper was killed, did not answer in time and is killed, or is closed."""


class NetHelper:
    """A helper process, started by the first request and restarted if it dies or hangs."""

    def __init__(self, silence: float = SILENCE_SECONDS) -> None:
        self._silence = silence
        self._pending: dict[int, asyncio.Future[Answer]] = {}
        self._count = 0
        self._helper: Helper | None = None
        self._answers = False
        self._watch: asyncio.TimerHandle | None = None
        self._is_closed = False

    @property
    def pid(self) -> int:
        """Its pid, or -1."""
        return self._helper.pid if self._helper else -1

    async def ask(self, request: Request, descriptor: int = -1) -> Answer:
        """Send a request; returns its answer. Raises Failed if the helper dies or hangs."""
        if self._is_closed:
            raise Unanswered("the network is closed", "start the runtime again")
        self._count += 1
        message = request.encode(self._count)
        if self._helper is None:
            self._helper = Helper(PROGRAM, self._take_answer, self._note_end)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._helper.send(message, [descriptor] if descriptor >= 0 else [])
        self._pending[self._count] = future
        if self._watch is None:
            self._rewatch()
        try:
            return await future
        except asyncio.CancelledError:
            _close_answer(future)
            raise

    def close(self) -> None:
        """End the helper; pending requests fail."""
        self._is_closed = True
        self._end("the network is closed")

    def _take_answer(self, message: bytes, descriptors: list[int]) -> None:
        descriptor = descriptors[0] if descriptors else -1
        answer = _decode(message, descriptor)
        future = self._pending.pop(answer.id, None)
        self._answers = True
        self._rewatch()
        if future and not future.done():
            future.set_result(answer)
        elif descriptor >= 0:
            os.close(descriptor)

    def _rewatch(self) -> None:
        if self._watch:
            self._watch.cancel()
            self._watch = None
        if self._pending:
            loop = asyncio.get_running_loop()
            self._watch = loop.call_later(self._patience(), self._hangs)

    def _patience(self) -> float:
        return self._silence if self._answers else self._silence * _FIRST

    def _hangs(self) -> None:
        why = f"the network helper did not answer in {self._patience():g} s and was killed"
        self._end(why, wait=False)

    def _note_end(self) -> None:
        self._end("the network helper was killed")

    def _end(self, why: str, wait: bool = True) -> None:
        ended, self._helper = self._helper, None
        pending, self._pending = self._pending, {}
        self._rewatch()
        if ended:
            ended.close(wait)
        for future in pending.values():
            if not future.done():
                future.set_exception(Unanswered(why, "try again"))


def ask_once(*requests: Request) -> list[Answer]:
    """Send a request to a separate helper and wait, without an event loop. Raises Failed."""
    path = str(native(PROGRAM))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            pid = helper.spawn(path, theirs.fileno())
        ours.settimeout(SILENCE_SECONDS * _FIRST)
        try:
            return [_ask(ours, request) for request in requests]
        except OSError as error:
            raise Failed(f"no answer from {path}: {error}") from error
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _ask(to: socket.socket, request: Request) -> Answer:
    to.send(request.encode(1))
    message, descriptors, _, _ = socket.recv_fds(to, _MESSAGE_MAX, 1)
    if not message:
        raise OSError("it has ended")
    return _decode(message, descriptors[0] if descriptors else -1)


def _close_answer(future: "asyncio.Future[Answer]") -> None:
    """Close the descriptor of an answer whose requester was cancelled."""
    if future.done() and not future.cancelled() and not future.exception():
        answer = future.result()
        if answer.descriptor >= 0:
            os.close(answer.descriptor)
