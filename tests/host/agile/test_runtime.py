"""Starts from parts and from whole sandboxes, and what becomes of the parts."""

import asyncio
import os
import resource
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.agile_host import on_host, pids_hierarchy, stopped

from firstlight.agile import Config, Function, Instance, Runtime
from firstlight.agile.config import NetworkConfig, Pools, PoolSize
from firstlight.agile.network.firewall import Firewall
from firstlight.agile.network.networks import Networks
from firstlight.errors import Failed, FirstlightError
from firstlight.lab.cluster.threads import in_network

Make = Callable[..., Function]
GATEWAY = "10.213.0.1"
WHOLE = Pools(sandbox=PoolSize(low=2, high=4))


def test_start_from_parts_is_stamped_in_order(function: Make) -> None:
    async def main() -> None:
        async with (
            Runtime(Config(name="t1")) as runtime,
            await runtime.start(function("ping", GATEWAY)) as instance,
        ):
            assert instance.stdout is not None
            assert await instance.stdout.all() == b"answered\n"
            ended = await instance.wait()
            assert (ended.status, ended.signal) == (0, None)
            assert not instance.warm
            stamps = list(instance.stamps.values())
            assert stamps == sorted(stamps)
            assert set(instance.stamps) > {"requested", "clone", "seccomp", "exec", "running"}

    on_host(main)


def test_a_whole_sandbox_is_only_woken(function: Make) -> None:
    async def main() -> None:
        ping = function("ping", GATEWAY)
        async with Runtime(Config(name="t1", pools=WHOLE)) as runtime:
            await runtime.prepare(ping, 2)
            async with await runtime.start(ping) as instance:
                assert instance.warm
                assert instance.stamps["wait"] < instance.stamps["requested"]
                assert instance.stamps["requested"] < instance.stamps["streams"]
                assert instance.stdout is not None
                assert await instance.stdout.all() == b"answered\n"

    on_host(main)


def returned(runtime: Runtime) -> int:
    return next(pool.returned for pool in runtime.pools() if pool.name == "network outbound")


def test_used_network_serves_only_its_function(function: Make) -> None:
    async def address(runtime: Runtime, *words: str) -> object:
        async with await runtime.start(function(*words)) as instance:
            await instance.wait()
        return instance.address

    async def main() -> None:
        async with Runtime(Config(name="t1")) as runtime:
            quiet = await address(runtime, "hold", "0")
            while not returned(runtime):
                await asyncio.sleep(0.01)
            assert await address(runtime, "hold", "0.1") != quiet
            assert await address(runtime, "hold", "0") == quiet
            talked = await address(runtime, "ping", GATEWAY)
            assert await address(runtime, "ping", GATEWAY) != talked

    on_host(main)


@pytest.mark.parametrize("reuse", ["network", "sandbox"])
def test_shared_counters_keep_used_networks(function: Make, reuse: str) -> None:
    ping = function("ping", GATEWAY, share_counters=True, reuse=reuse)

    async def main() -> None:
        async with Runtime(Config(name="t1")) as runtime:
            addresses = []
            for done in range(3):
                async with await runtime.start(ping) as instance:
                    assert instance.stdout is not None
                    assert await instance.stdout.all() == b"answered\n"
                    await instance.wait()
                addresses.append(instance.address)
                while returned(runtime) <= done:
                    await asyncio.sleep(0.01)
                await runtime.sync()  # the node has it again
            assert len(set(addresses)) == 1

    on_host(main)


def test_network_is_kept_despite_a_late_socket(function: Make) -> None:
    """As on a busy host, whose kernel removes closed sockets after seconds."""
    hold = function("hold", "600", share_counters=True)

    async def main() -> None:
        async with Runtime(Config(name="t1")) as runtime:
            async with await runtime.start(hold) as instance:
                inside = in_network(instance.pid, lambda: socket.socket(type=socket.SOCK_DGRAM))
            asyncio.get_running_loop().call_later(2.0, inside.close)
            while returned(runtime) < 1:
                await asyncio.sleep(0.01)
            assert inside.fileno() < 0

    on_host(main, 60)


def test_an_end_is_told_before_its_network_is_examined(function: Make) -> None:
    """Who examines it may be slow, or at work for others."""

    async def main() -> None:
        async with Runtime(Config(name="t1")) as runtime:
            ping = function("ping", GATEWAY, share_counters=True)
            await runtime.prepare(ping)
            with stopped(runtime._networks._parts.pid):
                async with await runtime.start(ping) as instance:
                    assert (await instance.wait()).status == 0
                    assert returned(runtime) == 0
            while returned(runtime) < 1:
                await asyncio.sleep(0.01)

    on_host(main, 60)


