"""A resident program waits for its starts to end."""

import json
import os
import socket
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from firstlight.errors import Failed
from firstlight.lab.backends.kubernetes import Kubernetes, Lab, Own
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


@pytest.mark.parametrize(
    ("error", "words"), [(Failed("no node"), "no node"), (ValueError(), "ValueError()")]
)
def test_failed_start_answers_in_words(error: Exception, words: str, tmp_path: Path) -> None:
    class Fails(Slow):
        def prepare(self) -> None:
            self.may_end.set()
            raise error

    start_server.serve(tmp_path / "socket", Fails)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(60)
        connection.connect(str(tmp_path / "socket"))
        connection.send(b"{}")
        connection.recv(100)
        with open(os.devnull, "r+b") as null:  # noqa: PTH123 - a descriptor is what is needed
            socket.send_fds(connection, [b"{}"], [null.fileno()] * 3)
        assert json.loads(connection.recv(1000)) == {"type": "error", "message": words}
    start_server.await_ends(60.0)


class Counted:
    """A start that says when it is made and ended."""

    def __init__(self, up: list[str]) -> None:
        self.up, self.name = up, ""

    def prepare(self) -> None:
        pass

    def make(self, request: dict[str, Any]) -> list[str]:
        self.name = request["name"]
        self.up.append(self.name)
        return []

    def end(self) -> None:
        self.up.remove(self.name)


def test_pods_in_the_background_stay_for_the_next_batch(tmp_path: Path) -> None:
    up: list[str] = []
    start_server.serve(tmp_path / "socket", lambda: Counted(up))
    some, more = (Kubernetes(Own(("runc",), ("bridge",)), "runc", "bridge", background=count)
                  for count in (2, 3))  # fmt: skip
    with ExitStack() as background:
        lab = Lab(tmp_path / "socket", "default", background)
        lab.have_background(some)
        first = set(up)
        lab.have_background(some)
        assert set(up) == first
        lab.have_background(more)
        assert len(up) == 3
        assert not first & set(up)
    assert up == []
