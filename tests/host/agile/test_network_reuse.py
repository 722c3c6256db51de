"""What an instance can leave in its network: it is seen, and the network is not used again.

Each test leaves one thing, as root inside, so that what an instance's own confinement forbids is
seen too: by the manager, which looks at all, or by the node, which looks at what an instance can
change.
"""

import asyncio
import ctypes
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.agile_host import on_host
from tests.support.network_host import inside, neighbour, networks, on_network_host, sh

from firstlight.agile import Config, Function, Instance, Runtime
from firstlight.agile.network.networks import Network, Networks
from firstlight.agile.node import wire
from firstlight.agile.parts import shelves

JUDGED_EVERY = 128  # native/agile/rest.c
TIME_WAIT = (
    "import socket as s; l = s.create_server(('127.0.0.1', 0)); "
    "c = s.create_connection(l.getsockname()); a, _ = l.accept(); c.close(); a.close()"
)
FAST_OPEN = (
    "import socket; l = socket.socket(); l.bind(('127.0.0.1', 0)); "
    "l.setsockopt(6, 23, 5); l.listen(); l.setsockopt(6, 33, bytes(16))"
)
XFRM = "ip xfrm state allocspi src 192.0.2.1 dst 192.0.2.2 proto esp min 256 max 300"
POLICY = "ip xfrm policy add src 192.0.2.1 dst 192.0.2.2 dir out priority 1"
PYTHON = {
    "echo to the gateway (snmp)": (
        "import socket; s = socket.socket(2, 2, 1); s.settimeout(2); "
        "s.sendto(b'\\x08' + bytes(7), ('{gateway}', 0)); s.recv(64)"
    ),
    "a datagram to nobody (snmp, dev)": (
        "import socket; socket.socket(2, 2).sendto(b'x', ('198.51.100.9', 9))"
    ),
    "no route (IpOutNoRoutes)": (
        "import os; os.system('ip route del default'); import socket\n"
        "try: socket.socket(2, 2).sendto(b'x', ('198.51.100.9', 9))\n"
        "except OSError: pass\n"
        "os.system('ip route add default via {gateway} dev eth0 onlink proto static')"
    ),
    "TIME_WAIT": TIME_WAIT,
    "a datagram by loopback": "import socket; socket.socket(2, 2).sendto(b'x', ('127.0.0.1', 9))",
}  # fmt: skip
COMMANDS = {
    "address": "ip address add 192.0.2.1/32 dev lo",
    "route": "ip route add 192.0.2.0/24 via {gateway} dev eth0 onlink",
    "route in a table of its own": "ip route add 192.0.2.0/24 dev eth0 table 7",
    "next hop": "ip nexthop add id 7 dev eth0",
    "rule": "ip rule add from 192.0.2.1 table 7",
    "neighbour": "ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev eth0",
    "neighbour gone": "ip neigh del {gateway} dev eth0",
    "proxy neighbour": "ip neigh add proxy 192.0.2.9 dev eth0",
    "link": "ip link add other type bridge",
    "link down": "ip link set lo down",
    "MTU": "ip link set eth0 mtu 1400",
    "queueing discipline": "tc qdisc add dev eth0 root pfifo limit 7",
    "sysctl": "sysctl -qw net.ipv4.ip_local_port_range='2000 3000'",
    "sysctl of a link": "sysctl -qw net.ipv4.conf.eth0.proxy_arp=1",
    "multicast group": "ip address add 224.0.0.9/32 dev eth0 autojoin",
    "nft table": "nft add table ip left",
    "nft table that came and went": "nft 'add table ip left; delete table ip left'",
    "ipset": "ipset create left hash:ip",
    "iptables": "iptables-legacy -A INPUT -j ACCEPT",
    "IPsec state": XFRM,
    "IPsec policy": POLICY,
    "IPv6 on": "sysctl -qw net.ipv6.conf.all.disable_ipv6=0",
}


