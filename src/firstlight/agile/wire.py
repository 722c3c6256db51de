"""What the agile runtime and its native programs say: ``native/agile/spawner.h`` in Python.

Integers are in host order; stamps are ns of CLOCK_MONOTONIC.
"""

import os
import socket
from enum import IntEnum, IntFlag
from struct import Struct
from typing import NamedTuple

from firstlight.errors import Failed

CGROUPS_MAX = 4
START_MAX = 128 * 1024


class Step(IntEnum):
    """The steps of a start, in order; a failure names its step."""

    CLONE = 0
    CGROUP = 1
    NETWORK = 2
    ROOT = 3
    MOUNT_NAMESPACE = 4
    PROC = 5
    MASK = 6
    TMPFS = 7
    HOST_NAME = 8
    LIMITS = 9
    USER = 10
    CAPABILITIES = 11
    SECCOMP = 12
    WAIT = 13
    STREAMS = 14
    EXEC = 15


class Flag(IntFlag):
    """How a sandbox is made."""

    USER_NAMESPACE = 1
    ZYGOTE = 2
    CLONE_INTO = 4


class Verb(IntEnum):
    """What the spawner is asked for, and what it tells."""

    SPAWN = 1
    TEMPLATE = 2
    PROFILE = 3


class Said(IntEnum):
    """What the spawner tells."""

    SPAWNED = 1
    EXITED = 2
    REFUSED = 3


SANDBOX = Struct("=IIIIQ64s64s")
REQUEST = Struct("=IIQ")
START = Struct("=II")
_NEWS = Struct("=IiiiQqqqq")
_REPORT = Struct(f"=Ii{len(Step)}q")


class News(NamedTuple):
    """What the spawner told: a child's start, its end, or a refusal. CPU times in ns."""

    said: int
    pid: int
    error: int
    status: int
    id: int
    asked: int
    cloned: int
    user: int
    system: int


class Report(NamedTuple):
    """What a child said: it waits, is about to exec, or failed in ``step`` with ``error``."""

    step: Step
    error: int
    stamps: dict[Step, int]


def news(message: bytes) -> News:
    """Parse the spawner's message. Raises struct.error."""
    return News(*_NEWS.unpack(message))


def report(message: bytes) -> Report:
    """Parse a child's message. Raises struct.error, ValueError."""
    step, error, *stamps = _REPORT.unpack(message)
    return Report(Step(step), error, {s: t for s, t in zip(Step, stamps, strict=True) if t})


def sandbox(
    flags: Flag, profile: int, uid: int, gid: int, open_files: int, tmpfs: str, host_name: str
) -> bytes:
    """Encode ``struct sandbox``. ``tmpfs`` is a mount's options, at most 63 bytes."""
    return SANDBOX.pack(
        flags, profile, uid, gid, open_files, tmpfs.encode(), host_name.encode()[:63]
    )


def start(argv: tuple[str, ...], env: dict[str, str], directory: str) -> bytes:
    """Encode the message that wakes a child. Raises Failed if it is longer than a child reads."""
    words = [*argv, *(f"{name}={value}" for name, value in env.items()), directory]
    if any("\0" in word for word in words):
        raise Failed(f"the command {argv[0]!r} or its environment has a NUL in it")
    text = b"".join(word.encode() + b"\0" for word in words)
    if START.size + len(text) > START_MAX or len(argv) + len(env) > 4096:
        raise Failed(
            f"the command {argv[0]!r} and its environment are {len(text)} bytes",
            f"at most {START_MAX} bytes and 4096 words are possible",
        )
    return START.pack(len(argv), len(env)) + text


def rights(descriptors: list[int]) -> list[tuple[int, int, bytes]]:
    """The ancillary data that sends descriptors."""
    data = b"".join(d.to_bytes(4, "little") for d in descriptors)
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, data)] if descriptors else []


def open_standard() -> None:
    """A standard stream that is closed would become a socket of ours, and then an instance's."""
    opened = 0
    while opened <= 2:
        opened = os.open(os.devnull, os.O_RDWR)
    os.close(opened)
