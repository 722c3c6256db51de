"""A start that hangs is described by its deepest process, and by what that waits for."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from firstlight.lab import stuck

POLLER = """
import select, socket, sys
connected = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
poll = select.poll()
poll.register(connected, select.POLLIN)
poll.poll()
"""
pytestmark = pytest.mark.skipif(
    not os.access("/proc/self/syscall", os.R_OK), reason="this kernel has no /proc/PID/syscall"
)


def asleep(pid: int) -> None:
    """Returns when the process is in its poll, which nothing but we can end."""
    until = time.monotonic() + 20
    while " is in poll" not in stuck.describe(pid):
        assert time.monotonic() < until, stuck.describe(pid)


@pytest.fixture
def listener() -> socket.socket:
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(60)
    return listening


def test_one_that_polls_is_in_the_phase_of_its_socket(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with (
        listener,
        subprocess.Popen([sys.executable, "-c", POLLER, str(port)]) as process,
        listener.accept()[0],
    ):
        asleep(process.pid)
        message = stuck.describe(process.pid)
        process.kill()
    assert message.startswith(f"hung in phase datastore: {sys.executable} ")
    assert message.endswith(f"poll socket:inet 127.0.0.1:{port}")


def test_child_is_reported_and_not_its_reading_parent(
    listener: socket.socket, tmp_path: Path
) -> None:
    script = tmp_path / "poller.py"
    script.write_text(POLLER)
    port = listener.getsockname()[1]
    command = f"said=$({sys.executable} {script} {port}); echo $said"
    with listener, subprocess.Popen(["sh", "-c", command]) as process, listener.accept()[0]:
        asleep(process.pid)
        message = stuck.describe(process.pid)
    assert "poller.py" in message
    assert message.startswith("hung in phase datastore: ")