@pytest.fixture
def hold(function: Callable[..., Function]) -> Function:
    return function("hold", "60")


def is_kept(leave: Callable[[Networks, Network], None]) -> bool:
    """Whether a network reads as new to the manager after something was left there."""
    kept: list[bool] = []

    async def main(made: Networks) -> None:
        network = await made.make("outbound")
        assert await made.is_as_new(network), "an unused network is as new"
        leave(made, network)
        kept.append(await made.is_as_new(network))
        made.discard(network)

    on_network_host(main)
    return kept[0]


def uses(
    function: Function, leave: Callable[[Networks, Network], None],
    another: bool = False, most: int = 2 * JUDGED_EVERY,
) -> int:  # fmt: skip
    """How many instances a network serves, in the first of which something is left there.
    ``another``: by a node that is taken for one of another build.
    """
    served: list[Network] = []

    async def network_of(runtime: Runtime, instance: Instance) -> Network:
        async with instance:
            network = await instance.network
            if not served:
                leave(runtime._networks, network)
            await instance.stop()
        return network

    async def judged(runtime: Runtime, network: Network, before: int) -> bool:
        """Whether it is given back."""
        while network.descriptor >= 0 and before == returned(runtime):
            await asyncio.sleep(0.01)
        return network.descriptor >= 0

    async def main() -> None:
        sh("ip link set lo up")
        async with Runtime(Config(name="t6")) as runtime:
            node = runtime._instances._node
            assert node
            node.is_of_another_build = another
            for before in range(most):
                served.append(await network_of(runtime, await runtime.start(function)))
                assert served[-1] is served[0]
                if not await judged(runtime, served[-1], before):
                    return

    on_host(main)
    return len(served)


def returned(runtime: Runtime) -> int:
    return next(pool.returned for pool in runtime.pools() if pool.name == "network outbound")


def test_a_listening_socket_makes_no_key_of_tcp_fast_open() -> None:
    def leave(_: Networks, network: Network) -> None:
        inside(network).python(FAST_OPEN)

    assert is_kept(leave)


@pytest.mark.parametrize("name", PYTHON)
def test_a_trace_of_a_socket_is_seen(name: str) -> None:
    def leave(made: Networks, network: Network) -> None:
        inside(network).python(PYTHON[name].format(gateway=made.gateway))

    assert not is_kept(leave)


@pytest.mark.parametrize("name", PYTHON)
def test_the_node_sees_what_an_instance_can_leave(name: str, hold: Function) -> None:
    def leave(made: Networks, network: Network) -> None:
        inside(network).python(PYTHON[name].format(gateway=made.gateway))

    assert uses(hold, leave) == 1


def test_network_is_examined_for_privileged_state(hold: Function) -> None:
    def leave(_: Networks, network: Network) -> None:
        inside(network).run("ip", "address", "add", "192.0.2.1/32", "dev", "lo")

    assert uses(hold, leave) == JUDGED_EVERY