@pytest.mark.parametrize("network", ["outbound", "none"])
def test_connections_that_are_over_are_bounded_in_each_network(
    function: Make, network: str
) -> None:
    """No limit counts the kernel's memory for them."""
    most = Path("/proc/sys/net/ipv4/tcp_max_tw_buckets")

    async def main() -> None:
        async with (
            Runtime(Config(name="t1")) as runtime,
            await runtime.start(function("hold", "600", network=network)) as instance,
        ):
            assert in_network(instance.pid, most.read_text) == "8192\n"

    on_host(main)


async def ask(host: str, port: int) -> bytes:
    reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), 60)
    line = await reader.read(6)
    writer.close()
    return line


def test_published_port_reaches_instance_and_is_freed(function: Make) -> None:
    async def main() -> None:
        async with Runtime(Config(name="t1")) as runtime:
            listen = function("listen", "7777", ready="listening", ports={8080: 7777})
            async with await runtime.start(listen) as instance:
                assert await ask(GATEWAY, 8080) == b"hello\n"
                assert await ask(str(instance.address), 7777) == b"hello\n"
                with pytest.raises(Failed, match="port 8080 is already published for"):
                    await runtime.start(listen)
                assert await ask(GATEWAY, 8080) == b"hello\n"
            with socket.create_server(("", 8080)), pytest.raises(Failed, match="in use"):
                await runtime.start(listen)
            async with await runtime.start(listen):
                assert await ask(GATEWAY, 8080) == b"hello\n"

    on_host(main)


