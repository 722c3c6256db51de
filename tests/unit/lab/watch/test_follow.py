"""Windows that close at the same time are all read."""

import sys
from pathlib import Path

import pytest

from firstlight.lab.watch.follow import Follower
from firstlight.trace import bpf

TRACER = """
import sys
prefix = sys.argv[3]
for number in range(3):
    for kind in ("events", "text", "stacks"):
        open(f"{prefix}.{number}.{kind}", "w").close()
sys.stdout.write("watching\\nwindow 0 0 0 1\\nwindow 1 0 7 0\\nwindow 2 0 0 ")
sys.stdout.flush()
sys.stdin.readline()
print(1)
sys.stdin.read()
"""


def test_windows_that_close_at_once_are_all_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tracer.py").write_text(TRACER)
    monkeypatch.setattr(bpf, "program", lambda: [sys.executable, str(tmp_path / "tracer.py")])
    monkeypatch.setattr("firstlight.lab.watch.follow._daemons", lambda: iter([1]))
    with Follower(["runc"]) as follower:
        windows = [(window.lost, window.whole) for window in follower.read()]
        while len(windows) < 3:
            windows += [(window.lost, window.whole) for window in follower.read()]
    assert windows == [(0, True), (7, False), (0, True)]