def test_the_manager_judges_what_another_build_calls_used(
    hold: Function, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its digest may be another one than that of the manager's helper: to it all are used."""
    described = shelves.Parts._described

    def otherwise(parts: shelves.Parts, held: shelves.Held) -> wire.Part:
        part = described(parts, held)
        return part._replace(quick=part.quick ^ 1)

    monkeypatch.setattr(shelves.Parts, "_described", otherwise)

    def leave(made: Networks, network: Network) -> None:
        inside(network).python(PYTHON["a datagram by loopback"])

    assert uses(hold, lambda _, network: None, another=True, most=3) == 3
    assert uses(hold, leave, another=True) == 1
    assert uses(hold, lambda _, network: None) == 1, "a node of this build is believed"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_change_of_the_namespace_is_seen(name: str) -> None:
    def leave(made: Networks, network: Network) -> None:
        inside(network).run("bash", "-euc", COMMANDS[name].format(gateway=made.gateway))

    assert not is_kept(leave)


def test_a_socket_that_somebody_else_still_holds_is_seen() -> None:
    """As one whose descriptor was passed on."""
    kept: list[bool] = []
    families = [
        (socket.AF_NETLINK, socket.SOCK_RAW),
        (socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM),
        (socket.AF_INET6, socket.SOCK_DGRAM), (socket.AF_PACKET, socket.SOCK_RAW),
    ]  # fmt: skip

    async def main(made: Networks) -> None:
        for family, kind in families:
            network = await made.make("outbound")
            held = opened_in(network, lambda: socket.socket(family, kind))  # noqa: B023
            if kind == socket.SOCK_STREAM:
                held.bind(("127.0.0.1", 0))
                held.listen()
            kept.append(await made.is_as_new(network))
            held.close()
            made.discard(network)

    on_network_host(main)
    assert kept == [False] * len(families)


def test_an_abstract_socket_that_is_held_is_seen() -> None:
    async def main(made: Networks) -> None:
        for reach in ("none", "outbound"):
            network = await made.make(reach)
            assert await made.is_as_new(network)
            held = opened_in(network, lambda: socket.socket(socket.AF_UNIX))
            held.bind("\0left")
            assert not await made.is_as_new(network)
            held.close()
            assert await made.is_as_new(network)
            made.discard(network)

    on_network_host(main)


def opened_in(network: Network, make: Callable[[], socket.socket]) -> socket.socket:
    """A socket of that namespace, held by the test."""
    opened: list[socket.socket] = []

    def run() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.setns(network.descriptor, 0x40000000) == 0
        opened.append(make())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return opened[0]


def test_what_the_host_sends_to_an_instance_counts_as_talk(hold: Function) -> None:
    def leave(_: Networks, network: Network) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"late", (str(network.address), 9))

    assert not is_kept(leave)
    assert uses(hold, leave) == 1


CLOSE_IN_ORDER = """
import socket, sys
client = socket.create_connection((sys.argv[1], 80), 3)
client.recv(5)
client.close()
"""
LEARN = """
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.IPPROTO_IP, 10, 2)
deadline = time.monotonic() + 5
while time.monotonic() < deadline:
    try:
        sock.sendto(bytes(1400), (sys.argv[1], 9))
    except OSError as error:
        print(error.errno)
        break
"""


def test_a_path_mtu_and_tcp_metrics_are_seen() -> None:
    async def main(made: Networks) -> None:
        with neighbour("world", "198.51.100.1/24", "198.51.100.2/24") as there:
            sh("ip link set world mtu 1200")
            network = await made.make("outbound")
            place = inside(network)
            assert place.python(LEARN, "198.51.100.2") == "90"
            assert "mtu 1200" in place.run("ip", "route", "get", "198.51.100.2")
            with there.serving("0.0.0.0", 80):
                place.python(CLOSE_IN_ORDER, "198.51.100.2")
            assert "198.51.100.2" in place.run("ip", "tcp_metrics", "show")
            assert not await made.is_as_new(network)
            made.discard(network)

    on_network_host(main)


def test_washed_network_keeps_only_counters() -> None:
    """What is not removed is seen, by the one look at all."""
    washed: dict[str, bool] = {}

    async def wash(made: Networks, name: str, leave: str) -> None:
        network = await made.make("outbound")
        words = (sys.executable, "-c") if name in PYTHON else ("bash", "-euc")
        await asyncio.to_thread(inside(network).run, *words, leave.format(gateway=made.gateway))
        washed[name] = await made.wash(network)
        if washed[name]:
            assert await made.is_as_new(network), "to be compared with what it is now"
            assert inside(network).run("ss", "-Htan") == ""
        made.discard(network)

    async def main(made: Networks) -> None:
        left = PYTHON | COMMANDS
        await asyncio.gather(*(wash(made, name, leave) for name, leave in left.items()))

    on_network_host(main)
    assert washed == {name: name in PYTHON for name in (*PYTHON, *COMMANDS)}


