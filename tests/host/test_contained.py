"""``mk/contained.py``: what a script starts ends with it, however it ends."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

MK = Path(__file__).parents[2] / "mk"
SECONDS = 60
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import contained
contained.listen()
script = "setsid sleep $0 & mount -t tmpfs $0 $1; : > $2/up; sleep $0"
contained.run(["sh", "-c", script, *sys.argv[2:]])
"""


def running(word: str) -> set[int]:
    """The processes that have it among their words."""
    pids = set()
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in each.read_bytes().split(b"\0"):
                pids.add(int(each.parent.name))
        except OSError:
            continue
    return pids


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_what_a_script_starts_ends_with_it(ending: signal.Signals, tmp_path: Path) -> None:
    """Also what has left its session, and what it has mounted."""
    length = str(100_000 + uuid.uuid4().int % 10**6)
    within = tmp_path / "within"
    within.mkdir()
    script = subprocess.Popen([sys.executable, "-c", SCRIPT, MK, length, within, tmp_path])
    try:
        end = time.monotonic() + SECONDS
        while not (tmp_path / "up").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        assert len(running(length)) >= 3
        script.send_signal(ending)
        assert script.wait(SECONDS) == (-ending if ending == signal.SIGKILL else 143)
    finally:
        script.kill()
    end = time.monotonic() + SECONDS
    while left := running(length):
        assert time.monotonic() < end, left
        time.sleep(0.02)
    assert length not in Path("/proc/mounts").read_text()
