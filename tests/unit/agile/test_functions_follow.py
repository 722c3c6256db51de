"""What the follower of a cluster's Functions does to a runtime, of which this has a fake."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from firstlight.agile import protocol
from firstlight.agile.apiserver import TABLE, Refused
from firstlight.agile.functions import follow, objects
from firstlight.errors import Failed


def function(name: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "uid": "u", "generation": 1},
        "spec": {"code": {"files": {"app.py": ""}}, "handler": "app:main"},
    }


class Fake:
    """The API server and the runtime at once."""

    def __init__(self) -> None:
        self.registered: list[Any] = []
        self.removed: list[str] = []
        self.away: set[str] = set()

    def ask(self, _method: str, path: str, _body: object = None) -> dict[str, Any]:
        if self.away & set(path.split("/")):
            raise OSError("it is away")
        return function(path.removesuffix("/status").rpartition("/")[2])

    def __enter__(self) -> "Fake":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def functions(self, request: protocol.ListFunctions | protocol.Change) -> list[Any]:
        match request:
            case protocol.RemoveFunction(name):
                self.removed.append(name)
            case protocol.ApplyFunction(name, owner=owner, tags=tags):
                self.registered.append(SimpleNamespace(name=name, owner=owner, tags=tags))
        return self.registered


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    monkeypatch.setattr(follow, "Client", lambda _path: made)
    return made


def compare(follower: follow.Follower, *names: str) -> None:
    """Compare once, and wait until all is done."""
    follower._compare({name: objects.state(function(name)) for name in names})
    follower._workers.shutdown()


def test_only_what_was_made_of_an_object_is_removed(fake: Fake) -> None:
    tags = objects.request(function("f")).tags
    fake.registered = [
        SimpleNamespace(name=name, owner=owner, tags=tags)
        for name, owner, tags in (
            ("made", objects.OWNER, tags),
            ("changed", objects.OWNER, tags | {"firstlight.dev/generation": "x"}),
            ("added", objects.OWNER, {"team": "a"}),
            ("others", "somebody", tags),
        )
    ]
    compare(follow.Follower(fake, "functions", Path("socket")))  # type: ignore[arg-type]
    assert sorted(fake.removed) == ["changed", "made"]


@pytest.mark.parametrize(("away", "served"), [("f", 1), ("status", 2)])
def test_failed_query_waits_for_next_turn(fake: Fake, away: str, served: int) -> None:
    fake.away = {away}
    follower = follow.Follower(fake, "functions", Path("socket"))  # type: ignore[arg-type]
    compare(follower, "f", "g")
    assert follower.settled.is_set()
    assert follower.counts() == {"wanted": 2, "served": served, "refused": 2 - served}
    assert follower._failures["f"].wait == 10
    compare(follower, "f", "g")  # not before its time: there are no workers any more
    follower._keep("f")
    assert follower._failures["f"].wait == 20
    fake.away = set()
    follower._keep("f")
    assert follower.counts() == {"wanted": 2, "served": 2, "refused": 0}
    assert "f" not in follower._failures


def test_a_function_that_the_runtime_refuses_is_counted(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(request: object) -> list[Any]:
        if isinstance(request, protocol.ApplyFunction):
            raise Failed("it cannot be imported")
        return []

    monkeypatch.setattr(fake, "functions", refuse)
    follower = follow.Follower(fake, "functions", Path("socket"))  # type: ignore[arg-type]
    compare(follower, "f")
    assert follower.counts() == {"wanted": 1, "served": 0, "refused": 1}


def test_status_drops_nodes_that_left() -> None:
    failed = function("f")
    for node in ("gone", "here"):
        failed["status"] = objects.status(failed, node, "it cannot be imported")
    written: dict[str, Any] = {}

    class Server:
        def ask(self, method: str, path: str, body: Any = None, accept: str = "") -> dict[str, Any]:
            if method == "PUT" and "changed" in path:
                raise Refused(409, "it has been changed")
            if method == "PUT":
                written[path] = body["status"]
            if accept == TABLE:
                columns = [{"name": "Name"}, {"name": "Ready"}]
                rows = [
                    {"cells": [name, ready], "object": {"metadata": {"name": name}}}
                    for name, ready in (
                        ("changed", "False"),
                        ("f", "False"),
                        ("g", "True"),
                        ("new", None),
                    )
                ]
                return {"columnDefinitions": columns, "rows": rows}
            if path.endswith("/gone"):
                raise Refused(404, "not found")
            return failed

    follower = follow.Follower(Server(), "functions", Path("socket"))  # type: ignore[arg-type]
    follower._forget_nodes()
    [(path, status)] = written.items()
    assert path.endswith("/functions/f/status")
    assert [each["name"] for each in status["nodes"]] == ["here"]


def test_first_check_of_gone_nodes_has_random_delay(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, looks = [0.0], []

    class Server:
        def follow(self, _path: str, _accept: str) -> Iterator[dict[str, Any]]:
            for now[0] in (0.0, 119.0, 120.0, 719.0, 720.0):
                yield {}

    monkeypatch.setattr(follow, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(follow, "random", SimpleNamespace(uniform=lambda _, most: most))
    follower = follow.Follower(Server(), "functions", Path("socket"))  # type: ignore[arg-type]
    monkeypatch.setattr(follower._workers, "submit", lambda _: looks.append(now[0]))
    follower.run()
    assert looks == [120.0, 720.0]
