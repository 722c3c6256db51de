"""shim-keeper by itself, under the sanitizers, in front of a server that answers each request.

Pods end with it: so it goes on where the host has nothing left, and whatever its server sends.
"""

import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.laboratory import sanitized

SECONDS = 60
HEADER = struct.Struct(">IIBB")
MOST = 4 << 20
SERVER = """
import fcntl, os, signal, socket, struct, sys, termios, time
link = socket.socket(fileno=3)
relay = struct.Struct("=III")
def take(size):
    data = b""
    while len(data) < size:
        part = link.recv(size - len(data))
        data += part or sys.exit(1)
    return data
def send_largest(connection, is_last):
    size = 10 + (4 << 20)
    answer = relay.pack(connection, 0, size) + struct.pack(">IIBB", size - 10, 1, 2, 0)
    answer += bytes(relay.size + size - len(answer))
    link.sendall(answer[:-5])
    until = time.monotonic() + 60
    while fcntl.ioctl(link, termios.TIOCOUTQ, bytes(4)) != bytes(4) and time.monotonic() < until:
        time.sleep(0.001)
    if is_last:  # the keeper hears of the end first
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.kill(os.getppid(), signal.SIGSTOP)
        os.kill(os.getppid(), signal.SIGHUP)
    link.sendall(answer[-5:])
    if is_last:
        link.sendall(relay.pack(connection, 0, 100_000) + bytes(100_000))
        sys.exit()
with open(sys.argv[1], "a") as log:
    print(os.getpid(), file=log)
while True:
    connection, flags, size = relay.unpack(take(relay.size))
    frame = take(size)
    if flags & 1 == 0 and frame.endswith(b"malformed"):
        link.sendall(relay.pack(connection, 0, 1 << 31))
    elif frame.endswith(b"largest"):
        send_largest(connection, frame.endswith(b"last and largest"))
    elif frame:
        link.sendall(relay.pack(connection, 0, size) + frame)
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sanitized(
        tmp_path_factory.mktemp("keeper"), "shim/keeper.c", "common/socket.c",
        "../tests/native/short_of_memory.c", options=("-Wl,--wrap=send",),
    )  # fmt: skip


@contextmanager
def keeper(program: Path, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    words = (program, directory / "socket", sys.executable, "-c", SERVER, directory / "servers")
    process = subprocess.Popen(words, cwd=directory)
    try:
        until(lambda: servers(directory), "no server was started")
        yield process
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(SECONDS)


def until(condition: Callable[[], object], otherwise: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)


def servers(directory: Path) -> list[int]:
    """The pids of the servers so far."""
    file = directory / "servers"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


@contextmanager
def client(directory: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(SECONDS)
        peer.connect(str(directory / "socket"))
        yield peer


def ask(peer: socket.socket, body: bytes, size: int = 0) -> bytes:
    send(peer, body)
    return receive(peer, size or len(body))


def send(peer: socket.socket, body: bytes) -> None:
    peer.sendall(HEADER.pack(len(body), 1, 1, 0) + body)


def receive(peer: socket.socket, size: int) -> bytes:
    answer = bytearray()
    while len(answer) < HEADER.size + size:
        part = peer.recv(65536)
        assert part, "the keeper has hung up"
        answer += part
    return bytes(answer[HEADER.size :])


def limit_files(pid: int, count: int) -> int:
    """Set the limit of open files; the result is the one before."""
    before, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, most))
    return before


def sleeps(pid: int) -> int:
    """How often the keeper has given its CPU away."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def test_server_is_restarted_once_it_can_be(program: Path, tmp_path: Path) -> None:
    with keeper(program, tmp_path) as process, client(tmp_path) as peer:
        assert ask(peer, b"first") == b"first"
        before = limit_files(process.pid, 3)  # all taken
        os.kill(servers(tmp_path)[0], 9)
        until(lambda: not child(process.pid), "the server did not end")
        with client(tmp_path) as waiting:
            slept = sleeps(process.pid)
            until(lambda: sleeps(process.pid) > slept + 4, "the keeper accepts again and again")
            limit_files(process.pid, before)
            assert ask(waiting, b"second") == b"second"
        assert ask(peer, b"third") == b"third"


def test_a_keeper_without_memory_to_send_pauses(program: Path, tmp_path: Path) -> None:
    with keeper(program, tmp_path) as process, client(tmp_path) as peer:
        short = tmp_path / "short"
        short.touch()
        send(peer, b"first")
        slept = sleeps(process.pid)
        until(lambda: sleeps(process.pid) > slept + 4, "the keeper sends again and again")
        short.unlink()
        assert receive(peer, 5) == b"first"


def child(pid: int) -> str:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text()


def test_a_server_that_sends_what_is_no_frame_is_replaced(program: Path, tmp_path: Path) -> None:
    with keeper(program, tmp_path), client(tmp_path) as peer:
        assert ask(peer, b"malformed") == b"malformed"
        assert len(servers(tmp_path)) == 2
        assert ask(peer, b"next") == b"next"


def test_an_answer_of_the_largest_size_is_read_to_its_end(program: Path, tmp_path: Path) -> None:
    with keeper(program, tmp_path), client(tmp_path) as peer:
        assert ask(peer, b"largest", MOST) == bytes(MOST)
        assert ask(peer, b"next") == b"next"


def test_answers_before_a_servers_end_are_passed_on(program: Path, tmp_path: Path) -> None:
    with keeper(program, tmp_path) as process, client(tmp_path) as peer:
        [server] = servers(tmp_path)
        send(peer, b"last and largest")
        until(lambda: ") Z " in Path(f"/proc/{server}/stat").read_text(), "the server did not end")
        process.send_signal(signal.SIGCONT)
        assert len(receive(peer, MOST + 100_000)) == MOST + 100_000
