"""Names the netlink requests of traced programs, from the first bytes of their messages.

Numbers are from ``linux/rtnetlink.h``, ``linux/if_link.h`` and ``linux/netfilter/nfnetlink.h``.
"""

import struct
from collections.abc import Iterator

ROUTE, NETFILTER, GENERIC = 0, 12, 16
PROTOCOLS = {ROUTE: "route", 4: "sock_diag", 9: "audit", NETFILTER: "netfilter", GENERIC: "generic"}

_CREATE = 0x400
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_OBJECTS = ("LINK", "ADDR", "ROUTE", "NEIGH", "RULE", "QDISC", "TCLASS", "TFILTER", "ACTION")
_VERBS = ("NEW", "DEL", "GET", "SET")
_MORE = {72: "RTM_NEWNETCONF", 74: "RTM_GETNETCONF", 78: "RTM_GETNETCONF", 88: "RTM_NEWNSID",
         90: "RTM_GETNSID", 94: "RTM_GETSTATS"}  # fmt: skip
_IFINFO_BYTES = 16
_IFF_UP = 1
_IFLA_LINKINFO, _IFLA_NET_NS_PID, _IFLA_NET_NS_FD = 18, 19, 28
_LINK_WORDS = {1: "mac", 3: "name", 4: "mtu", 10: "master", 12: "protinfo",
               _IFLA_NET_NS_PID: "netns", _IFLA_NET_NS_FD: "netns"}  # fmt: skip
_INFO_KIND, _INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_AF_BRIDGE = 7


def describe(protocol: int, message: bytes) -> str:
    """The request in words, such as ``RTM_NEWLINK create kind=veth name``; empty if unreadable.

    Words after the type, for links: ``create``, ``kind=K``, ``netns`` (IFLA_NET_NS_FD or _PID of
    the link itself), ``peer-netns`` (of a veth's peer), ``name``, ``mac``, ``mtu``, ``master``,
    ``up``, ``bridge`` (AF_BRIDGE), ``protinfo``.
    """
    if len(message) < _HEADER.size:
        return ""
    _, kind, flags, _, _ = _HEADER.unpack_from(message)
    if protocol == NETFILTER:
        return f"NFNL subsystem={kind >> 8} message={kind & 0xFF}"
    if protocol != ROUTE:
        return f"message={kind}"
    name = _route_type(kind)
    if name.endswith("LINK"):
        return " ".join([name, *_link_words(flags, message[_HEADER.size :])])
    return name


def _route_type(kind: int) -> str:
    place, verb = divmod(kind - 16, 4)
    if 0 <= place < len(_OBJECTS):
        return f"RTM_{_VERBS[verb]}{_OBJECTS[place]}"
    return _MORE.get(kind, f"RTM_{kind}")


def _link_words(flags: int, body: bytes) -> Iterator[str]:
    if len(body) < _IFINFO_BYTES:
        return
    family, _, _, _, link_flags, _ = struct.unpack_from("=BBHiII", body)
    if flags & _CREATE:
        yield "create"
    if family == _AF_BRIDGE:
        yield "bridge"
    for kind, value in attributes(body[_IFINFO_BYTES:]):
        if kind == _IFLA_LINKINFO:
            yield from _info_words(value)
        elif kind in _LINK_WORDS and value.strip(b"\0"):
            yield _LINK_WORDS[kind]
    if link_flags & _IFF_UP:
        yield "up"


def _info_words(info: bytes) -> Iterator[str]:
    for kind, value in attributes(info):
        if kind == _INFO_KIND:
            yield f"kind={value.rstrip(bytes(1)).decode(errors='replace')}"
        elif kind == _INFO_DATA:
            for inner, peer in attributes(value):
                if inner != _VETH_INFO_PEER:
                    continue
                named = {attribute for attribute, _ in attributes(peer[_IFINFO_BYTES:])}
                if named & {_IFLA_NET_NS_FD, _IFLA_NET_NS_PID}:
                    yield "peer-netns"


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and value of each attribute, up to the end or the first malformed one."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
