"""A resident program waits for its starts to end."""

import os
import socket
import threading
from pathlib import Path
from typing import Any

from firstlight.lab.cluster import start_server


class Slow:
    """A start whose end waits, longer than the load generator does."""

    def __init__(self) -> None:
        self.may_end, self.has_ended = threading.Event(), False

    def prepare(self) -> None:
        pass

    def make(self, _: dict[str, Any]) -> list[str]:
        return []

    def end(self) -> None:
        self.has_ended = self.may_end.wait(60)


def test_an_end_that_is_under_way_is_waited_for(tmp_path: Path) -> None:
    start = Slow()
    start_server.serve(tmp_path / "socket", lambda: start)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(str(tmp_path / "socket"))
        connection.send(b"{}")
        connection.recv(100)
        with open(os.devnull, "r+b") as null:  # noqa: PTH123 - a descriptor is what is needed
            socket.send_fds(connection, [b"{}"], [null.fileno()] * 3)
        connection.recv(100)
    start_server.await_ends(0.0)
    assert not start.has_ended
    start.may_end.set()
    start_server.await_ends(60.0)
    assert start.has_ended