def test_port_is_withdrawn_before_address_reuse(
    function: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a helper cannot be started, for want of a pid."""
    tries: list[object] = []

    async def failing_twice(self: Firewall, ports: object) -> None:
        tries.append(ports)
        if len(tries) < 3:
            raise Failed("cannot withdraw a port")
        await withdraw(self, ports)  # type: ignore[arg-type]

    withdraw = Firewall.withdraw
    monkeypatch.setattr(Firewall, "withdraw", failing_twice)

    async def main() -> None:
        async with Runtime(Config(name="t1")) as runtime:
            listen = function("listen", "7777", ready="listening", ports={8080: 7777})
            await (await runtime.start(listen)).stop()
            assert len(tries) == 3
            assert not runtime.running()
            async with await runtime.start(listen):
                assert await ask(GATEWAY, 8080) == b"hello\n"

    on_host(main)


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({"rootfs": "/nowhere"}, "/nowhere is not a directory"),
        ({"command": ("/bin/none",)}, "has no /bin/none"),
        ({"command": ("/bin/text",)}, "is neither a program"),
        ({"command": ("sbin/escape",)}, "has no sbin/escape"),
        ({"command": ("none",)}, "no directory of PATH in the root file system"),
        ({"command": ("/bin/escape", "x" * 200_000)}, "a word of 200000 bytes"),
        ({"command": ("/bin/escape", *["x" * 100_000] * 21)}, "and its environment are 2100"),
        ({"command": ("x" * 300,)}, "File name too long"),
        ({"command": ("/" + "x" * 5000,)}, "File name too long"),
        ({"directory": "/none"}, "has no directory /none to work in"),
        ({"directory": "/" + "x/" * 3000}, "File name too long"),
        ({"rootfs": "/" + "x" * 5000}, "File name too long"),
        ({"memory": 4096}, "too small: 4096 bytes"),
        ({"cpus": 0.0}, "the CPU limit 0.0"),
        ({"uid": 0}, "cannot run as root"),
        ({"network": "all"}, "unknown network 'all'"),
        ({"ready": "never", "timeout": 0.2}, "was not ready in 0.2 s"),
        ({"ready": "never", "command": ("/bin/escape",)}, "ended before it was ready"),
    ],
)
def test_bad_function_fails_alone(
    function: Make, escape: Path, bad: dict[str, object], expected: str
) -> None:
    async def main() -> None:
        good = function("hold", "0")
        wrong: dict[str, object] = {"rootfs": str(escape), "command": ("/bin/escape", "hold", "60")}
        async with Runtime(Config(name="t1")) as runtime:
            with pytest.raises(FirstlightError) as caught:
                await runtime.start(Function(**(wrong | bad)))  # type: ignore[arg-type]
            assert expected in caught.value.message
            async with await runtime.start(good) as instance:
                assert (await instance.wait()).status == 0
            assert not runtime.running()

    on_host(main)


def test_names_of_variables_are_looked_at_in_every_start(function: Make) -> None:
    async def main() -> None:
        async with Runtime(Config(name="t1")) as runtime:
            await runtime.start(function("hold", "0"))
            for name in ("", "A=B"):
                with pytest.raises(Failed, match="cannot name a variable"):
                    await runtime.start(function("hold", "0", env={name: "x"}))

    on_host(main)


def test_start_refuses_more_than_maximum_instances(function: Make) -> None:
    async def main() -> None:
        hold = function("hold", "60")
        async with Runtime(Config(name="t1", instances=2)) as runtime:
            first, second = await runtime.start(hold), await runtime.start(hold)
            with pytest.raises(Failed, match="number of instances and sandboxes"):
                await runtime.start(hold)
            assert (await first.stop()).signal == 9
            third = await runtime.start(hold)
            await asyncio.gather(second.stop(), third.stop())

    on_host(main)


def test_an_exhausted_address_range_says_so_and_recovers(function: Make) -> None:
    async def main() -> None:
        pools = Pools(network=PoolSize(low=0, high=0))
        config = Config(name="t1", network=NetworkConfig(range="10.9.0.0/29"), pools=pools)
        hold = function("hold", "60")
        async with Runtime(config) as runtime:
            up = [await runtime.start(hold), await runtime.start(hold)]
            with pytest.raises(Failed, match="range is exhausted"):
                await runtime.start(hold)
            await up.pop().stop()
            up.append(await runtime.start(hold))
            await asyncio.gather(*(instance.stop() for instance in up))

    on_host(main)


def test_runtime_refuses_address_range_of_host() -> None:
    async def main() -> None:
        subprocess.run("ip link add used type bridge && ip addr add 10.213.9.1/24 dev used && "
                       "ip link set used up", shell=True, check=True)  # fmt: skip
        with pytest.raises(Failed, match=r"overlaps the host's route 10\.213\.9\.0/24"):
            async with Runtime(Config(name="t1")):
                pass
        tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
        assert "firstlight" not in tables

    on_host(main)


def test_two_runtimes_of_one_name_do_not_meet() -> None:
    async def main() -> None:
        async with Runtime(Config(name="t1")):
            with pytest.raises(Failed, match="another runtime uses"):
                async with Runtime(Config(name="t1")):
                    pass

    on_host(main)


def test_second_runtime_of_name_is_refused_by_any_state(function: Make, tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            Runtime(Config(name="t1")) as runtime,
            await runtime.start(function("hold", "60")) as instance,
        ):
            with pytest.raises(Failed, match="already exists"):
                async with Runtime(Config(name="t1", state=str(tmp_path))):
                    pass
            assert list(tmp_path.iterdir()) == []
            assert not instance.ended.done()
            async with await runtime.start(function("ping", GATEWAY)) as ping:
                assert ping.stdout
                assert await ping.stdout.all() == b"answered\n"

    on_host(main)


@pytest.mark.parametrize(
    ("make", "look"),
    [
        ("nft add table inet firstlight_t1", "nft list table inet firstlight_t1"),
        ("ip link add flt1 type bridge", "ip link show flt1"),
        ("mkdir {pids}/firstlight.agile.t1", "rmdir {pids}/firstlight.agile.t1"),
    ],
    ids=["table", "link", "cgroup"],
)
def test_what_has_a_runtimes_name_and_is_not_its_own_stays(make: str, look: str) -> None:
    async def main() -> None:
        pids = pids_hierarchy()
        subprocess.run(make.format(pids=pids), shell=True, check=True)
        with pytest.raises(Failed, match="already exists"):
            async with Runtime(Config(name="t1")):
                pass
        subprocess.run(look.format(pids=pids), shell=True, check=True)

    on_host(main)


def test_link_that_comes_before_its_own_stays_as_it_is() -> None:
    async def main() -> None:
        networks = Networks(Config(name="t1"))
        networks.check()
        subprocess.run("ip link add flt1 type bridge", shell=True, check=True)
        with pytest.raises(Failed, match="File exists"):
            await networks.open()
        networks.close()
        shown = subprocess.run(
            ["ip", "-br", "address", "show", "flt1"], capture_output=True, check=True
        )
        assert shown.stdout.split() == [b"flt1", b"DOWN"]

    on_host(main)


def test_umask_returns_with_last_runtime() -> None:
    async def main() -> None:
        before = os.umask(0o077)
        try:
            other = Config(name="t2", network=NetworkConfig(range="10.214.0.0/16"))
            first, last = Runtime(Config(name="t1")), Runtime(other)
            await first.__aenter__()
            async with last:
                with pytest.raises(Failed, match="another runtime uses"):
                    await Runtime(Config(name="t1")).__aenter__()
                await first.__aexit__(None, None, None)
                assert os.umask(0o022) == 0o022
            assert os.umask(before) == 0o077
        finally:
            os.umask(before)

    on_host(main)


def test_outbound_is_masqueraded_and_internal_closed(
    function: Make,
) -> None:
    """Another namespace plays the world."""
    world = """
        ip netns add firstlight-world-$$ && echo $$
        ip link add uplink type veth peer name eth0 netns firstlight-world-$$
        ip addr add 198.51.100.1/24 dev uplink && ip link set uplink up
        ip -n firstlight-world-$$ addr add 198.51.100.2/24 dev eth0
        ip -n firstlight-world-$$ link set eth0 up
    """

    async def main() -> None:
        made = subprocess.run(world, shell=True, check=True, capture_output=True, text=True)
        name = f"firstlight-world-{made.stdout.strip()}"
        try:
            async with Runtime(Config(name="t1")) as runtime:
                message = {}
                for network in ("outbound", "internal", "none"):
                    ping = function("ping", "198.51.100.2", network=network)
                    async with await runtime.start(ping) as instance:
                        assert instance.stdout is not None
                        message[network] = await instance.stdout.all()
                        await instance.wait()
                assert message == {
                    "outbound": b"answered\n",
                    "internal": b"Connection timed out\n",
                    "none": b"Network is unreachable\n",
                }
                assert not returned(runtime), "a network whose connections the host tracks was kept"
        finally:
            subprocess.run(["ip", "netns", "delete", name], check=True)

    on_host(main)


async def start_many(runtime: Runtime, function: Function, up: list[Instance]) -> None:
    for _ in range(200):
        up += [await runtime.start(function)]


def test_a_network_is_usable_from_its_first_packet(function: Make) -> None:
    """The kernel activates a link's queue a while after its carrier."""

    async def main() -> None:
        pools = Pools(network=PoolSize(low=0, high=0))
        async with Runtime(Config(name="t1", pools=pools)) as runtime:
            for _ in range(15):
                async with await runtime.start(function("ping", GATEWAY)) as instance:
                    assert instance.stdout is not None
                    assert await instance.stdout.all() == b"answered\n"

    on_host(main)


def test_exhausted_descriptors_are_an_error_and_cost_nothing(function: Make) -> None:
    async def main() -> None:
        hold = function("hold", "60")
        async with Runtime(Config(name="t1")) as runtime:
            await (await runtime.start(hold)).stop()
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            up: list[Instance] = []
            try:
                open_now = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
                resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 10, hard))
                with pytest.raises(Failed, match=r"descriptor|open file|Too many"):
                    await start_many(runtime, hold, up)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await asyncio.gather(*(each.stop() for each in up))
            async with await runtime.start(hold) as instance:
                assert instance.pid > 0
            assert not runtime.running()

    on_host(main)


