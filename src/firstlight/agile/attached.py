"""The streams of an instance that is attached to a command line.

A program can open /dev/stdout only if its user may open the file behind it. The node gives a pipe
to that user. Anything that is neither a pipe nor open to all, such as root's file, a socket or a
terminal, is replaced by a pipe, which is copied here. Standard input is passed on directly: reading
ahead of the instance would take input meant for others.
"""

import fcntl
import os
import select
import signal
import socket
import stat
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType

_PART = 65536
_OPEN_TO_ALL = 0o222
_NULL = os.makedev(1, 3)


@contextmanager
def copied(interactive: bool) -> Iterator[tuple[tuple[int, int, int], Callable[[], None]]]:
    """Make streams for an instance; also yields a function to call after its start. On leaving, all
    that the instance wrote is written. A terminal becomes its input only if ``interactive``.
    """
    with ExitStack() as stack:
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, null)
        stdin = null if os.isatty(0) and not interactive else 0
        given, copies = {1: 1, 2: 2}, []
        for stream in (1, 2):
            if not _needs_copy(stream):
                continue
            if stream == 2 and given[1] != 1 and os.path.sameopenfile(1, 2):
                given[2] = given[1]  # else output to both would lose its order
                continue
            reading, given[stream] = os.pipe2(os.O_CLOEXEC)
            copies.append(threading.Thread(target=_copy, args=(reading, stream), daemon=True))
            copies[-1].start()
        pipes = {descriptor for descriptor in given.values() if descriptor > 2}

        def release() -> None:
            while pipes:
                os.close(pipes.pop())

        def finish() -> None:
            release()
            for copy in copies:
                copy.join()

        stack.callback(finish)
        yield (stdin, given[1], given[2]), release


def _needs_copy(stream: int) -> bool:
    status = os.fstat(stream)
    if stat.S_ISFIFO(status.st_mode):
        return not os.readlink(f"/proc/self/fd/{stream}").startswith("pipe:")  # noqa: PTH115
    return not (stat.S_ISCHR(status.st_mode) and status.st_rdev == _NULL)


def _copy(reading: int, to: int) -> None:
    try:
        while part := os.read(reading, _PART):
            rest = memoryview(part)
            while rest:
                rest = rest[_write(to, rest) :]
    except OSError:
        pass  # our reader is gone: the instance gets SIGPIPE
    finally:
        os.close(reading)


def _write(to: int, part: memoryview) -> int:
    try:
        return os.write(to, part)
    except BlockingIOError:  # another process has the other end
        select.select([], [to], [])
        return 0


class Terminal:
    """The instance's own terminal, shown on ours; its master arrives on ``streams[0]``. As a
    context manager, it puts our terminal into raw mode and restores it.
    """

    def __init__(self, interactive: bool) -> None:
        self._interactive = interactive
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if size := _size():
            self._ours.send(size)
        number = self._theirs.fileno()
        self.streams = (number, number, number)
        self._master = -1
        self._left: Callable[[], None] = lambda: None
        self._copy: threading.Thread | None = None

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self._copy:
            self._copy.join()
        self._left()
        self._theirs.close()
        self._ours.close()
        if self._master >= 0:
            os.close(self._master)

    def begin(self) -> None:
        """Show the started instance's terminal."""
        _, descriptors, _, _ = socket.recv_fds(self._ours, 1, 1)
        self._master = descriptors[0]
        keyboard = self._interactive and os.isatty(0)
        if keyboard:
            before = termios.tcgetattr(0)
            handler = signal.signal(signal.SIGWINCH, self._resize)
            tty.setraw(0)

            def restore() -> None:
                termios.tcsetattr(0, termios.TCSADRAIN, before)
                signal.signal(signal.SIGWINCH, handler)

            self._left = restore
        self._copy = threading.Thread(target=_copy, args=(os.dup(self._master), 1), daemon=True)
        self._copy.start()
        if self._interactive:
            threading.Thread(
                target=_type, args=(os.dup(self._master), not keyboard), daemon=True
            ).start()

    def _resize(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        if size := _size():
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)


def _size() -> bytes:
    """The struct winsize of our terminal; empty without one."""
    for stream in (0, 1, 2):
        with suppress(OSError):
            return fcntl.ioctl(stream, termios.TIOCGWINSZ, bytes(8))
    return b""


def _type(master: int, ends: bool) -> None:
    """Pass on typed input, and the end of input that is not from a keyboard."""
    with suppress(OSError):
        while part := os.read(0, _PART):
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(master, rest) :]
        if ends:
            os.write(master, b"\x04")
    os.close(master)
