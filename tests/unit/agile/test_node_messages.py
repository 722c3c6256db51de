"""The node's parsers under the sanitizers: messages that are right, nearly right, and noise."""

import random
import struct
import subprocess
from pathlib import Path

import pytest
from tests.support.laboratory import ROUNDS, sanitized

from firstlight.agile.node import wire
from firstlight.agile.node.wire import OrderVerb, RequestVerb

SOURCES = ("ahead", "client", "deadline", "function", "inherit", "init", "instance",
           "instance_clone", "instance_read", "instance_start", "instance_state", "loop", "manager",
           "net_quick", "output", "part", "pending", "queue", "request", "rest", "reuse", "sandbox",
           "sandbox_words", "session", "waiting")  # fmt: skip
SECONDS = 60
CLIENT, MANAGER, READ, LEAVE, SHORT = range(5)
EDGES = (0, 1, 2, 3, 127, 128, 255, 4095, 4096, 16383, 16384, 65535, (1 << 31) - 1, 1 << 31,
         (1 << 32) - 1)  # fmt: skip


@pytest.fixture(scope="session")
def parsers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The node without its processes and mounts."""
    return sanitized(
        tmp_path_factory.mktemp("node"), "../tests/native/node_messages.c",
        *(f"agile/{name}.c" for name in SOURCES), "common/socket.c",
        options=("-Wl,--wrap=part_take,--wrap=node_die,--wrap=syscall,--wrap=exit,--wrap=sendmsg",),
    )  # fmt: skip


def record(to: int, message: bytes = b"", descriptors: int = 0) -> bytes:
    return struct.pack("=BBH", to, descriptors, len(message)) + message


def number(chance: random.Random) -> int:
    return chance.choice(EDGES) if chance.random() < 0.6 else chance.randrange(8)


def ask(chance: random.Random) -> tuple[bytes, int]:
    """A client's request, with the descriptors that it should have."""
    verb = chance.choice([*RequestVerb, RequestVerb.START, RequestVerb.START])
    message = wire.request(
        verb, number(chance), chance.choice((0, 1, 2, 3, 65535)), tag=chance.getrandbits(64),
        instance=chance.randrange(40), signal=chance.choice((0, 9, 15, 64, 65, -1)),
        version=chance.choice((0, 1, 2)),
    )  # fmt: skip
    return message, 3 + (message[6] >> 1 & 1) if verb == RequestVerb.START else 0


def order(chance: random.Random) -> tuple[bytes, int]:
    """A manager's order, likewise."""
    small = chance.randrange(6)
    verbs = [each for each in OrderVerb if each != OrderVerb.END or chance.random() < 0.02]
    match verb := chance.choice([*verbs, OrderVerb.FUNCTION, OrderVerb.PART]):
        case OrderVerb.FUNCTION:
            name = chance.choice((b"instance", b"x" * 63, b"x" * 64))
            body = wire.DEFINITION.pack(
                small, chance.choice((0, 1, 2, 3)), chance.choice((0, 1, 8, 16, 255)),
                chance.choice((0, 1, 4)), chance.choice((0, 1, 2, 3)), chance.choice((0, 1, 2, 3)),
                number(chance), number(chance), number(chance), number(chance), number(chance),
                number(chance), number(chance), name,
            )  # fmt: skip
            return wire.order(verb, body, id=small), 2
        case OrderVerb.PART:
            kind = chance.choice((1, 2, 3))
            body = wire.PART.pack(
                chance.choice((small, 16383, 16384)), kind, chance.choice((0, 1, 2, 3, -1)),
                chance.choice((-1, small, 5000)), number(chance), small, number(chance),
                number(chance), number(chance), number(chance), b"note",
            )  # fmt: skip
            return wire.order(verb, body), int(kind == 1)
        case OrderVerb.PROFILE:
            program = struct.pack("=HBBI", 6, 0, 0, 0) * chance.randrange(5)
            return wire.profile(chance.randrange(6), program), 0
        case OrderVerb.HELLO:
            count = chance.choice((wire.VERSION, 0))
            flags = wire.STAY * (chance.random() < 0.99)
            return wire.order(verb, flags=flags, id=small, count=count), chance.randrange(5)
        case _:
            return wire.order(
                verb, chance.randbytes(8), number(chance), number(chance), number(chance),
                number(chance),
            ), 0  # fmt: skip


def conversation(seed: int, length: int) -> bytes:
    """Records for the program; most are as they should be, so that there is a state to break."""
    chance = random.Random(seed)
    whole = record(MANAGER, wire.order(OrderVerb.HELLO, flags=1, count=wire.VERSION), 3)
    for _ in range(length):
        to = chance.choices((CLIENT, MANAGER, READ, LEAVE, SHORT), (16, 20, 6, 2, 1))[0]
        message, descriptors = b"", 0
        if to in (CLIENT, MANAGER):
            message, descriptors = (ask if to == CLIENT else order)(chance)
        for _ in range(chance.choice((0, 0, 0, 1, 3)) if message else 0):
            at = chance.randrange(len(message))
            message = message[:at] + chance.randbytes(1) + message[at + 1 :]
        if chance.random() < 0.05:
            message = chance.choice((message[: len(message) // 2], message * 2, b"{", b"F"))
        if chance.random() < 0.1:
            descriptors = chance.randrange(9)
        whole += record(to, message, descriptors)
    return whole


@pytest.mark.parametrize("seed", range(2 * ROUNDS))
def test_the_node_survives_any_message_and_keeps_no_descriptor(parsers: Path, seed: int) -> None:
    for part in range(2):
        text = conversation(100 * seed + part, 400)
        done = subprocess.run([parsers], input=text, capture_output=True, timeout=SECONDS)
        assert done.returncode == 0, (part, done.stderr.decode()[-3000:])


def test_slow_client_gets_all_messages_later(parsers: Path) -> None:
    """It asks for more than can wait at once, and every start is refused."""
    definition = wire.DEFINITION.pack(1, 1, 0, 0, 0, 0, 5, 5, 9, 9, 9, 9, 9, b"instance")
    start = wire.request(RequestVerb.START, 1, 0, tag=1)
    text = b"".join(
        (
            record(MANAGER, wire.order(OrderVerb.HELLO, flags=1, count=wire.VERSION), 3),
            record(MANAGER, wire.order(OrderVerb.FUNCTION, definition), 2),
            record(CLIENT, start, 3),
            *(record(CLIENT, start) for _ in range(1100)),
            record(MANAGER, wire.order(OrderVerb.REFUSE, count=1)),
        )
    )
    done = subprocess.run([parsers], input=text, capture_output=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr.decode()[-3000:]


def test_without_memory_to_send_answers_come_later(parsers: Path) -> None:
    text = b"".join(
        (
            record(SHORT),
            record(MANAGER, wire.order(OrderVerb.HELLO, flags=1, count=wire.VERSION), 3),
            *(record(CLIENT, wire.request(RequestVerb.PING, tag=tag)) for tag in range(2)),
        )
    )
    done = subprocess.run([parsers], input=text, capture_output=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
