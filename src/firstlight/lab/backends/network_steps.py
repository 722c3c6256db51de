"""The steps of a network set-up request, as actions of ``netsetup`` (``native/lab/netsetup.c``)."""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, nlmsg
from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE
from pyroute2.netlink.rtnl.ifaddrmsg import IFA_F_NODAD, ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import IFF_UP, ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

GATEWAY = IPv4Address("10.88.0.1")
NAMED = Path("/run/netns")
_GATEWAY6 = IPv6Address("fd88::1")
_IPV6_OFF = Path("/proc/sys/net/ipv6/conf")
_NAMESPACE = 100  # the descriptor of the new namespace: NAMESPACE in netsetup.c
_LOOPBACK = 1
_FIRST_LINK = 1000  # indices of links are ours to choose, far from those the kernel chooses
_NEW = NLM_F_CREATE | NLM_F_EXCL
_ONLINK = 4  # RTNH_F_ONLINK: the gateway is in no prefix of the link
_MAIN, _BOOT, _UNICAST, _UNIVERSE, _LINK = 254, 3, 1, 0, 253  # linux/rtnetlink.h

Actions = tuple[str, ...]


@dataclass(frozen=True)
class Trick:
    """A way to set up a network: what the request does, and the state of the host.

    Of the request, ``ip`` knows ``is_in_place`` and ``has_mount_namespace`` alone.
    """

    sentence: str
    is_in_place: bool = False
    has_ipv6: bool = True
    has_address6: bool = False
    is_probed: bool = True
    is_named: bool = True
    has_mount_namespace: bool = False
    is_crowded: bool = False
    is_pruned: bool = False


@dataclass(frozen=True)
class Container:
    """One container's names and addresses, by its number in the batch."""

    number: int

    @property
    def name(self) -> str:
        """The name of its network namespace."""
        return f"fl{self.number}"

    @property
    def links(self) -> tuple[str, str]:
        """The names of the veth's ends, on the host and in the container."""
        return f"{self.name}-h", f"{self.name}-c"

    @property
    def indices(self) -> tuple[int, int]:
        """The indices of the veth's ends, as of ``links``."""
        return _FIRST_LINK + 2 * self.number, _FIRST_LINK + 2 * self.number + 1

    @property
    def address(self) -> IPv4Address:
        """The container's IPv4 address."""
        return GATEWAY + 1 + self.number

    @property
    def address6(self) -> IPv6Address:
        """The container's IPv6 address, for tricks with IPv6."""
        return _GATEWAY6 + 1 + self.number


def actions(method: str, trick: Trick, container: Container) -> Actions:
    """The arguments of ``netsetup`` for one request, by ``ip`` or ``netlink``."""
    steps = {"ip": _by_ip, "netlink": _by_netlink}[method](trick, container)
    words: list[str] = []
    for step, action in steps:
        words += ["step", step, *action]
    return (*words, "step", "mount.ns", "mounts") if trick.has_mount_namespace else tuple(words)


def _by_ip(trick: Trick, container: Container) -> Iterator[tuple[str, Actions]]:
    assert trick.has_ipv6
    assert trick.is_named
    assert not trick.has_address6
    name, (host, own) = container.name, container.links
    inside = ("-n", name)
    pair = ("link", "add", host, "type", "veth", "peer", "name", own)
    there = ("netns", name) if trick.is_in_place else ()
    yield "netns", (*_ip("netns", "add", name), "undo", *_ip("netns", "delete", name))
    yield "veth", (*_ip(*pair, *there), "undo", *_ip("link", "delete", host))
    if not trick.is_in_place:
        yield "move", _ip("link", "set", own, "netns", name)
    yield "host.up", _ip("link", "set", host, "up")
    yield "container.up", (
        *_ip(*inside, "link", "set", "lo", "up"), *_ip(*inside, "link", "set", own, "up")
    )  # fmt: skip
    yield "address", _ip(*inside, "address", "add", str(container.address), "dev", own)
    yield (
        "route",
        (
            *_ip("route", "add", str(container.address), "dev", host),
            *_ip(*inside, "route", "add", "default", "via", str(GATEWAY), "dev", own, "onlink"),
        ),
    )


