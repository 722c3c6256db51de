"""Children that write without end, or never end."""

import os
import socket
import subprocess
import sys
import tracemalloc

import pytest

from firstlight.agile.functions import unpack
from firstlight.agile.functions.child import Child, Excess
from firstlight.agile.functions.errors import BadCode

FLOOD = "import os\nwhile True: os.write(%d, bytes(65536))"
HELD_MOST = 8 << 20


def python(code: str, seconds: float = 60.0) -> Child:
    return Child([sys.executable, "-I", "-c", code], seconds, 4096, env={})


def is_gone(child: Child) -> bool:
    return child.process.poll() is not None


def test_what_a_child_writes_and_how_it_ends() -> None:
    with python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)") as child:
        assert child.finish() == 3
    assert (child.output, child.errors) == (b"out\n", b"err\n")


def test_endless_writer_is_ended_cheaply() -> None:
    tracemalloc.start()
    with python(FLOOD % 1) as child, pytest.raises(Excess):
        child.finish()
    assert tracemalloc.get_traced_memory()[1] < HELD_MOST
    tracemalloc.stop()
    assert is_gone(child)


def test_child_keeps_last_errors_until_deadline() -> None:
    with python(FLOOD % 2, seconds=1.0) as child, pytest.raises(TimeoutError):
        child.finish()
    assert len(child.errors) <= 4096
    assert is_gone(child)


@pytest.mark.parametrize("first", ["pass", "os.close(1); os.close(2)"])
def test_one_that_hangs_is_ended(first: str) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    code = f"import os, time; {first}; time.sleep(600)"
    with python(code, seconds=0.5) as child, pytest.raises(TimeoutError):
        child.finish()
    assert is_gone(child)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def taken_over(code: str) -> unpack.Unpacked:
    """The end of an unpacking by a process with that code, which has said that it is ready."""
    job = unpack.Job(directory="", upper="", target="", work="", uid=1, kind="tar")
    talk, theirs = socket.socketpair()
    words = [sys.executable, "-I", "-c", "import os\nprint('ready', flush=True)\n" + code]
    with talk, subprocess.Popen(words, stdin=theirs.fileno(), stdout=theirs.fileno()) as process:
        theirs.close()
        try:
            return unpack._converse(process.pid, talk, job, "it")
        finally:
            process.kill()


def test_an_unpacker_that_was_taken_over_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "_rights", lambda *_: [])
    tracemalloc.start()
    with pytest.raises(Excess):
        taken_over("os.read(0, 1)\n" + FLOOD % 1)
    assert tracemalloc.get_traced_memory()[1] < HELD_MOST
    tracemalloc.stop()
    with pytest.raises(BadCode, match="ended: nonsense"):
        taken_over("os.read(0, 1)\nprint('nonsense')")
    with pytest.raises(BadCode, match="ended: killed"):
        taken_over("os.kill(os.getpid(), 9)")
