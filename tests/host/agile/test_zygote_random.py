"""What draws random numbers in forks of one zygote: each fork draws its own."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.python_functions import Make, python_root, value, with_handlers

from firstlight.agile import Runtime

DRAWS = """
import ctypes, hashlib, hmac, json, multiprocessing, os, random, secrets, sqlite3, ssl, sys
import tempfile, uuid

CONTEXT = ssl.create_default_context()
OWN = random.Random()
SYSTEM = random.SystemRandom()
LIBC = ctypes.CDLL(None)
ARC4 = getattr(LIBC, "arc4random", None)  # a C extension's source, where the C library has it
BASE = sqlite3.connect(":memory:")
DRAW = "select random(), hex(randomblob(16))"
LIBC.srand(7), LIBC.srandom(7), LIBC.srand48(7)
# Used once, as imports do: what keeps a state has one now.
ssl.RAND_bytes(16), tempfile.mktemp(), random.random(), secrets.token_hex(), uuid.uuid4()
uuid.uuid1(), uuid.getnode(), os.urandom(8), SYSTEM.random(), ARC4 and ARC4()
LIBC.rand(), LIBC.random(), LIBC.lrand48(), BASE.execute(DRAW).fetchall()

def hello():
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = CONTEXT.wrap_bio(incoming, outgoing, server_hostname="first.light")
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()

def main(_):
    sent = hello()
    return {
        "random": random.random(),
        "SystemRandom made at import": SYSTEM.random(),
        "arc4random": ARC4() if ARC4 else os.urandom(4).hex(),
        "rand": [LIBC.rand(), LIBC.rand()],
        "random of the C library": [LIBC.random(), LIBC.random()],
        "lrand48": [LIBC.lrand48(), LIBC.lrand48()],
        "SQLite": BASE.execute(DRAW).fetchall(),
        "SQLite, opened anew": sqlite3.connect(":memory:").execute(DRAW).fetchall(),
        "secrets": secrets.token_hex(16),
        "os.urandom": os.urandom(16).hex(),
        "uuid4": str(uuid.uuid4()),
        "uuid1's clock sequence and node": [uuid.uuid1().clock_seq, uuid.uuid1().node],
        "tempfile": tempfile.mktemp(),
        "ssl.RAND_bytes": ssl.RAND_bytes(16).hex(),
        "random of a ClientHello": sent[11:43].hex(),
        "session id and key share of a ClientHello": sent[43:].hex(),
        "multiprocessing's key": multiprocessing.current_process().authkey.hex(),
    }

def shared(_):
    return {
        "a generator of the import's own": OWN.random(),
        "hash of text": hash("first light"),
        "hashlib": hashlib.sha256(b"x").hexdigest(),
        "hmac": hmac.digest(b"k", b"x", "sha256").hex(),
    }
"""
NUMBERS = """
import sys
import numpy

OWN = numpy.random.default_rng()
numpy.random.random(), OWN.random()

def main(_):
    return [numpy.random.random(), numpy.random.RandomState().random(),
            numpy.random.default_rng().random(), numpy.random.randint(1 << 30)]

def shared(_):
    return OWN.random()
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system with these handlers."""
    modules = {"draws": DRAWS, "numeric": NUMBERS}
    return python_root(tmp_path_factory.mktemp("random"), modules)


async def three(runtime: Runtime, function: Make, name: str, module: str) -> list[Any]:
    request = function(name, module, memory=512 << 20)
    return [value(await runtime.invoke(request, None)) for _ in range(3)]


def test_forks_draw_different_numbers_from_each_generator(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        drawn = await three(runtime, function, "main", "draws")
        assert len(drawn[0]) == 17
        for name in drawn[0]:
            assert len({str(each[name]) for each in drawn}) == 3, f"{name}: the same in two forks"

    with_handlers(root, main)


def test_what_forks_share_is_what_the_documentation_says(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        first, second, three_ = await three(runtime, function, "shared", "draws")
        assert first == second == three_

    with_handlers(root, main)


def test_numpy_reseeds_in_each_fork(root: Path) -> None:
    packages = Path(pytest.importorskip("numpy").__file__).parents[1]
    (root / "srv/numpy").mkdir(exist_ok=True)
    (root / "srv/numpy.libs").mkdir(exist_ok=True)
    bind = "".join(f"mount --bind {packages / n} srv/{n}; " for n in ("numpy", "numpy.libs"))

    async def main(runtime: Runtime, function: Make) -> None:
        drawn = await three(runtime, function, "main", "numeric")
        assert [len(set(numbers)) for numbers in zip(*drawn, strict=True)] == [3, 3, 3, 3]
        assert len(set(await three(runtime, function, "shared", "numeric"))) == 1

    with_handlers(root, main, host=bind)
