"""The ranges of the node's pods, and the routes to other nodes', as the Node objects say."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from firstlight.agile.apiserver import Object, Refused, Server
from firstlight.agile.config import Config, PodsConfig
from firstlight.agile.function import Counts
from firstlight.agile.pods.agent import Agent
from firstlight.agile.pods.cluster import RANGES, Cluster, Trouble, wanted_routes
from firstlight.agile.pods.networks import _forward
from firstlight.errors import Failed


def node(name: str, ranges: list[str], *addresses: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": {"podCIDR": ranges[0], "podCIDRs": ranges} if ranges else {},
        "status": {"addresses": [
            {"type": "Hostname", "address": name},
            *({"type": "InternalIP", "address": each} for each in addresses),
        ]},
    }  # fmt: skip


def test_each_family_goes_by_the_nodes_address_of_that_family() -> None:
    nodes = [
        node("own", ["10.244.0.0/24", "fd00:244::/64"], "192.0.2.1", "2001:db8::1"),
        node("both", ["10.244.1.0/24", "fd00:244:1::/64"], "2001:db8::2", "192.0.2.2"),
        node("four", ["10.244.2.0/24", "fd00:244:2::/64"], "192.0.2.3"),
        node("new", [], "192.0.2.4"),
        {"metadata": {"name": "bare"}},
    ]
    assert wanted_routes([each for each in nodes if "status" in each], "own") == {
        "10.244.1.0/24": "192.0.2.2",
        "fd00:244:1::/64": "2001:db8::2",
        "10.244.2.0/24": "192.0.2.3",
    }
    assert wanted_routes([nodes[-1]], "own") == {}


def test_a_node_that_does_not_forward_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent's container has /proc/sys read-only."""
    monkeypatch.setattr(Path, "read_text", lambda _: "1\n")
    _forward(Path("/proc/sys/net/ipv4/ip_forward"))
    monkeypatch.setattr(Path, "read_text", lambda _: "0\n")
    with pytest.raises(Failed, match=r"No such file") as raised:
        _forward(Path("/proc/sys/net/nowhere/ip_forward"))
    assert "net.nowhere.ip_forward to 1 on the node" in str(raised.value.hint)


def test_forwarding_turned_off_is_set_again_or_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    setting = tmp_path / "ip_forward"
    setting.write_text("0\n")
    monkeypatch.setattr("firstlight.agile.pods.networks._FORWARD", (str(setting),))
    pods = PodsConfig(range=FOUR)
    agent = Agent(Config(name="a", state=str(tmp_path), pods=pods))
    agent._forward()
    assert setting.read_text() == "1"
    assert agent.trouble() is None
    monkeypatch.setattr(Path, "write_text", raising(OSError(errno.EROFS, "read-only")))
    for value, trouble in (("0", True), ("0", True), ("1", False)):
        setting.write_bytes(value.encode())
        agent._forward()
        assert (agent.trouble() or ("", ""))[0] == ("NotForwarding" if trouble else "")
    assert [each.split(";")[0].split(",")[0] for each in caplog.messages] == [
        "another program had ended the host's forwarding",
        "this node does not forward pods' packets",
    ]


