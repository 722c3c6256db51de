"""firstlight-log by itself, beside instances that read their own output."""

import fcntl
import os
import random
import resource
import signal
import socket
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.support.laboratory import sanitized

from firstlight.native import native

_SECONDS = 60
_NOISE = b"\n" * (20 << 10)  # each line has a time of its own: they take long


@contextmanager
def _keeper(
    directory: Path, program: Path | None = None, size: int = 1 << 30, total: int = 1 << 32
) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def take_control() -> None:
        os.dup2(theirs.fileno(), 3)

    process = subprocess.Popen(
        [program or native("firstlight-log"), directory, str(size), str(total)],
        preexec_fn=take_control, close_fds=False,
    )  # fmt: skip
    theirs.close()
    try:
        yield process, ours
    finally:
        ours.close()
        process.kill()
        process.wait(_SECONDS)


def _add(keeper: socket.socket, identity: int, stack: ExitStack) -> int:
    """The writing end of a log's standard output."""
    reading, writing = os.pipe()
    error, no_error = os.pipe()
    socket.send_fds(keeper, [identity.to_bytes(8, "little")], [reading, error])
    for descriptor in (reading, error, no_error):
        os.close(descriptor)
    stack.callback(os.close, writing)
    return writing


def _until_logged(log: Path, text: bytes) -> None:
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        with suppress(FileNotFoundError, IsADirectoryError):
            if log.read_bytes().endswith(text):
                return
    raise AssertionError(f"{log.name} does not end with {text!r}")


def test_who_reads_its_own_output_holds_up_no_other_log(tmp_path: Path) -> None:
    """A pipe that was readable is empty when its turn comes: the others are read all the same."""
    with _keeper(tmp_path) as (process, keeper), ExitStack() as stack:
        noisy = [_add(keeper, number, stack) for number in range(1, 21)]
        thief = _add(keeper, 99, stack)
        stolen = os.open(f"/proc/self/fd/{thief}", os.O_RDONLY | os.O_NONBLOCK)
        stack.callback(os.close, stolen)
        for attempt in range(3):
            os.kill(process.pid, signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            for writing in noisy:
                os.write(writing, _NOISE + b"%d\n" % attempt)
            os.write(thief, b"mine\n")
            os.kill(process.pid, signal.SIGCONT)
            _until_logged(tmp_path / "1.log", b" %d\n" % attempt)
            with suppress(BlockingIOError):
                os.read(stolen, 100)
            for number in range(1, len(noisy) + 1):
                _until_logged(tmp_path / f"{number}.log", b" %d\n" % attempt)
            os.write(noisy[0], b"after %d\n" % attempt)
            _until_logged(tmp_path / "1.log", b"after %d\n" % attempt)


def test_empty_lines_of_one_instance_delay_no_other(tmp_path: Path) -> None:
    """A line has the time at which it was read, and much more is written than what is read."""
    with _keeper(tmp_path) as (process, keeper), ExitStack() as stack:
        noisy = {number: _add(keeper, number, stack) for number in range(1, 5)}
        quiet = _add(keeper, 9, stack)
        os.write(quiet, b"first\n")
        _until_logged(tmp_path / "9.log", b" F first\n")  # it has all of them
        os.kill(process.pid, signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        for writing in noisy.values():
            os.write(writing, b"\n" * 65531 + b"last\n")
        os.write(quiet, b"mine\n")
        os.kill(process.pid, signal.SIGCONT)
        _until_logged(tmp_path / "9.log", b" F mine\n")
        at = (tmp_path / "9.log").read_bytes().splitlines()[-1][:30]
        for number in noisy:
            _until_logged(tmp_path / f"{number}.log", b" F last\n")
            lines = (tmp_path / f"{number}.log").read_bytes().splitlines()
            assert len(lines) == 65532
            assert sum(line[:30] <= at for line in lines) <= 16 << 10


def test_log_begins_once_it_can_be_created(tmp_path: Path) -> None:
    log = tmp_path / "7.log"
    log.mkdir()
    with _keeper(tmp_path) as (_, keeper), ExitStack() as stack:
        writing = _add(keeper, 7, stack)
        os.write(writing, b"before\n")
        until = time.monotonic() + _SECONDS
        while any(fcntl.ioctl(writing, termios.FIONREAD, bytes(4))):
            assert time.monotonic() < until, "its output is not read"
        log.rmdir()
        os.write(writing, b"after\n")
        _until_logged(log, b" after\n")


def test_logs_beyond_its_descriptors_wait_until_others_end(tmp_path: Path) -> None:
    """Their pipes would be lost, and end who writes to them."""
    with _keeper(tmp_path) as (process, keeper), ExitStack() as stack:
        first = _add(keeper, 1, stack)
        os.write(first, b"here\n")
        _until_logged(tmp_path / "1.log", b" here\n")
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (20, 20))
        others = [_add(keeper, number, stack) for number in range(2, 11)]
        null = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, null)
        for number, writing in enumerate(others, 2):
            os.write(writing, b"%d\n" % number)
        os.dup2(null, first)
        for number, writing in enumerate(others, 2):
            _until_logged(tmp_path / f"{number}.log", b" %d\n" % number)
            os.dup2(null, writing)


