"""A native program that serves the runtime over a seqpacket socket on its descriptor 3."""

import asyncio
import contextlib
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Sequence

from firstlight.agile import wire
from firstlight.errors import Failed
from firstlight.native import native

_MESSAGE_MAX = 4096
_REAP_SECONDS = 0.1
_RIGHTS = socket.CMSG_SPACE(4)


class Helper:
    """One helper process. ``heard`` gets each message with its descriptor, or -1.

    ``ended`` is called once if it goes while it is still wanted. Raises Failed if it cannot be
    started.
    """

    def __init__(
        self, program: str, heard: Callable[[bytes, int], None], ended: Callable[[], None]
    ) -> None:
        self._heard, self._ended = heard, ended
        self._unsent: deque[tuple[bytes, tuple[int, ...]]] = deque()
        path = str(native(program))
        try:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self.pid = spawn(path, theirs.fileno())
        except OSError as error:
            raise Failed(f"cannot start {path}: {error.strerror}",
                         "more pids and open files, or fewer instances") from error  # fmt: skip
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._read)

    def send(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a message; the descriptors may be closed when this returns."""
        if not self._unsent:
            try:
                self._socket.sendmsg([message], wire.rights(list(descriptors)))
            except BlockingIOError:
                self._loop.add_writer(self._socket, self._flush)
            except OSError:
                return  # it is gone: its end is told by the reader
            else:
                return
        self._unsent.append((message, tuple(map(os.dup, descriptors))))

    def _flush(self) -> None:
        while self._unsent:
            message, descriptors = self._unsent[0]
            try:
                self._socket.sendmsg([message], wire.rights(list(descriptors)))
            except BlockingIOError:
                return
            except OSError:
                break
            self._unsent.popleft()
            for descriptor in descriptors:
                os.close(descriptor)
        self._loop.remove_writer(self._socket)

    def _read(self) -> None:
        while True:
            try:
                message, ancillary, _, _ = self._socket.recvmsg(
                    _MESSAGE_MAX, _RIGHTS, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                message, ancillary = b"", []
            if not message:
                self._loop.remove_reader(self._socket)
                self._ended()
                return
            descriptor = int.from_bytes(ancillary[0][2][:4], "little") if ancillary else -1
            self._heard(message, descriptor)

    def close(self, wait: bool = True) -> None:
        """End it, and all that it made, and wait for that, unless it may hang in the kernel."""
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        for _, descriptors in self._unsent:
            for descriptor in descriptors:
                os.close(descriptor)
        self._unsent.clear()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        if not wait:
            self._reap()
            return
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                self._loop.call_later(_REAP_SECONDS, self._reap)


def spawn(path: str, control: int) -> int:
    """The pid of the program, with its control socket as descriptor 3."""
    return os.posix_spawn(
        path, [path], os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, control, 3),
        ],
        setsigdef=[signal.SIGPIPE],
    )  # fmt: skip
