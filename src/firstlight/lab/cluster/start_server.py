"""A resident program that makes starts for the load generator (``backends.Ask``).

Each connection is one start with its own thread. The greeting prepares the start; the request comes
with the start's standard streams. The start reports by lines on its standard output, and ends with
its standard input or the connection.
"""

import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from firstlight.errors import Failed

_MESSAGE = 65536
_STREAMS = 3
_AT_ONCE = 10  # of the background's starts
_START = "start"  # the name of its thread


class Start(Protocol):
    """A start, run by its connection's thread."""

    def prepare(self) -> None:
        """Prepare, before the clock starts."""

    def make(self, request: dict[str, Any]) -> list[str]:
        """Make the instance; returns the lines to report. Any exception is the start's error."""

    def end(self) -> None:
        """Remove what was made, even after a failed ``make``."""


def serve(path: Path, start: Callable[[], Start]) -> None:
    """Serve on a seqpacket socket, with a thread per connection, until this process ends."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind(str(path))
    server.listen(512)

    def accept() -> None:
        while True:
            connection, _ = server.accept()
            threading.Thread(
                target=_serve_start, args=(connection, start()), name=_START, daemon=True
            ).start()

    threading.Thread(target=accept, daemon=True).start()


def await_ends(seconds: float) -> None:
    """Wait until all starts have ended, at most for so long: the load generator waits less."""
    until = time.monotonic() + seconds
    for thread in threading.enumerate():
        if thread.name == _START:
            thread.join(max(0.0, until - time.monotonic()))


@contextmanager
def held(path: Path, messages: Sequence[str]) -> Iterator[None]:
    """Ask for starts, some at a time, and keep them up. Raises Failed if one fails."""
    with ThreadPoolExecutor(_AT_ONCE) as pool, ExitStack() as kept:
        kept.callback(lambda: list(pool.map(_end, starts)))
        starts: list[tuple[socket.socket, int]] = []
        for outcome in pool.map(lambda message: _ask(path, message), messages):
            if isinstance(outcome, str):
                raise Failed(f"a background start failed: {outcome}")
            starts.append(outcome)
        yield


def _ask(path: Path, message: str) -> tuple[socket.socket, int] | str:
    """A start that is up, with what ends it; or why it is not."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(str(path))
    connection.send(b"{}")
    connection.recv(_MESSAGE)
    theirs, life = os.pipe()
    with open(os.devnull, "wb") as out:  # noqa: PTH123 - a descriptor is what is needed
        socket.send_fds(connection, [message.encode()], [theirs, out.fileno(), out.fileno()])
    os.close(theirs)
    answer = json.loads(connection.recv(_MESSAGE))
    if answer["type"] != "error":
        return connection, life
    os.close(life)
    connection.close()
    return str(answer["message"])


def _end(start: tuple[socket.socket, int]) -> None:
    connection, life = start
    with connection:
        os.close(life)
        connection.recv(_MESSAGE)


def _serve_start(connection: socket.socket, start: Start) -> None:
    with connection, suppress(OSError):
        connection.recv(_MESSAGE)
        fault: Exception | None = None
        try:
            start.prepare()
        except Exception as error:
            fault = error
        connection.send(b'{"type":"done"}')
        message, streams, _, _ = socket.recv_fds(connection, _MESSAGE, _STREAMS)
        if not message:
            return
        life, out = streams[0], streams[1]
        try:
            if fault:
                raise fault
            lines = start.make(json.loads(message))
            answer = {"type": "started", "stamps": {}}
        except Exception as error:
            lines = []
            answer = {"type": "error", "message": str(error) or repr(error)}
        with suppress(OSError):
            os.write(out, "".join(f"{line}\n" for line in lines).encode())
            connection.send(json.dumps(answer, separators=(",", ":")).encode())
        _await_end(connection, life)
        try:
            start.end()
        finally:
            for stream in streams:
                os.close(stream)
            connection.send(b'{"type":"ended","id":"","ended":{}}')


def _await_end(connection: socket.socket, life: int) -> None:
    """Wait until the start's standard input ends, or its connection."""
    waiting = select.poll()
    waiting.register(connection, select.POLLIN)
    waiting.register(life, select.POLLIN)
    while True:
        for descriptor, _ in waiting.poll():
            if descriptor != life or not os.read(life, _MESSAGE):
                return
