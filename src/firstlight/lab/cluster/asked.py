"""A resident program that the load generator asks for starts, as ``backends.Ask`` has it.

Each connection is one start and has a thread: it is greeted, which makes ready what the start
needs, and then asked, with the start's standard streams. What the start says is lines on its
standard output; when its standard input or the connection ends, so does the start.
"""

import json
import os
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

_MESSAGE = 65536
_STREAMS = 3


class Start(Protocol):
    """One start, by the thread of its connection."""

    def prepare(self) -> None:
        """What is done before the clock starts."""

    def make(self, request: dict[str, Any]) -> list[str]:
        """Make the instance, and return the lines to say. Any exception is the start's error."""

    def end(self) -> None:
        """Remove whatever was made, also after a failed ``make``."""


def serve(path: Path, start: Callable[[], Start]) -> None:
    """Answer on a seqpacket socket, in threads of their own, until this process ends."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind(str(path))
    server.listen(512)

    def accept() -> None:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=_one, args=(connection, start()), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def _one(connection: socket.socket, start: Start) -> None:
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
    """Until the start's standard input ends, or nobody listens any more."""
    waiting = select.poll()
    waiting.register(connection, select.POLLIN)
    waiting.register(life, select.POLLIN)
    while True:
        for descriptor, _ in waiting.poll():
            if descriptor != life or not os.read(life, _MESSAGE):
                return