def tracked() -> str:
    return Path("/proc/thread-self/net/nf_conntrack").read_text()


def test_washed_network_has_no_path_mtu_or_connections() -> None:
    async def main(made: Networks) -> None:
        with neighbour("world", "198.51.100.1/24", "198.51.100.2/24") as there:
            sh("ip link set world mtu 1200")
            network = await made.make("outbound")
            place = inside(network)
            assert place.python(LEARN, "198.51.100.2") == "90"
            with there.serving("0.0.0.0", 80):
                place.python(CLOSE_IN_ORDER, "198.51.100.2")
            assert (
                f"src={network.address}" in Path("/proc/thread-self/net/nf_conntrack").read_text()
            )
            assert place.run("ip", "tcp_metrics", "show")
            assert place.run("ss", "-Htan")
            assert await made.wash(network)
            assert "mtu" not in place.run("ip", "route", "get", "198.51.100.2")
            assert place.run("ip", "tcp_metrics", "show") == ""
            assert place.run("ss", "-Htan") == ""
            assert f"src={network.address}" not in tracked()
            made.discard(network)

    on_network_host(main)


def test_many_networks_read_as_new_again_and_again() -> None:
    """What changes by itself is not taken for a change."""

    async def main(made: Networks) -> None:
        made_now = [await made.make("outbound") for _ in range(20)]
        for _ in range(5):
            kept = await asyncio.gather(*(made.is_as_new(network) for network in made_now))
            assert kept == [True] * len(made_now)
        for network in made_now:
            made.discard(network)

    on_network_host(main)


def test_network_destroyed_at_rest_is_not_examined() -> None:
    async def main(net: Networks) -> None:
        network = await net.make("outbound")
        helpers = Path("/proc/thread-self/children").read_text()
        examination = asyncio.create_task(net.is_as_new(network))
        await asyncio.sleep(0)
        net.discard(network)
        assert not await examination
        net.discard(await net.make("none"))
        assert Path("/proc/thread-self/children").read_text() == helpers  # none hung for it

    on_network_host(main)


def test_instances_without_a_network_share_no_abstract_socket() -> None:
    async def main(made: Networks) -> None:
        first, second = await made.make("none"), await made.make("none")
        held = opened_in(first, lambda: socket.socket(socket.AF_UNIX))
        held.bind("\0meet")
        held.listen()
        client = opened_in(second, lambda: socket.socket(socket.AF_UNIX))
        with pytest.raises(ConnectionRefusedError):
            client.connect("\0meet")
        for sock in (held, client):
            sock.close()
        for network in (first, second):
            made.discard(network)

    on_network_host(main)


def test_take_over_keeps_noted_networks_and_ports() -> None:
    async def main() -> None:
        sh("ip link set lo up")
        async with networks() as first:
            network = await first.make("outbound")
            assert network.address
            with inside(network).serving("0.0.0.0", 80):
                await first.publish({8080: 80}, network.address)
                first._parts.close()  # as a killed manager's end: the host's side stays
                first._host.close()
                first._watch.close()
                for _, _, sock in first._published.values():
                    sock.close()
                again = Networks(first._config)
                await again.open(adopt=True)
                adopted = Network.from_note(network.note(), os.dup(network.descriptor))
                await again.adopt(adopted, {8080: 80})
                assert (adopted.address, adopted.digest) == (network.address, network.digest)
                with socket.create_connection(("127.0.0.1", 8080), 60) as client:
                    assert client.recv(5) == b"hello"
                other = await again.make("outbound")
                assert other.address != network.address
                again.discard(other)
                await again.withdraw({8080: 80}, network.address)
                assert str(network.address) not in sh(f"nft list map inet {again.table} ports")
            os.close(network.descriptor)
            again.discard(adopted)
            again.close()  # waits until the links are gone, which they are with their namespaces
        assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == "0\n"

    on_host(main)
