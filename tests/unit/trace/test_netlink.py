"""Netlink requests in words, against messages that pyroute2 encodes."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from firstlight.trace.netlink import GENERIC, NETFILTER, ROUTE, attributes, describe

NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
REQUEST, ACK, CREATE, EXCLUSIVE = 0x1, 0x4, 0x400, 0x200
UP, AF_BRIDGE = 1, 7


def encoded(message: Any, kind: int, asked: int, attributes_: list[Any], **fields: int) -> bytes:
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attributes_
    message["header"]["type"] = kind
    message["header"]["flags"] = REQUEST | ACK | asked
    message.encode()
    return bytes(message.data)


def link(kind: int, asked: int, attributes_: list[Any], **fields: int) -> bytes:
    return encoded(ifinfmsg(), kind, asked, attributes_, **fields)


def veth(*peer: tuple[str, object]) -> tuple[str, object]:
    data = {"attrs": [("VETH_INFO_PEER", {"attrs": list(peer)})]}
    return "IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", data)]}


def kind_of(name: str) -> tuple[str, object]:
    return "IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", name)]}


NAME = ("IFLA_IFNAME", "eth0")


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (link(NEWLINK, CREATE | EXCLUSIVE, [NAME, veth(("IFLA_IFNAME", "p"))]),
         "RTM_NEWLINK create name kind=veth"),
        (link(NEWLINK, CREATE, [NAME, veth(("IFLA_IFNAME", "p"), ("IFLA_NET_NS_FD", 7))]),
         "RTM_NEWLINK create name kind=veth peer-netns"),
        (link(NEWLINK, CREATE, [NAME, veth(("IFLA_NET_NS_PID", 7))]),
         "RTM_NEWLINK create name kind=veth peer-netns"),
        (link(NEWLINK, CREATE, [NAME, kind_of("bridge")]), "RTM_NEWLINK create name kind=bridge"),
        (link(NEWLINK, 0, [("IFLA_NET_NS_FD", 5)], index=4), "RTM_NEWLINK netns"),
        (link(SETLINK, 0, [("IFLA_NET_NS_PID", 500)], index=4), "RTM_SETLINK netns"),
        (link(SETLINK, 0, [NAME], index=4), "RTM_SETLINK name"),
        (link(SETLINK, 0, [("IFLA_MASTER", 9)], index=4), "RTM_SETLINK master"),
        (link(SETLINK, 0, [("IFLA_MTU", 1400)], index=4), "RTM_SETLINK mtu"),
        (link(SETLINK, 0, [("IFLA_ADDRESS", "02:00:00:00:00:01")], index=4), "RTM_SETLINK mac"),
        (link(NEWLINK, 0, [], index=4, flags=UP, change=UP), "RTM_NEWLINK up"),
        (link(NEWLINK, 0, [], index=4, flags=0, change=UP), "RTM_NEWLINK"),
        (link(SETLINK, 0, [], index=4, family=AF_BRIDGE), "RTM_SETLINK bridge"),
        (link(GETLINK, 0, [NAME]), "RTM_GETLINK name"),
        (link(DELLINK, 0, [], index=4), "RTM_DELLINK"),
        (encoded(ifaddrmsg(), 20, CREATE, [("IFA_LOCAL", "10.0.0.1")], family=2), "RTM_NEWADDR"),
        (encoded(ifaddrmsg(), 21, 0, [], family=2), "RTM_DELADDR"),
        (encoded(rtmsg(), 24, CREATE, [("RTA_GATEWAY", "10.0.0.1")], family=2), "RTM_NEWROUTE"),
        (encoded(ndmsg(), 28, CREATE, [("NDA_DST", "10.0.0.1")], family=2), "RTM_NEWNEIGH"),
        (encoded(rtmsg(), 32, CREATE, [], family=2), "RTM_NEWRULE"),
        (encoded(ifinfmsg(), 88, 0, []), "RTM_NEWNSID"),
        (encoded(ifinfmsg(), 250, 0, []), "RTM_250"),
    ],
)  # fmt: skip
def test_a_request_is_read_as_it_was_encoded(message: bytes, words: str) -> None:
    assert describe(ROUTE, message) == words


PARTS = {
    "name": NAME, "mtu": ("IFLA_MTU", 1500), "mac": ("IFLA_ADDRESS", "02:00:00:00:00:09"),
    "master": ("IFLA_MASTER", 3), "netns": ("IFLA_NET_NS_FD", 11), "kind=veth": kind_of("veth"),
    None: ("IFLA_TXQLEN", 1000),
}  # fmt: skip


@given(st.lists(st.sampled_from(list(PARTS)), unique=True), st.booleans(), st.booleans())
def test_any_attributes_in_any_order_are_read(
    parts: list[str | None], create: bool, up: bool
) -> None:
    message = link(NEWLINK, CREATE * create, [PARTS[part] for part in parts], flags=UP * up)
    expected = ["RTM_NEWLINK", *["create"] * create, *filter(None, parts), *["up"] * up]
    assert describe(ROUTE, message).split() == expected


@given(st.integers(0, 200), st.lists(st.sampled_from(list(PARTS)), unique=True))
def test_a_message_that_was_cut_reads_as_far_as_it_goes(
    length: int, parts: list[str | None]
) -> None:
    message = link(NEWLINK, CREATE, [PARTS[part] for part in parts])
    words = describe(ROUTE, message[:length]).split()
    whole = describe(ROUTE, message).split()
    assert [word.split("=")[0] for word in words] == [
        word.split("=")[0] for word in whole[: len(words)]
    ]


HEADERS = st.lists(
    st.binary(max_size=9) | st.integers(0, 40).map(lambda n: struct.pack("=HH", n, n))
)


@given(st.integers(0, 255), st.binary(max_size=600) | HEADERS.map(b"".join).map(bytes(32).__add__))
def test_garbage_is_described_or_not_but_never_an_error(protocol: int, message: bytes) -> None:
    assert isinstance(describe(protocol, message), str)


@given(HEADERS.map(b"".join))
def test_attributes_end(data: bytes) -> None:
    result = list(attributes(data))
    assert len(result) <= len(data) // 4
    assert sum(len(value) for _, value in result) <= len(data)


def test_other_families_say_their_message() -> None:
    header = (0).to_bytes(4, "little") + (0x0A03).to_bytes(2, "little") + bytes(10)
    assert describe(NETFILTER, header) == "NFNL subsystem=10 message=3"
    assert describe(GENERIC, header) == f"message={0x0A03}"
    assert describe(ROUTE, b"") == ""
