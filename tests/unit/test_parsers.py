"""C that reads what strangers wrote, under the sanitizers: text that is right, nearly, or noise.

The node's parsers have test_node_messages.py, those of WebAssembly workers test_wasm_wire.py, the
CNI plugin test_cni_plugin.py.
"""

import random
import struct
import subprocess
from pathlib import Path

import pytest
from tests.support.laboratory import ROUNDS, sanitized

SOURCES = ("trace/command.c", "lab/vmjournal.c", "lab/vmmonitor.c", "lab/vmstream.c",
           "lab/launch_text.c", "common/http.c", "common/socket.c",
           "common/error.c")  # fmt: skip
STAMP = b"2026-11-29T12:34:56.123456789 [anonymous-instance:main] "
TEXTS = (
    (b'{"event":"RESUME","timestamp":{"seconds":1,"microseconds":2}}',
     b'{"event":"SHUTDOWN","data":{"reason":"guest-panic"}}', b'{"error":{"class":"x"}}'),
    (b'HTTP/1.1 400 Bad\r\nContent-Length: 21\r\n\r\n{"fault_message":"x"}',
     b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n"),
    (STAMP + b"Artificially kick devices\n", STAMP + b"[main] Error: no kernel\n" * 3),
    (b"Linux version 6\r\n" * 20, b"ready" * 2000, b"a\0b\n\r\r\n"),
    (b"firstlight ready 12\n", b"words\n" * 3000, b"firstlight step a 1 2\nfirstlight error x\n"),
    (b"runc\0create\0--bundle\0/b\0id\0", b"runc\0--bundle=/b\0", b"crun\0-b\0/b\0", b"x\0" * 900),
)  # fmt: skip
WORDS = (b"\0", b"\n", b"\r\n\r\n", b"\xff", b"--bundle", b"-b\0", b"--bundle=", b"firstlight ",
         b"content-length:", b"9" * 30, b"{", b'"', b"] ", b":", b"x" * 5000)  # fmt: skip


@pytest.fixture(scope="session")
def parsers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sanitized(tmp_path_factory.mktemp("parsers"), "../tests/native/parsers.c", *SOURCES)


def damaged(chance: random.Random, text: bytes) -> bytes:
    for _ in range(chance.choice((0, 1, 1, 2, 5))):
        start = chance.randint(0, len(text))
        end = min(len(text), start + chance.choice((0, 1, 4, 100)))
        text = text[:start] + chance.choice((*WORDS, chance.randbytes(3), b"")) + text[end:]
    return text


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_parsers_survive_any_text(parsers: Path, seed: int) -> None:
    chance = random.Random(seed)
    records = bytearray()
    for _ in range(1000):
        parser = chance.randrange(len(TEXTS))
        text = damaged(chance, chance.choice(TEXTS[parser]))
        records += struct.pack("=BI", parser, len(text)) + text
    done = subprocess.run([parsers], input=records, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
