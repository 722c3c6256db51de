"""Forwards connections from one network namespace to an address in another.

A socket stays in the namespace in which it was made. So a process that listens outside and connects
inside needs neither a link nor a rule.
"""

import socket
import threading
from contextlib import suppress

_PART = 65536


def serve(listening: int, to: tuple[str, int]) -> None:
    """Accept on a descriptor, with a thread per connection, until the process ends."""
    server = socket.socket(fileno=listening)

    def accept() -> None:
        while True:
            near, _ = server.accept()
            threading.Thread(target=_join, args=(near, to), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def _join(near: socket.socket, to: tuple[str, int]) -> None:
    with near, suppress(OSError), socket.create_connection(to) as far:
        back = threading.Thread(target=_copy, args=(far, near), daemon=True)
        back.start()
        _copy(near, far)
        back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while part := source.recv(_PART):
            target.sendall(part)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