def test_routes_that_the_host_lost_are_made_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel removes the routes of a link that goes down, and changes no Node by it."""
    now, made = [100.0], list[float]()

    def set_routes(_: object) -> list[str]:
        made.append(now[0])
        return ["cannot route"]

    def follow(_: str) -> Iterator[dict[str, Object]]:
        for seconds in (100.0, 101.0, 200.0):
            now[0] = seconds
            yield {}

    monkeypatch.setattr(Server, "__init__", lambda *_: None)
    monkeypatch.setattr(
        "firstlight.agile.pods.cluster.time", SimpleNamespace(monotonic=lambda: now[0])
    )
    monkeypatch.setattr("firstlight.agile.pods.cluster.set_routes", set_routes)
    cluster = Cluster("any")
    cluster._server = SimpleNamespace(follow=follow)  # type: ignore[assignment]
    cluster._work(
        lambda: pytest.fail("not of a cluster without nodes"), lambda: None, lambda _: None
    )
    assert made == [100.0, 200.0]
    assert caplog.messages == ["cannot route"]  # said once


FOUR, SIX = "10.244.1.0/24", "fd00:244:1::/64"


class Nodes(Server):
    """A server that has the Node "own"; ``patched`` are the conditions sent to it."""

    def __init__(self, ranges: list[str]) -> None:
        self.node, self.patched = node("own", ranges), list[tuple[str, str]]()

    def ask(self, method: str, *words: Any) -> Object:
        if method == "PATCH":
            [condition] = words[1]["status"]["conditions"]
            self.patched.append((condition["status"], condition["reason"]))
            self.node["status"]["conditions"] = [condition]
        return self.node


def test_the_condition_is_that_of_the_node_as_it_is_now(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = Nodes([FOUR])
    monkeypatch.setattr(Server, "__init__", lambda *_: None)
    monkeypatch.setenv("NODE_NAME", "own")
    cluster = Cluster("any")
    cluster._server = server
    pods = PodsConfig(range="", kubeconfig="any")
    cluster.complete(Config(name="a", state=str(tmp_path), pods=pods))
    full = Counts(name="p", ready=1, low=1, high=1, hits=0, misses=0, made=1, returned=0,
                  failed=0, fill_rate=0, fill_seconds=0)  # fmt: skip

    def told(counts: Counts, trouble: Trouble = None) -> list[tuple[str, str]]:
        server.patched.clear()
        for _ in range(2):
            cluster._tell(server.node, counts, trouble)
        return server.patched

    assert told(full) == [("True", "Ready")]
    assert told(full, ("CannotMake", "no room")) == [("False", "CannotMake")]
    assert told(full) == [("True", "Ready")]
    server.node = node("own", [FOUR])  # deleted, and made again
    assert told(full) == [("True", "Ready")]
    server.node = node("own", ["10.244.9.0/24"])
    assert told(full) == [("False", "RangeChanged")]
    assert "10.244.9.0/24" in server.node["status"]["conditions"][0]["message"]


def of(monkeypatch: pytest.MonkeyPatch, of_node: list[str], configured: str) -> tuple[str, str]:
    """The ranges that an agent has whose configuration names at most one for IPv6."""

    def ask(*_: object) -> Object:
        return node("own", of_node)

    monkeypatch.setattr(Server, "__init__", lambda *_: None)
    monkeypatch.setattr(Server, "ask", ask)
    monkeypatch.setenv("NODE_NAME", "own")
    monkeypatch.setattr("firstlight.agile.pods.cluster._remember", lambda *_: None)
    pods = PodsConfig(range="", range6=configured, kubeconfig="any")
    made = Cluster("any").complete(Config(name="a", pods=pods)).pods
    return made.range, made.range6


def test_without_the_api_server_the_ranges_are_the_last_agents(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("firstlight.agile.pods.cluster._RANGE_SECONDS", 0.0)
    monkeypatch.setattr("firstlight.agile.pods.cluster._RETRY_SECONDS", 0.0)
    monkeypatch.setattr(Server, "__init__", lambda *_: None)
    monkeypatch.setenv("NODE_NAME", "own")
    config = Config(name="a", state=str(tmp_path), pods=PodsConfig(range="", kubeconfig="any"))

    def complete(answer: Callable[..., Object]) -> list[str]:
        monkeypatch.setattr(Server, "ask", answer)
        pods = Cluster("any").complete(config).pods
        return [pods.range, pods.range6]

    away = raising(OSError("no route to host"))
    with pytest.raises(Failed, match="no route to host"):
        complete(away)
    assert complete(lambda *_: node("own", [FOUR, SIX])) == [FOUR, SIX]
    assert complete(away) == [FOUR, SIX]
    with pytest.raises(Failed, match="no such node"):
        complete(raising(Refused(404, "no such node")))
    (tmp_path / "a" / RANGES).write_text("cut o")
    with pytest.raises(Failed, match="no route to host"):
        complete(away)


def raising(error: Exception) -> Callable[..., Object]:
    def fail(*_: object) -> Object:
        raise error

    return fail


@pytest.mark.parametrize(
    ("of_node", "configured", "expected"),
    [
        ([FOUR], "", (FOUR, "")),
        ([SIX, FOUR], "", (FOUR, SIX)),
        ([FOUR], "fd00:77::/64", (FOUR, "fd00:77::/64")),
        ([FOUR, SIX], "fd00:77::/64", (FOUR, "fd00:77::/64")),
    ],
)
def test_missing_ranges_are_taken_from_the_node(
    monkeypatch: pytest.MonkeyPatch, of_node: list[str], configured: str, expected: tuple[str, str]
) -> None:
    assert of(monkeypatch, of_node, configured) == expected


@pytest.mark.parametrize(
    ("of_node", "named"),
    [
        (["10.244.1.0/27"], "pods.pool.high=64"),
        ([FOUR, "fd00:244:1::/122"], "pods.range6 fd00:244:1::/122"),
    ],
)
def test_a_nodes_range_that_does_not_fit_is_named(
    monkeypatch: pytest.MonkeyPatch, of_node: list[str], named: str
) -> None:
    with pytest.raises(Failed, match=f"the node own do not fit: {named}"):
        of(monkeypatch, of_node, "")
