"""Load shapes, and the load generator that drives them: the lab's only concurrency.

The generator is a process, ``native/lab/launch.c``, which describes the protocol.
"""

import os
import random
import select
import socket
import struct
import subprocess
from collections.abc import Sequence as Sequenced
from dataclasses import dataclass
from functools import cached_property

from firstlight.errors import Failed
from firstlight.lab import reply
from firstlight.lab.backends import Ask, Command
from firstlight.lab.reply import Reply
from firstlight.native import native

_REQUEST = struct.Struct("=IIIIqqQ")
_START = struct.Struct("=qII")
_ANSWER = struct.Struct("=II")
_RECORD = struct.Struct("=qqqqqqqiiII")
_RUN, _STOP = 1, 2
_SEQUENTIAL, _INHERIT = 1, 2


@dataclass(frozen=True)
class Burst:
    """All starts at the same instant."""


@dataclass(frozen=True)
class Sequence:
    """Each start when the one before it is ready or has failed."""


@dataclass(frozen=True)
class Poisson:
    """Starts at random times, ``rate`` per second, whether or not earlier ones are ready."""

    rate: float


@dataclass(frozen=True)
class Trace:
    """Starts at these times, in ns from the batch's beginning."""

    offsets: tuple[int, ...]


Shape = Burst | Sequence | Poisson | Trace
BURST = Burst()


@dataclass(frozen=True)
class Outcome:
    """The generator's record of one start. Stamps are in ns, 0 for what did not happen.

    ``seen`` is when it read ``firstlight ready`` or ``error``. ``status`` is as ``waitpid`` gives
    it, None while the start is up. ``expired``: its deadline passed before it was ready; it is up
    until ``stop`` kills it. ``pid`` is 0 for a requested start. ``output`` is what it wrote,
    ``reply`` its parsed form.
    """

    intended: int
    spawned: int
    seen: int
    exited: int
    user_ns: int
    system_ns: int
    pid: int
    status: int | None
    expired: bool
    output: str
    page_faults: int = 0

    @cached_property
    def reply(self) -> Reply:
        """The start's own report, parsed from its output."""
        return reply.read(self.output)


def offsets(shape: Shape, count: int, seed: int = 0) -> list[int]:
    """The intended arrival of each of ``count`` starts, in ns from the batch's beginning.

    ``seed`` determines random arrivals.
    """
    if isinstance(shape, Trace):
        if len(shape.offsets) != count:
            raise Failed(f"a trace of {len(shape.offsets)} starts does not have {count} arrivals")
        return list(shape.offsets)
    if not isinstance(shape, Poisson):
        return [0] * count
    arrivals = random.Random(seed)  # noqa: S311 - a schedule, not a secret
    at, result = 0.0, []
    for _ in range(count):
        at += arrivals.expovariate(shape.rate)
        result.append(round(at * 1e9))
    return result


class Generator:
    """A running load generator. Leaving it ends every start that it made.

    ``keep`` are descriptors of ours that a start with ``inherit`` gets under the same numbers.
    """

    def __init__(self, keep: Sequenced[int] = ()) -> None:
        self._keep = keep

    def __enter__(self) -> "Generator":
        self._socket, theirs = socket.socketpair()
        self._answers = select.poll()
        self._answers.register(self._socket, select.POLLIN)
        with theirs:
            descriptor = theirs.fileno()
            self._process = subprocess.Popen(
                [native("launch"), str(descriptor)], pass_fds=[descriptor, *self._keep]
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every start, even during a request. Idempotent."""
        self._socket.close()
        self._process.wait()

    @property
    def pid(self) -> int:
        """The process whose children are the instances."""
        return self._process.pid

    def run(
        self,
        batch: int,
        commands: Sequenced[Command],
        shape: Shape = BURST,
        *,
        deadline: float,
        seed: int = 0,
        inherit: bool = False,
    ) -> list[Outcome]:
        """Start the commands; return when each is ready, has ended or is past its deadline.

        ``deadline`` is in seconds after a start's intended arrival; ``seed`` is for ``offsets``.
        With ``inherit`` the commands keep this process's standard streams and the descriptors in
        ``keep``. Raises Failed if a command is malformed, before anything is started, or if the
        generator has ended.
        """
        body = b"".join(map(_start, commands, offsets(shape, len(commands), seed)))
        flags = _SEQUENTIAL * isinstance(shape, Sequence) | _INHERIT * inherit
        return self._ask(_RUN, batch, len(commands), flags, deadline, body)

    def stop(self, batch: int, *, deadline: float, inherit: bool = False) -> list[Outcome]:
        """Close a batch's standard input; return when all have exited. Kills after ``deadline``."""
        return self._ask(_STOP, batch, 0, _INHERIT * inherit, deadline, b"")

    def _ask(
        self, verb: int, batch: int, count: int, flags: int, deadline: float, body: bytes
    ) -> list[Outcome]:
        head = _REQUEST.pack(verb, batch, count, flags, 0, round(deadline * 1e9), len(body))
        try:
            self._socket.sendall(head + body)
        except OSError as error:
            raise _gone(error) from error
        _, answered = _ANSWER.unpack(self._receive(_ANSWER.size))
        return [self._outcome() for _ in range(answered)]

    def _outcome(self) -> Outcome:
        record = _RECORD.unpack(self._receive(_RECORD.size))
        intended, spawned, seen, exited, user, system, faults, *rest = record
        pid, status, expired, length = rest
        output = self._receive(length).decode(errors="replace")
        ended = None if status == -1 else status
        return Outcome(
            intended, spawned, seen, exited, user, system, pid, ended, bool(expired),
            output, faults,
        )  # fmt: skip

    def _receive(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            self._answers.poll()  # unlike recv, a signal always interrupts it
            try:
                part = self._socket.recv(size - len(parts))
            except OSError as error:
                raise _gone(error) from error
            if not part:
                raise _gone("it closed its socket")
            parts += part
        return bytes(parts)


def _start(command: Command, offset: int) -> bytes:
    """One start, encoded for the protocol."""
    if isinstance(command, Ask):
        texts = [str(command.socket), command.greeting, command.message]
        if any("\0" in text for text in texts):
            raise Failed(f"cannot send a request to {command.socket}: it contains a NUL")
        return _START.pack(offset, 0, 0) + _strings(texts)
    variables = [f"{name}={value}" for name, value in command.env.items()]
    texts = [*command.argv, *variables, str(command.cwd)]
    if not command.argv or not command.argv[0]:
        raise Failed("the command is empty", "give a program")
    if any("\0" in text for text in texts):
        raise Failed(f"cannot start {command.argv[0]}: its arguments or environment contain a NUL")
    return _START.pack(offset, len(command.argv), len(variables)) + _strings(texts)


def _strings(texts: list[str]) -> bytes:
    return b"".join(os.fsencode(text) + b"\0" for text in texts)


def _gone(reason: object) -> Failed:
    return Failed(
        f"the load generator has ended: {reason}",
        "see the error above, or dmesg if the kernel killed it",
    )
