"""What comes from a node is not trusted."""

import io
import tarfile
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from firstlight.lab.experiments import Options
from firstlight.lab.nodes import jobs
from firstlight.lab.nodes.order import VARIABLE, Event, Order


def test_a_node_writes_nothing_outside_of_its_run(tmp_path: Path) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in ("./spans/0.arrow", "../outside", "/etc/outside", "a/../../outside"):
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    archive.seek(0)
    jobs._unpack(archive, tmp_path / "run")
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()] == [
        "run/spans/0.arrow"
    ]


def test_only_a_true_condition_makes_a_node_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    def node(name: str, **conditions: str) -> Any:
        listed = [SimpleNamespace(type=kind, status=is_so) for kind, is_so in conditions.items()]
        return SimpleNamespace(
            metadata=SimpleNamespace(name=name), status=SimpleNamespace(conditions=listed)
        )

    items = [
        node("up", MemoryPressure="False", Ready="True"),
        node("new"),
        node("down", MemoryPressure="True", Ready="False"),
        node("gone", Ready="Unknown"),
    ]
    api = SimpleNamespace(list_node=lambda **_: SimpleNamespace(items=items))
    monkeypatch.setattr(jobs.Nodes, "_api", lambda _: api)
    chosen = jobs.Nodes.__new__(jobs.Nodes).chosen("all")
    assert chosen == {"up": True, "new": False, "down": False, "gone": False}


def test_a_job_has_the_order_and_its_node() -> None:
    order = Order("network-setup", Options((1, 10)), 3, 1, True, False, 60.0, None)
    spec = jobs.job("n", "image:1", order)["spec"]["template"]["spec"]
    assert spec["nodeName"] == "n"
    [variable] = spec["containers"][0]["env"]
    assert variable["name"] == VARIABLE
    assert msgspec.json.decode(variable["value"], type=Order) == order


def test_interrupted_node_without_readable_run_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = jobs.Nodes.__new__(jobs.Nodes)
    nodes._pods = {"a": "pod"}
    monkeypatch.setattr(nodes, "_fetch", lambda _, into: into.mkdir())
    assert nodes._collect({"a": Future()}, tmp_path) == {"a": "interrupted"}


def test_progress_is_told_once_a_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [Event("progress", done) for done in (0.1, 0.26, 0.3, 0.45, 0.8, 0.9, 1.0)]
    lines = [msgspec.json.encode(each) + b"\n" for each in (*events, Event("measured"))]
    answer = SimpleNamespace(stream=lambda _: lines)
    api = SimpleNamespace(read_namespaced_pod_log=lambda *_, **__: answer)
    nodes, said = jobs.Nodes.__new__(jobs.Nodes), list[str]()
    nodes._name = "n"
    monkeypatch.setattr(nodes, "_api", lambda: api)
    nodes._follow("a", "pod", said.append)
    assert said == ["a: 26%", "a: 80%", "a: 100%"]
