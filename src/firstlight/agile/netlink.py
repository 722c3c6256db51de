"""The netlink requests that a prepared network needs, as bytes.

They are sent by ``native/spawn_net.c``: encoding one here costs microseconds, and what a script
asks for is decided in one place. Layouts: linux/rtnetlink.h, linux/if_link.h,
linux/netfilter/nf_tables.h.
"""

from ipaddress import IPv4Address
from struct import pack

ROUTE, NETFILTER = 0, 12

_REQUEST, _ACK, _EXCL, _CREATE, _DUMP = 0x1, 0x4, 0x200, 0x400, 0x300
_NEWLINK, _GETLINK, _NEWADDR, _GETADDR = 16, 18, 20, 22
_NEWROUTE, _GETROUTE, _NEWNEIGH, _GETNEIGH, _GETRULE = 24, 26, 28, 30, 34
_UP = 1
_AF_INET, _AF_INET6 = 2, 10
_LINKINFO, _KIND, _DATA, _PEER = 18, 1, 2, 1
_IFNAME, _MAC, _NS_FD, _AF_SPEC, _MTU = 3, 1, 28, 26, 4
_ADDR_GEN_MODE, _GEN_NONE = 8, 1
_NESTED, _GET_CONNECTIONS, _GET_ELEMENT, _FAMILY_INET = 0x8000, 0x101, 0xA0D, 1


def link_up(index: int) -> bytes:
    """Set a link up."""
    return _message(_NEWLINK, _ACK, _link(index, _UP))


def link_up_without_ipv6(index: int) -> bytes:
    """Set a link up that makes itself no IPv6 address, so that none is probed for duplicates."""
    no_ipv6 = _attribute(_AF_INET6, _attribute(_ADDR_GEN_MODE, pack("=B", _GEN_NONE)))
    return _message(_NEWLINK, _ACK, _link(index, _UP) + _attribute(_AF_SPEC, no_ipv6))


def link_settle(index: int) -> bytes:
    """Ask for a link; before it answers, the kernel does what it still owes to its carrier.

    A link whose carrier came up sends nothing until a worker has activated its queue: the first
    packet would be lost. Since Linux 6.9 to ask for the link is to wait for that.
    """
    return _message(_GETLINK, _ACK, _link(index, 0))


def veth(
    name: str, index: int, mac: bytes, peer: str, peer_index: int, peer_mac: bytes, peer_fd: int
) -> bytes:
    """Create a veth pair, its peer in the namespace of the executor's descriptor."""
    other = (
        _link(peer_index, 0)
        + _attribute(_IFNAME, peer.encode() + b"\0")
        + _attribute(_MAC, peer_mac)
        + _attribute(_NS_FD, pack("=i", peer_fd))
    )
    info = _attribute(_KIND, b"veth\0") + _attribute(_DATA, _attribute(_PEER, other))
    return _message(
        _NEWLINK,
        _ACK | _CREATE | _EXCL,
        _link(index, 0)
        + _attribute(_IFNAME, name.encode() + b"\0")
        + _attribute(_MAC, mac)
        + _attribute(_LINKINFO, info),
    )


def bridge(name: str, index: int) -> bytes:
    """Create a bridge without ports, up: a link that only holds an address."""
    return _message(
        _NEWLINK,
        _ACK | _CREATE | _EXCL,
        _link(index, _UP)
        + _attribute(_IFNAME, name.encode() + b"\0")
        + _attribute(_LINKINFO, _attribute(_KIND, b"bridge\0")),
    )


def address(index: int, value: IPv4Address) -> bytes:
    """Give a link one address, without a prefix."""
    fixed = pack("=BBBBI", _AF_INET, 32, 0, 0, index)
    attributes = _attribute(2, value.packed) + _attribute(1, value.packed)
    return _message(_NEWADDR, _ACK | _CREATE | _EXCL, fixed + attributes)


def route_host(index: int, to: IPv4Address, source: IPv4Address | None = None) -> bytes:
    """Reach one address on a link itself."""
    attributes = _attribute(1, to.packed) + _attribute(4, pack("=I", index))
    if source:
        attributes += _attribute(7, source.packed)
    fixed = pack("=BBBBBBBBI", _AF_INET, 32, 0, 0, 254, 4, 253, 1, 0)
    return _message(_NEWROUTE, _ACK | _CREATE | _EXCL, fixed + attributes)


def route_default(index: int, gateway: IPv4Address) -> bytes:
    """Reach everything else by a gateway."""
    attributes = _attribute(5, gateway.packed) + _attribute(4, pack("=I", index))
    fixed = pack("=BBBBBBBBI", _AF_INET, 0, 0, 0, 254, 4, 0, 1, 4)
    return _message(_NEWROUTE, _ACK | _CREATE | _EXCL, fixed + attributes)


def neighbour(index: int, value: IPv4Address, mac: bytes) -> bytes:
    """Preset a permanent neighbour, so that no packet waits for ARP."""
    fixed = pack("=BBHiHBB", _AF_INET, 0, 0, index, 0x80, 0, 1)
    attributes = _attribute(1, value.packed) + _attribute(2, mac)
    return _message(_NEWNEIGH, _ACK | _CREATE | _EXCL, fixed + attributes)


def dumps() -> list[bytes]:
    """The requests whose answers say how a namespace routes.

    Its addresses, routes, rules and neighbours, of all families.
    """
    return [
        _message(_GETADDR, _DUMP, pack("=BBBBI", 0, 0, 0, 0, 0)),
        _message(_GETROUTE, _DUMP, pack("=BBBBBBBBI", 0, 0, 0, 0, 0, 0, 0, 0, 0)),
        _message(_GETRULE, _DUMP, pack("=BBBBBBBBI", 0, 0, 0, 0, 0, 0, 0, 0, 0)),
        _message(_GETNEIGH, _DUMP, pack("=BBHiHBB", 0, 0, 0, 0, 0, 0, 0)),
    ]


def set_element(table: str, name: str, value: IPv4Address) -> bytes:
    """Look an address up in a set of an inet table: answered by ENOENT if it is not there."""
    key = _attribute(_NESTED | 1, _attribute(1, value.packed))
    elements = _attribute(_NESTED | 3, _attribute(_NESTED | 1, key))
    names = _attribute(1, table.encode() + b"\0") + _attribute(2, name.encode() + b"\0")
    return _message(_GET_ELEMENT, _ACK, pack("=BBH", _FAMILY_INET, 0, 0) + names + elements)


def connections_from(value: IPv4Address) -> bytes:
    """Dump the connections that the host tracks with that source, filtered in the kernel."""
    source = _attribute(_NESTED | 1, _attribute(_NESTED | 1, _attribute(1, value.packed)))
    only_source = _attribute(_NESTED | 25, _attribute(1, pack("=I", 1)))
    return _message(_GET_CONNECTIONS, _DUMP, pack("=BBH", _AF_INET, 0, 0) + source + only_source)


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return pack("=IHHII", 16 + len(body), kind, flags | _REQUEST, 1, 0) + body


def _link(index: int, flags: int) -> bytes:
    return pack("=BxHiII", 0, 0, index, flags, flags)


def _attribute(kind: int, data: bytes) -> bytes:
    return pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)