def test_any_bytes_are_kept_line_by_line(tmp_path: Path) -> None:
    """Under the sanitizers; a line that is written in parts is parts in the log."""
    program = sanitized(tmp_path, "agile/log.c", "common/socket.c")
    chance = random.Random(7)
    written = [b"\n".join(chance.randbytes(chance.choice((0, 1, 40, 5000))) for _ in range(20))
               for _ in range(30)]  # fmt: skip
    with _keeper(tmp_path, program) as (process, keeper), ExitStack() as stack:
        writing = _add(keeper, 1, stack)
        for part in written:
            os.write(writing, part)
        os.write(writing, b"\nlast\n")
        _until_logged(tmp_path / "1.log", b" F last\n")
        keeper.close()
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        stack.callback(os.close, null)
        os.dup2(null, writing)
        assert process.wait(_SECONDS) == 0
    kept = bytearray()
    for line in (tmp_path / "1.log").read_bytes().split(b"\n")[:-1]:
        stamp, stream, kind, text = line.split(b" ", 3)
        assert (len(stamp), stream) == (30, b"stdout")
        kept += text + (b"\n" if kind == b"F" else b"")
    assert kept == b"".join(written) + b"\nlast\n"


def test_logs_are_kept_within_their_limits(tmp_path: Path) -> None:
    """Of all the oldest that has ended goes first, then the earlier half of the oldest."""
    null = os.open(os.devnull, os.O_WRONLY)
    with _keeper(tmp_path, size=1000, total=3000) as (_, keeper), ExitStack() as stack:
        stack.callback(os.close, null)
        for number in (1, 2, 3, 4):
            writing = _add(keeper, number, stack)
            log = tmp_path / f"{number}.log"
            os.write(writing, b"".join(b"%d\n" % line for line in range(30)))
            _until_logged(log, b" F 29\n")
            if number == 1:
                os.dup2(null, writing)
                until = time.monotonic() + _SECONDS
                while log.stat().st_mode & 0o200:
                    assert time.monotonic() < until, "its end is not noticed"
    sizes = {each.name: each.stat().st_size for each in tmp_path.iterdir()}
    assert sizes.keys() == {"2.log", "3.log", "3.log.1", "4.log", "4.log.1"}
    assert 900 < max(sizes.values()) <= 1000


def test_more_logs_than_allowed_remove_the_oldest(tmp_path: Path) -> None:
    for number in range(1, 10_001):
        (tmp_path / f"{number}.log").touch()
    with _keeper(tmp_path) as (_, keeper), ExitStack() as stack:
        os.write(_add(keeper, 20_000, stack), b"new\n")
        _until_logged(tmp_path / "20000.log", b" new\n")
        assert not (tmp_path / "1.log").exists()
        assert (tmp_path / "2.log").exists()