def _ip(*words: str) -> Actions:
    return ("run", "ip", *words, ";")


def _by_netlink(trick: Trick, container: Container) -> Iterator[tuple[str, Actions]]:
    host, own = container.links
    index, own_index = container.indices
    yield "netns", _namespace(trick, container)
    yield "veth", (
        "host", f"create {host} with its peer {own}", _veth(container, trick.is_in_place),
        "undo", "host", f"delete {host}", _link(RTM_DELLINK, host),
    )  # fmt: skip
    if not trick.is_in_place:
        yield "move", (
            "host", f"move {own} into {container.name}",
            _link(RTM_NEWLINK, own, ("IFLA_NET_NS_FD", _NAMESPACE)),
        )  # fmt: skip
    yield "host.up", ("host", f"bring {host} up", _up(host))
    yield "container.up", (
        "container", f"bring lo up in {container.name}", _up("lo"),
        "container", f"bring {own} up", _up(own),
    )  # fmt: skip
    yield "address", (
        "container", f"add {container.address} to {own}", _address(own_index, container.address, 0)
    )  # fmt: skip
    if trick.has_address6:
        flags = 0 if trick.is_probed else IFA_F_NODAD
        yield "address6", (
            "container", f"add {container.address6} to {own}",
            _address(own_index, container.address6, flags),
            "await", container.address6.packed.hex(),
        )  # fmt: skip
    yield "route", (
        "host", f"route {container.address} to {host}",
        _route(index, _LINK, [("RTA_DST", str(container.address))], dst_len=32),
        "container", f"route {own} by {GATEWAY}",
        _route(own_index, _UNIVERSE, [("RTA_GATEWAY", str(GATEWAY))], flags=_ONLINK),
    )  # fmt: skip


def _namespace(trick: Trick, container: Container) -> Actions:
    words: list[str] = ["namespace"]
    if trick.has_address6:
        words += ["listen"]
    if trick.is_named:
        path = str(NAMED / container.name)
        words += ["name", path, "undo", "unname", path]
    if not trick.has_ipv6 and _IPV6_OFF.exists():
        for links in ("all", "default"):
            words += ["write", str(_IPV6_OFF / links / "disable_ipv6"), "1"]
    return (*words, "leave")


def _veth(container: Container, is_in_place: bool) -> str:
    (host, own), (index, own_index) = container.links, container.indices
    there = [("IFLA_NET_NS_FD", _NAMESPACE)] if is_in_place else []
    peer = {"index": own_index, "attrs": [("IFLA_IFNAME", own), *there]}
    data = {"attrs": [("VETH_INFO_PEER", peer)]}
    kind = {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", data)]}
    return _encoded(ifinfmsg(), RTM_NEWLINK, _NEW,
                    [("IFLA_IFNAME", host), ("IFLA_LINKINFO", kind)], index=index)  # fmt: skip


def _link(kind: int, name: str, *attributes: tuple[str, object], up: int = 0) -> str:
    named = [("IFLA_IFNAME", name), *attributes]
    return _encoded(ifinfmsg(), kind, 0, named, flags=up, change=up)


def _up(name: str) -> str:
    return _link(RTM_NEWLINK, name, up=IFF_UP)


def _address(index: int, address: IPv4Address | IPv6Address, flags: int) -> str:
    family = AF_INET if address.version == 4 else AF_INET6
    both = [("IFA_LOCAL", str(address)), ("IFA_ADDRESS", str(address)), ("IFA_FLAGS", flags)]
    return _encoded(ifaddrmsg(), RTM_NEWADDR, _NEW, both if flags else both[:2],
                    family=family, prefixlen=address.max_prefixlen, index=index)  # fmt: skip


def _route(index: int, scope: int, attributes: list[tuple[str, object]], **fields: int) -> str:
    return _encoded(rtmsg(), RTM_NEWROUTE, _NEW, [("RTA_OIF", index), *attributes],
                    family=AF_INET, table=_MAIN, proto=_BOOT, scope=scope, type=_UNICAST,
                    **fields)  # fmt: skip


def _encoded(message: nlmsg, kind: int, asked: int, attributes: list[Any], **fields: int) -> str:
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attributes
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | asked
    message.encode()
    return bytes(message.data).hex()
