"""Children that write without end, or never end."""

import os
import subprocess
import sys
import tracemalloc

import pytest

from firstlight.agile.functions import unpack
from firstlight.agile.functions.child import Child, Excess
from firstlight.agile.functions.errors import BadCode

FLOOD = "import os\nwhile True: os.write(%d, bytes(65536))"
HELD_MOST = 8 << 20


def python(code: str, seconds: float = 60.0, stdin: int = subprocess.DEVNULL) -> Child:
    return Child([sys.executable, "-I", "-c", code], seconds, 4096, env={}, stdin=stdin)


def is_gone(child: Child) -> bool:
    return child.process.poll() is not None


def test_what_a_child_writes_and_how_it_ends() -> None:
    with python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)") as child:
        assert child.finish() == 3
    assert (child.output, child.errors) == (b"out\n", b"err\n")


def test_one_that_writes_without_end_is_ended_and_costs_little() -> None:
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


def test_an_unpacker_that_was_taken_over_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "_rights", lambda *_: [])
    job = unpack.Job(directory="", upper="", target="", work="", uid=1, kind="tar")
    code = "import sys\nprint('ready', flush=True)\nsys.stdin.read(1)\n" + FLOOD % 1
    tracemalloc.start()
    with python(code, stdin=subprocess.PIPE) as child, pytest.raises(Excess):
        unpack._conversed(child, job, "it")
    assert tracemalloc.get_traced_memory()[1] < HELD_MOST
    tracemalloc.stop()
    with (
        python("import sys\nprint('ready', flush=True)\nsys.stdin.read()\nprint('nonsense')",
               stdin=subprocess.PIPE) as child,
        pytest.raises(BadCode, match="ended"),
    ):  # fmt: skip
        unpack._conversed(child, job, "it")
