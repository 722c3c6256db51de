"""The routes to other nodes' pods, as the Node objects say."""

from typing import Any

from firstlight.agile.pods.cluster import wanted_routes


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
