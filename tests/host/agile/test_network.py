"""What an instance reaches, what reaches it, and how much of the host it may take."""

import asyncio
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.support.laboratory import NATIVE, compiled
from tests.support.network_host import HOST, Place, inside, neighbour, on_network_host, sh

from firstlight.agile import helper
from firstlight.agile.config import NetworkConfig
from firstlight.agile.network import firewall, nethelper
from firstlight.agile.network.nethelper import Unanswered
from firstlight.agile.network.networks import Networks
from firstlight.errors import Failed

WORLD = "198.51.100.2"
PRIVATE = (
    "10.1.2.3", "100.64.0.9", "100.100.100.200", "168.63.129.16", "169.254.169.254", "172.20.0.2",
    "192.0.0.192", "192.168.1.7", "198.18.0.3",
)  # fmt: skip


def world() -> object:
    """The world, which also plays a metadata service and hosts in private ranges."""
    return neighbour("world", "198.51.100.1/24", f"{WORLD}/24", *(f"{a}/32" for a in PRIVATE))


def to_world(*addresses: str) -> str:
    return "\n".join(f"ip route add {address} via {WORLD}" for address in addresses)


def test_the_world_is_reached_and_private_ranges_are_not() -> None:
    async def main(made: Networks) -> None:
        with world() as there, there.serving("0.0.0.0", 80):  # type: ignore[attr-defined]
            sh(to_world(*PRIVATE))
            network = await made.make("outbound")
            assert HOST.reaches(PRIVATE[0], 80), "the host itself reaches them"
            assert inside(network).reaches(WORLD, 80)
            reached = inside(network).reached(*PRIVATE, port=80)
            made.discard(network)
            assert reached == []

    on_network_host(main)


def test_what_is_allowed_is_reached_and_nothing_beside_it() -> None:
    async def main(made: Networks) -> None:
        with world() as there, there.serving("0.0.0.0", 80):  # type: ignore[attr-defined]
            sh(to_world("10.1.2.3", "192.168.1.7", "172.20.0.2"))
            network = await made.make("outbound")
            place = inside(network)
            assert place.reaches("10.1.2.3", 80)
            assert place.reaches("192.168.1.7", 80)
            assert place.cannot_reach("172.20.0.2", 80)
            made.discard(network)

    on_network_host(main, allow=("10.0.0.0/8", "192.168.1.7"))


def test_host_addresses_are_closed_except_services() -> None:
    async def main(made: Networks) -> None:
        with world(), HOST.serving("0.0.0.0", 80), HOST.serving("0.0.0.0", 7777):  # type: ignore[attr-defined]
            network = await made.make("outbound")
            place = inside(network)
            for address in (str(made.gateway), "198.51.100.1"):
                assert place.cannot_reach(address, 80)
                assert place.reaches(address, 7777)
            made.discard(network)

    on_network_host(main, host_services=("tcp/7777",))


def test_instances_cannot_reach_each_other() -> None:
    """As if it could send what it likes: from inside as root."""

    async def main(made: Networks) -> None:
        first, second = await made.make("outbound"), await made.make("internal")
        other = str(second.address)
        with inside(second).serving("0.0.0.0", 80):
            assert HOST.reaches(other, 80)
            assert inside(first).cannot_reach(other, 80)
        with world() as there:  # type: ignore[attr-defined]
            v6 = """
                sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.eth0.disable_ipv6=0
                ip -6 address add 2001:db8:{n}::2/64 dev eth0 nodad
                ip -6 route add default via 2001:db8:{n}::1
            """
            there.run("bash", "-c", "ip -6 address add 2001:db8:9::2/64 dev eth0 nodad; "
                                    "ip -6 route add default via 2001:db8:9::1")  # fmt: skip
            inside(first).run("bash", "-c", v6.format(n=1))
            [link] = [line for line in sh("ip -o link").splitlines() if f"{made.links}0002" in line]
            name = link.split(": ")[1].partition("@")[0]
            sh(f"""
                ip -6 address add 2001:db8:9::1/64 dev world nodad
                ip -6 address add 2001:db8:1::1/64 dev {name} nodad
                sysctl -qw net.ipv6.conf.all.forwarding=1
            """)
            with there.serving("::", 80):
                for chain in ("raw", "to_host", "leaving"):  # the neighbours find each other
                    sh(f"nft insert rule inet firstlight_tn {chain} accept")
                while inside(first).cannot_reach("2001:db8:9::2", 80):
                    pass  # the way is there, or the test ends by its deadline
                listed = sh("nft -a list chain inet firstlight_tn leaving").splitlines()
                [handle] = [
                    line.split()[-1] for line in listed if line.strip().startswith("accept")
                ]
                sh(f"nft delete rule inet firstlight_tn leaving handle {handle}")
                assert inside(first).cannot_reach("2001:db8:9::2", 80)
        for network in (first, second):
            made.discard(network)

    on_network_host(main, allow=("10.0.0.0/8",))


