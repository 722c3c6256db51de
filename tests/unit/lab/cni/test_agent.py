"""The agent of the cilium profile: its limits, and what it does for an endpoint."""

import http.client
import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from firstlight.lab.cni import agent
from firstlight.lab.cni.agent import GATEWAY, Agent, Handler, Limiter, Server


class Clock:
    """Time that passes only where something sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("firstlight.lab.cni.agent.time", self)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 1e-6)


def begun(limiter: Limiter, clock: Clock, count: int) -> list[float]:
    times = []
    for _ in range(count):
        with limiter:
            times.append(round(clock.now, 3))
    return times


def test_after_the_burst_endpoints_begin_at_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert begun(Limiter(), clock, 7) == [0, 0, 0, 0, 2, 4, 6]


def test_quick_endpoints_raise_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    limiter = Limiter()
    for _ in range(50):
        limiter.took(0.2)
    times = begun(limiter, clock, 10)
    assert times[-1] == pytest.approx(1.2, rel=0.01)


def test_an_endpoint_is_compiled_loaded_and_routed_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: list[tuple[str, ...]] = []
    monkeypatch.setattr(agent, "_run", lambda *argv: run.append(argv))
    builder = Agent(Path("/src/endpoint.c"), Path("/bin/load"), tmp_path, template=False)
    address = builder.allocate()
    request = {"interface-name": "lxc1", "container-id": "c1", "addressing": {"ipv4": str(address)}}
    number = builder.create(request)
    assert [argv[0] for argv in run] == ["ip", "clang", "/bin/load"]
    assert run[0][3:] == (f"{address}/32", "dev", "lxc1")
    assert f"ENDPOINT_ID {number}\n" in (tmp_path / str(number) / "endpoint.h").read_text()
    assert builder.remove("c1")
    assert not builder.remove("c1")
    assert builder.allocate() == address


def test_a_template_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs: list[str] = []

    def run(*argv: str) -> None:
        programs.append(argv[0])
        if argv[0] == "clang":
            Path(argv[-1]).write_text("object")

    monkeypatch.setattr(agent, "_run", run)
    builder = Agent(Path("/src/endpoint.c"), Path("/bin/load"), tmp_path, template=True)
    for name in ("lxc1", "lxc2"):
        addressing = {"ipv4": str(builder.allocate())}
        builder.create({"interface-name": name, "container-id": name, "addressing": addressing})
    assert programs.count("clang") == 1
    assert programs.count("/bin/load") == 2


def ask(path: Path, verb: str, url: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    connection.request(verb, url, json.dumps(body) if body is not None else None)
    answer = connection.getresponse()
    text = answer.read()
    return answer.status, json.loads(text) if text else None


def test_the_plugins_questions_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "_run", lambda *_: None)
    builder = Agent(Path("/src/endpoint.c"), Path("/bin/load"), tmp_path / "s", template=False)
    monkeypatch.setattr(Handler, "agent", builder, raising=False)
    path = tmp_path / "sock"
    with Server(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        status, config = ask(path, "GET", "/v1/config")
        assert (status, config["status"]["addressing"]["ipv4"]["ip"]) == (200, str(GATEWAY))
        status, ipam = ask(path, "POST", "/v1/ipam?family=ipv4")
        assert (status, ipam["address"]["ipv4"]) == (201, str(GATEWAY + 1))
        body = {"interface-name": "lxc1", "container-id": "c1", "addressing": ipam["address"]}
        assert ask(path, "PUT", "/v1/endpoint/container-id:c1", body) == (201, {"id": 1})
        assert ask(path, "DELETE", "/v1/endpoint", {"container-id": "c1"})[0] == 200
        assert ask(path, "DELETE", "/v1/endpoint", {"container-id": "c1"})[0] == 404
        server.shutdown()
        thread.join()
