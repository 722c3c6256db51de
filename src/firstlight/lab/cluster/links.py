"""The links of a cluster's nodes: a bridge in a network namespace of its own joins them.

Each node makes its own link to it. The namespace is a descriptor, which the nodes inherit, so that
it ends with them.
"""

import os
import socket
from pathlib import Path

from pyroute2 import IPRoute

from firstlight.host.workspace import unshare
from firstlight.lab.cluster.threads import in_namespace, result

_CLONE_NEWNET = 0x40000000
_BRIDGE = "nodes"
_LINK = "ext0"


def make_switch() -> int:
    """The descriptor of a namespace with a bridge, which programs that are executed inherit."""

    def make() -> int:
        unshare(_CLONE_NEWNET)
        with IPRoute() as netlink:
            netlink.link("add", ifname=_BRIDGE, kind="bridge", br_forward_delay=0)
            netlink.link("set", index=netlink.link_lookup(ifname=_BRIDGE)[0], state="up")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    descriptor = result(make)
    os.set_inheritable(descriptor, True)
    return descriptor


def join(switch: int, name: str, address: str) -> None:
    """Name this node, and link it to the others: an address, a default route, forwarding."""
    socket.sethostname(name)
    for key, value in (("ip_forward", "1"), ("conf/all/rp_filter", "0"),
                       ("conf/default/rp_filter", "0")):  # fmt: skip
        Path("/proc/sys/net/ipv4", key).write_text(value)
    own = os.open("/proc/self/ns/net", os.O_RDONLY)

    def link() -> None:
        with IPRoute() as netlink:
            peer = {"ifname": _LINK, "net_ns_fd": own}
            netlink.link("add", ifname=name, kind="veth", peer=peer)
            [bridge], [index] = (netlink.link_lookup(ifname=each) for each in (_BRIDGE, name))
            netlink.link("set", index=index, master=bridge, state="up")

    in_namespace(switch, link)
    os.close(own)
    with IPRoute() as netlink:
        netlink.link("set", index=1, state="up")
        [index] = netlink.link_lookup(ifname=_LINK)
        netlink.link("set", index=index, state="up")
        netlink.addr("add", index=index, address=address, prefixlen=24)
        netlink.route("add", dst="0.0.0.0/0", oif=index)
