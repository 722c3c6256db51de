"""A native program that serves the runtime over a seqpacket socket on its descriptor 3."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence

from firstlight.agile.sockets import Connection
from firstlight.errors import Failed
from firstlight.native import native

_REAP_SECONDS = 0.1


class Helper:
    """One helper process. ``received`` gets each message with its descriptors.

    ``ended`` is called once if it ends by itself. Raises Failed if it cannot be started.
    """

    def __init__(
        self, program: str, received: Callable[[bytes, list[int]], None], ended: Callable[[], None]
    ) -> None:
        path = str(native(program))
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self.pid = spawn(path, theirs.fileno())
        except OSError as error:
            raise Failed(f"cannot start {path}: {error.strerror}",
                         "more pids and open files, or fewer instances") from error  # fmt: skip
        self._connection = Connection(ours, received, ended)

    def send(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a message; the descriptors may be closed when this returns."""
        self._connection.send(message, descriptors)

    def close(self, wait: bool = True) -> None:
        """End it and all that it made, and wait, unless it may hang in the kernel."""
        self._connection.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        if not wait:
            self._reap()
            return
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def leave(self) -> None:
        """Close its socket, so that it ends by itself; do not wait."""
        self._connection.close()
        self._reap()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                asyncio.get_running_loop().call_later(_REAP_SECONDS, self._reap)


def spawn(
    path: str, control: int, *arguments: str, environment: Mapping[str, str] = os.environ
) -> int:
    """The pid of the program, with ``control`` as its descriptor 3 and /dev/null as its input and
    output.
    """
    return os.posix_spawn(
        path, [path, *arguments], environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, control, 3),
        ],
        setsigdef=[signal.SIGPIPE],
    )  # fmt: skip
