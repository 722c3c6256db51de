"""The escape suite: run inside an instance, every attempt must fail, and the host stay well."""

import asyncio
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.agile_host import HERE, on_host

from firstlight.agile import Config, Function, Runtime
from firstlight.agile.config import NetworkConfig
from firstlight.agile.parts.cgroups import Cgroups

Make = Callable[..., Function]
GATEWAY = "10.213.0.1"
SOURCE = (HERE / "escape.c").read_text()
ATTEMPTS = set(re.findall(r'(?:FAILS|judge)\("([^"]+)"', SOURCE))


async def listening(port: int) -> asyncio.Server:
    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    return await asyncio.start_server(accept, "0.0.0.0", port)


async def attempts(function: Make, config: Config, **more: object) -> dict[str, str]:
    """What became of each attempt, beside a neighbour and a service of the host on port 7777."""
    async with Runtime(config) as runtime, await listening(7777):
        listen = function("listen", "7777", ready="listening")
        async with await runtime.start(listen) as neighbour:
            words = ("attempts", str(neighbour.address), GATEWAY, "7777")
            async with await runtime.start(function(*words, **more)) as instance:
                assert instance.stdout is not None
                lines = (await instance.stdout.all()).decode().splitlines()
                assert (await instance.wait()).status == 0
    assert lines[-1] == "all attempts made"
    return {line.partition(" ")[2]: line.partition(" ")[0] for line in lines[:-1]}


@pytest.mark.parametrize(
    "more",
    [{}, {"user_namespace": True}, {"network": "internal"}, {"reuse": "sandbox"}],
    ids=lambda m: next(iter(m), ""),
)
def test_nothing_gets_out(function: Make, more: dict[str, object]) -> None:
    message = on_host(lambda: attempts(function, Config(name="t2"), **more))
    assert message == dict.fromkeys(ATTEMPTS, "held")


def test_the_suite_would_see_a_host_service_that_is_open(function: Make) -> None:
    config = Config(name="t2", network=NetworkConfig(host_services=("tcp/7777",)))
    message = on_host(lambda: attempts(function, config))
    assert {name for name, became in message.items() if became != "held"} == {"host service"}


@pytest.mark.parametrize("more", [{}, {"reuse": "sandbox"}, {"user_namespace": True}])
def test_a_function_may_be_started_without_netlink(function: Make, more: dict[str, object]) -> None:
    async def main() -> None:
        async with Runtime(Config(name="t2")) as runtime:
            for netlink, words in (
                (False, b"Address family not supported by protocol\n"), (True, b"opened\n"),
            ):  # fmt: skip
                opens = function("netlink", netlink=netlink, **more)
                async with await runtime.start(opens) as instance:
                    assert instance.stdout is not None
                    assert await instance.stdout.all() == words

    on_host(main)


@pytest.mark.parametrize("reuse", ["network", "sandbox"])
def test_a_fork_bomb_ends_at_its_limit(function: Make, reuse: str) -> None:
    async def main() -> None:
        async with (
            Runtime(Config(name="t2")) as runtime,
            await runtime.start(function("forks", pids=20, reuse=reuse)) as instance,
        ):
            assert instance.stdout is not None
            assert await instance.stdout.all() == b"forks 20\n"
            await instance.wait()

    on_host(main)


@pytest.mark.parametrize("reuse", ["network", "sandbox"])
def test_a_memory_bomb_ends_alone(function: Make, reuse: str) -> None:
    async def main() -> None:
        async with (
            Runtime(Config(name="t2")) as runtime,
            await runtime.start(function("hold", "60", ready="holding")) as other,
            await runtime.start(function("memory", memory=16 << 20, reuse=reuse)) as bomb,
        ):
            ended = await bomb.wait()
            assert (ended.signal, ended.out_of_memory) == (9, True)
            assert not other.ended.done()

    on_host(main)


@pytest.mark.parametrize("memory", [16 << 20, 128 << 20], ids=["its own", "the usual"])
def test_what_waits_in_sockets_is_limited_as_memory_is(function: Make, memory: int) -> None:
    """By an account of its own on version 1; on version 2 by the one of all memory."""

    async def main() -> None:
        fills = function("sockets", ready="full", memory=memory, files=2000)
        async with (
            Runtime(Config(name="t2")) as runtime,
            await runtime.start(fills) as instance,
        ):
            group = Cgroups("firstlight.agile.t2").of(instance.pid)
            if not (file := group.memory / "memory.kmem.tcp.usage_in_bytes").exists():
                pytest.skip("the memory controller of cgroup version 1 is missing")
            assert memory // 2 < int(file.read_text()) <= memory

    on_host(main)


def test_instances_without_a_network_share_none(function: Make) -> None:
    async def main() -> None:
        async with Runtime(Config(name="t2")) as runtime:
            each, two = (
                function("hold", "60", network="none"),
                function("hold", "61", network="none"),
            )
            started = [await runtime.start(f) for f in (each, each, two)]
            networks = [Path(f"/proc/{i.pid}/ns/net").readlink() for i in started]
            networks.append(Path("/proc/thread-self/ns/net").readlink())
            assert len(set(networks)) == len(networks)
            await asyncio.gather(*(each.stop() for each in started))

    on_host(main)


def test_a_spoofed_source_does_not_leave(function: Make) -> None:
    """Even an instance that could give itself a neighbour's address could not use it."""
    config = Config(name="t2", network=NetworkConfig(host_services=("udp/7777",)))

    async def main() -> None:
        async with (
            Runtime(config) as runtime,
            await runtime.start(function("hold", "60", ready="holding")) as instance,
            await runtime.start(function("hold", "60", ready="holding")) as neighbour,
        ):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
                service.bind((GATEWAY, 7777))
                service.settimeout(0.5)

                def send(word: str, before: str = "true") -> None:
                    script = f"{before}; echo {word} > /dev/udp/{GATEWAY}/7777"
                    namespace = f"--net=/proc/{instance.pid}/ns/net"
                    subprocess.run(["nsenter", namespace, "bash", "-c", script], check=True)

                send("own")
                assert service.recv(64) == b"own\n"
                send(
                    "spoofed",
                    f"ip addr add {neighbour.address}/32 dev eth0; ip addr del "
                    f"{instance.address}/32 dev eth0; ip route replace {GATEWAY} dev eth0",
                )
                with pytest.raises(TimeoutError):
                    service.recv(64)

    on_host(main)