def test_nothing_is_left_of_a_runtime_that_has_ended(function: Make) -> None:
    async def main() -> None:
        config = Config(name="t1", pools=WHOLE)
        async with Runtime(config) as runtime:
            await runtime.prepare(function("hold", "60"), 2)
            await runtime.start(function("hold", "60"))
        links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout
        assert [line for line in links.splitlines() if "flt1" in line] == []
        assert not config.directory.exists()
        tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
        assert "firstlight" not in tables

    on_host(main)


def test_pools_that_nobody_needs_any_more_become_small(function: Make) -> None:
    size = PoolSize(low=1, high=6)
    pools = Pools(network=size, cgroup=size, sandbox=size, window=0.2)
    names = ("network outbound", "cgroup", "sandbox")

    async def main() -> None:
        async with Runtime(Config(name="t1", pools=pools)) as runtime:
            ready = dict[str, int]()

            async def settled() -> None:
                while [ready.get(name) for name in names] != [1, 2, 1]:
                    await asyncio.sleep(0.05)
                    ready.update({pool.name: pool.ready for pool in runtime.pools()})

            hold = function("hold", "60")
            await runtime.prepare(hold, 6)
            running = [await runtime.start(hold) for _ in range(4)]
            # A sandbox that waits has a cgroup, and one more is ready.
            await asyncio.wait_for(settled(), 60)
            assert len(runtime.running()) == 4
            hits = {pool.name: pool.hits for pool in runtime.pools()}
            assert hits["cgroup"] == hits["sandbox"] == 4, "what ended unused was not taken"
            async with await runtime.start(hold) as last:
                assert last.warm
            for instance in running:
                await instance.stop()
            await asyncio.wait_for(settled(), 60)

    on_host(main)


@pytest.mark.parametrize("more", [{"user_namespace": True}, {"terminals": True}])
def test_file_limit_below_node_use_allows_start(function: Make, more: dict[str, bool]) -> None:
    async def main() -> None:
        async with Runtime(Config(name="t1")) as runtime:
            assert len(list(Path(f"/proc/{runtime.node}/fd").iterdir())) > 8
            async with await runtime.start(function("hold", "0", files=8, **more)) as instance:
                assert (await instance.wait()).status == 0

    on_host(main)
