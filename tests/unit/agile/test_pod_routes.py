"""The ranges of the node's pods, and the routes to other nodes', as the Node objects say."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from firstlight.agile.apiserver import Object, Server
from firstlight.agile.config import Config, PodsConfig
from firstlight.agile.function import Counts
from firstlight.agile.pods.cluster import Cluster, wanted_routes
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


def test_routes_that_the_host_lost_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel removes the routes of a link that goes down, and changes no Node by it."""
    now, made = [100.0], list[float]()

    def follow(_: str) -> Iterator[dict[str, Object]]:
        for seconds in (100.0, 101.0, 200.0):
            now[0] = seconds
            yield {}

    monkeypatch.setattr(Server, "__init__", lambda *_: None)
    monkeypatch.setattr(
        "firstlight.agile.pods.cluster.time", SimpleNamespace(monotonic=lambda: now[0])
    )
    monkeypatch.setattr("firstlight.agile.pods.cluster.set_routes", lambda _: made.append(now[0]))
    cluster = Cluster("any")
    cluster._server = SimpleNamespace(follow=follow)  # type: ignore[assignment]
    cluster._work(lambda: pytest.fail("not of a cluster without nodes"), str, lambda _: None)
    assert made == [100.0, 200.0]


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


def test_the_condition_is_that_of_the_node_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Nodes([FOUR])
    monkeypatch.setattr(Server, "__init__", lambda *_: None)
    monkeypatch.setenv("NODE_NAME", "own")
    cluster = Cluster("any")
    cluster._server = server
    cluster.complete(Config(name="a", pods=PodsConfig(range="", kubeconfig="any")))
    full = Counts(name="p", ready=1, low=1, high=1, hits=0, misses=0, made=1, returned=0,
                  failed=0, fill_rate=0, fill_seconds=0)  # fmt: skip
    empty = msgspec.structs.replace(full, ready=0)

    def told(counts: Counts, error: str = "") -> list[tuple[str, str]]:
        server.patched.clear()
        for _ in range(2):
            cluster._tell(server.node, counts, error)
        return server.patched

    assert told(full) == [("True", "Ready")]
    assert told(full, "once") == []
    assert told(empty, "no room") == [("False", "CannotMake")]
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
    pods = PodsConfig(range="", range6=configured, kubeconfig="any")
    made = Cluster("any").complete(Config(name="a", pods=pods)).pods
    return made.range, made.range6


@pytest.mark.parametrize(
    ("of_node", "configured", "expected"),
    [
        ([FOUR], "", (FOUR, "")),
        ([SIX, FOUR], "", (FOUR, SIX)),
        ([FOUR], "fd00:77::/64", (FOUR, "fd00:77::/64")),
        ([FOUR, SIX], "fd00:77::/64", (FOUR, "fd00:77::/64")),
    ],
)
def test_the_node_gives_the_ranges_that_the_configuration_lacks(
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
