"""Programs beside the node under the sanitizers: messages that are right, nearly, and noise."""

import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.laboratory import ROUNDS, sanitized

from firstlight.agile.python import place
from firstlight.agile.shim import keeper

SETTINGS = (b"net.ipv4.ip_forward=1", b"kernel/sem=1 2", b"fs.mqueue.msg_max=9", b"a=b", b"=",
            b"net/../kernel/x=1", b"net.=", b"kernel.semmni=1", b"", b"/=",
            b"x" * 600 + b"=1")  # fmt: skip


def frame(chance: random.Random) -> bytes:
    """Of ttrpc: length, stream, type, flags, and the message."""
    size = chance.choice((0, 1, 40, 5000, 70000))
    said = chance.choice((size, size, size, size, size + 1, 4 << 20, (1 << 32) - 1))
    kind = chance.choice((1, 1, 2, 3))
    return struct.pack(">IIBB", said, chance.randrange(5), kind, 0) + bytes(size)


def to_keeper(chance: random.Random) -> tuple[int, int, bytes]:
    where = chance.choice((0, 0, 0, 1, 1, 1, 2, 2, 3, 4))
    descriptors = chance.choice((0, 1, 1, 2))
    match where:
        case 0:
            text = frame(chance)
        case 1:
            body = frame(chance)
            size = chance.choice((len(body), len(body), len(body), 3, 5 << 20))
            flags = chance.choice((0, 1, 2))
            text = keeper.RELAY.pack(chance.randrange(4), flags, size) + body
        case 2:
            kind, pid = chance.choice((*keeper.Kind, 9)), chance.randrange(4)
            text = keeper.NOTE.pack(kind, pid, 0, 0, 0, chance.choice((b"a", b"b", b"c" * 112)))
        case _:
            text = chance.randbytes(1) * chance.randrange(1, 4)
    return where + 5 * chance.randrange(3) if where != 2 else where, descriptors, text


def to_sandbox(chance: random.Random) -> tuple[int, int, bytes]:
    return chance.randrange(4), 0, b"\0".join(chance.choices(SETTINGS, k=3)) + b"\0"


def varint(value: int) -> bytes:
    head = b""
    while value > 0x7F:
        head += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return head + bytes((value,))


def to_shim(chance: random.Random) -> tuple[int, int, bytes]:
    text = b""
    for _ in range(chance.randrange(5)):
        body = bytes(chance.choice((0, 1, 200, 4090)))
        size = chance.choice((len(body), len(body), len(body), len(body) + 1, (1 << 64) - 1))
        field = chance.choice((1, 2, 2, 3)) << 3 | chance.choice((2, 2, 2, 0, 5))
        text += varint(field) + varint(size) + body
    return 0, 0, text


def to_place(chance: random.Random) -> tuple[int, int, bytes]:
    if chance.random() < 0.5:
        return 1, chance.randrange(9), chance.choice((b"x", b"x", b"xy"))
    name = chance.choice((b"instance", b"x" * 63, b"x" * 64))
    return 0, chance.choice((3, 3, 2, 8)), place._ZYGOTE.pack(chance.getrandbits(64), name)


Message = Callable[[random.Random], tuple[int, int, bytes]]


@pytest.mark.parametrize(
    ("program", "message"),
    [("KEEPER", to_keeper), ("SANDBOX", to_sandbox), ("SHIM", to_shim), ("PLACE", to_place)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_program_survives_any_message_and_keeps_no_descriptor(
    tmp_path: Path, program: str, message: Message
) -> None:
    built = sanitized(
        tmp_path, "../tests/native/messages.c", "common/socket.c",
        options=(f"-D{program}", "-Wno-unused-function"),
    )  # fmt: skip
    for seed in range(ROUNDS):
        chance, records = random.Random(seed), bytearray()
        for _ in range(300):
            where, descriptors, text = message(chance)
            for _ in range(chance.choice((0, 0, 0, 1, 3))):
                at = chance.randrange(len(text) + 1)
                text = text[:at] + chance.choice((chance.randbytes(1), b"")) + text[at + 1 :]
            records += struct.pack("=BBI", where, descriptors, len(text)) + text
        done = subprocess.run([built], input=records, capture_output=True, timeout=300)
        assert done.returncode == 0, f"{seed}: {done.stderr.decode()[:3000]}"