def tracked() -> int:
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


FLOOD = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range(3000):
    try:
        sock.sendto(b"", (f"198.51.100.{n % 250 + 2}", 1024 + n // 250 * 7))
    except OSError:
        pass
"""


@pytest.mark.parametrize(
    ("limits", "least", "most"),
    [({"connections": 100, "connection_rate": 5000}, 90, 110),
     ({"connections": 5000, "connection_rate": 100}, 90, 1500)],
    ids=["open", "rate"],
)  # fmt: skip
def test_an_instance_cannot_take_the_hosts_connection_table(
    limits: dict[str, int], least: int, most: int
) -> None:
    async def main(made: Networks) -> None:
        with world():  # type: ignore[attr-defined]
            sh("ip route replace 198.51.100.0/24 dev world")
            network, other = await made.make("outbound"), await made.make("outbound")
            before = tracked()
            inside(network).python(FLOOD)
            assert least <= tracked() - before <= most
            before = tracked()
            inside(other).python(FLOOD)
            assert tracked() - before >= least, "the limit is each instance's own"
            for used in (network, other):
                made.discard(used)

    on_network_host(main, "", **limits)


def test_missing_ct_count_falls_back_to_rate_limit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a kernel without nft_connlimit."""
    monkeypatch.setattr(firewall, "_COUNT", "no such expression {set} {end} {connections}")

    async def main(made: Networks) -> None:
        with world():  # type: ignore[attr-defined]
            network = await made.make("outbound")
            inside(network).python(FLOOD)
            assert tracked() <= 100
            made.discard(network)

    on_network_host(main, connections=1200, connection_rate=1000)
    assert "modprobe nft_connlimit" in caplog.text
    assert "at most 10 a second" in caplog.text


def test_what_the_kernel_lacks_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(made: Networks) -> None:
        raise AssertionError("it was opened")

    monkeypatch.setattr(firewall, "_NEEDS", (("nft_nothing", "chain c { no such rule; }"),))
    monkeypatch.setattr(firewall, "_RATE", "no such rule {rate}")
    with pytest.raises(Exception, match="the kernel lacks nft_nothing"):
        on_network_host(main)


def test_slow_module_load_is_not_reported_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, slow = firewall.Firewall.run, ["not made", "made"]

    async def killed(self: firewall.Firewall, commands: str, what: str) -> firewall.Listing:
        if what.startswith("make the table") and slow:
            if slow.pop() == "made":
                await run(self, commands, what)
            raise Unanswered("the network helper did not answer in 10 s and was killed", "again")
        return await run(self, commands, what)

    async def main(made: Networks) -> None:
        assert not slow
        assert sh("nft list chain inet firstlight_tn limited").count("limit rate") == 1

    monkeypatch.setattr(firewall.Firewall, "run", killed)
    on_network_host(main)


def ask(place: Place, address: str, port: int) -> str:
    return place.python(
        "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 3); "
        "print(s.recv(5).decode())", address, str(port),
    )  # fmt: skip


@pytest.mark.parametrize("reach", ["outbound", "internal"])
def test_published_port_answers_outside_and_on_localhost(
    reach: str,
) -> None:
    async def main(made: Networks) -> None:
        with world() as there:  # type: ignore[attr-defined]
            network = await made.make(reach)  # type: ignore[arg-type]
            address = network.address
            assert address
            with inside(network).serving("0.0.0.0", 80):
                await made.publish({8080: 80}, address)
                assert ask(there, "198.51.100.1", 8080) == "hello"
                for own in ("198.51.100.1", "127.0.0.1", "127.5.6.7", str(made.gateway)):
                    assert ask(HOST, own, 8080) == "hello"
                await made.withdraw({8080: 80}, address)
                for place, host in ((there, "198.51.100.1"), (HOST, "127.0.0.1")):
                    assert place.cannot_reach(host, 8080)
            made.discard(network)

    on_network_host(main)


def test_instances_cannot_reach_localhost() -> None:
    """Root inside sends to 127/8 by its link, and a neighbour by the host's."""
    lead = """
        ip route del local 127.0.0.0/8 dev lo table local
        ip route add 127.9.9.9/32 via {} dev eth0 onlink
        sysctl -qw net.ipv4.conf.eth0.route_localnet=1
    """

    async def main(made: Networks) -> None:
        with world() as there, HOST.serving("127.9.9.9", 81):  # type: ignore[attr-defined]
            network = await made.make("outbound")
            assert network.address
            await made.publish({8080: 80}, network.address)
            assert HOST.reaches("127.9.9.9", 81)
            with HOST.serving("198.51.100.1", 81):
                assert inside(network).reaches("198.51.100.1", 81), "the service is open"
            for place, gateway in ((inside(network), str(made.gateway)), (there, "198.51.100.1")):
                place.run("bash", "-c", lead.format(gateway))
                assert place.cannot_reach("127.9.9.9", 81)
            made.discard(network)

    on_network_host(main, host_services=("tcp/81",))


def test_concurrent_ports_share_transactions_and_fail_alone() -> None:
    async def main(made: Networks) -> None:
        network = await made.make("outbound")
        address = network.address
        assert address
        results = await asyncio.gather(
            *(made.publish({9000 + n: 80}, address) for n in range(50)),
            made.publish({9000: 80}, address),
            return_exceptions=True,
        )
        assert results[:50] == [None] * 50
        assert isinstance(results[50], Failed)
        listed = sh(f"nft list map inet {made.table} ports")
        assert listed.count(str(address)) == 50
        assert sh("nft list ruleset").count("dnat ip to") == 2, "one rule for each way in"
        await asyncio.gather(
            *(made.withdraw({9000 + n: 80}, address) for n in range(50)),
        )
        assert str(address) not in sh(f"nft list map inet {made.table} ports")
        made.discard(network)

    on_network_host(main)


def test_an_addresses_connections_end_before_it_is_anothers() -> None:
    async def main(made: Networks) -> None:
        with world() as there, there.serving("0.0.0.0", 80):  # type: ignore[attr-defined]
            first = await made.make("outbound")
            assert inside(first).reaches(WORLD, 80)
            assert str(first.address) in Path("/proc/thread-self/net/nf_conntrack").read_text()
            made.discard(first)
            again = [await made.make("outbound")]
            while again[-1].address != first.address:
                made.discard(again[-1])
                again.append(await made.make("outbound"))
            assert str(first.address) not in Path("/proc/thread-self/net/nf_conntrack").read_text()
            made.discard(again[-1])

    on_network_host(main, range="10.9.0.0/29")


def test_a_wrong_list_of_allowed_addresses_is_refused() -> None:
    for wrong in ("10.0.0.0/33", "10.0.0.1/8", "host", "fd00::/8"):
        with pytest.raises(ValueError, match=r".+"):
            NetworkConfig(allow=(wrong,))
    assert IPv4Address("10.0.0.1")


def test_the_helper_does_its_work_under_the_sanitizers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong access or an undefined operation ends it, and fails what it was asked."""
    native = NATIVE.parent.parent / "native"
    names = ("net_make", "net_check", "net_conntrack", "net_quick", "net_rules", "net_wash")
    built = compiled(
        native / "agile/net.c", tmp_path / "net-helper",
        *(str(native / f"agile/{name}.c") for name in names),
        str(native / "common/rtnl.c"), str(native / "common/socket.c"),
        str(native / "common/process.c"), str(native / "common/error.c"), f"-I{native}",
        "-lmnl", "-lnftables",
        "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
    )  # fmt: skip
    for module in (helper, nethelper):
        monkeypatch.setattr(module, "native", lambda _: built)
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")

    async def main(made: Networks) -> None:
        used = [await made.make("outbound") for _ in range(3)] + [await made.make("none")]
        assert await asyncio.gather(*map(made.is_as_new, used)) == [True] * len(used)
        with world() as there, there.serving("0.0.0.0", 80):  # type: ignore[attr-defined]
            assert inside(used[0]).reaches(WORLD, 80)
        assert not await made.is_as_new(used[0])
        address = used[1].address
        assert address
        await made.publish({8080: 80}, address)
        with pytest.raises(Failed, match="No such file"):
            await made._firewall.withdraw([9999])
        await made.withdraw({8080: 80}, address)
        for network in used:
            made.discard(network)
        while made._addresses._left:
            await asyncio.sleep(0.02)

    on_network_host(main)
