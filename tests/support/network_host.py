"""What the tests of instances' networks share: a host's neighbours, and programs inside them."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.agile_host import on_host

from firstlight.agile.config import Config, NetworkConfig
from firstlight.agile.network.networks import Network, Networks

PYTHON = sys.executable
CONNECT = """
import socket, sys
from concurrent.futures import ThreadPoolExecutor

port, seconds, *addresses = sys.argv[1:]

def is_reached(address):
    try:
        socket.create_connection((address, int(port)), timeout=float(seconds)).close()
    except OSError:
        return False
    return True

with ThreadPoolExecutor(len(addresses)) as threads:
    outcomes = zip(addresses, threads.map(is_reached, addresses))
    print(*[address for address, is_open in outcomes if is_open])
"""
OPEN, CLOSED = 30.0, 1.5
"""Seconds after which a connection is given up: one that is to be, and one that is not."""
SERVE = """
import socket, sys
listener = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((sys.argv[1], int(sys.argv[2])))
listener.listen(4096)
print("ready", flush=True)
held = []
while True:
    held.append(listener.accept()[0])
    held[-1].send(b"hello")
"""


def sh(script: str) -> str:
    """Run a script in this thread's namespaces; its standard output. Its failure is the test's."""
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True)
    assert not done.returncode, f"{script}\n{done.stderr}"
    return done.stdout


@dataclass
class Place:
    """A network namespace that a program can be run in, by a path to it."""

    path: str

    def command(self, *words: str) -> list[str]:
        return ["nsenter", f"--net={self.path}", *words]

    def run(self, *words: str) -> str:
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=60)
        assert not done.returncode, f"{words}\n{done.stderr}"
        return done.stdout.strip()

    def python(self, code: str, *words: str) -> str:
        return self.run(PYTHON, "-c", code, *words)

    def reached(self, *addresses: str, port: int, seconds: float = CLOSED) -> list[str]:
        """Those that it can connect to at that port."""
        return self.python(CONNECT, str(port), str(seconds), *addresses).split()

    def reaches(self, address: str, port: int) -> bool:
        return bool(self.reached(address, port=port, seconds=OPEN))

    def cannot_reach(self, address: str, port: int) -> bool:
        return not self.reached(address, port=port)

    @contextmanager
    def serving(self, address: str, port: int) -> Iterator[None]:
        with subprocess.Popen(
            self.command(PYTHON, "-c", SERVE, address, str(port)), stdout=subprocess.PIPE
        ) as server:
            assert server.stdout is not None
            try:
                assert server.stdout.readline() == b"ready\n"
                yield
            finally:
                server.kill()


def inside(network: Network) -> Place:
    """The place that an instance with this network is in."""
    return Place(f"/proc/{os.getpid()}/fd/{network.descriptor}")


HOST = Place("/proc/self/ns/net")


@contextmanager
def neighbour(link: str, host: str, *addresses: str) -> Iterator[Place]:
    """A machine beside the host, on a link of that name, with a default route to the host."""
    holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo up; exec sleep 300"],
                              stdout=subprocess.PIPE)  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        sh(f"""
            ip link add {link} type veth peer name eth0 netns {holder.pid}
            ip address add {host} dev {link}
            ip link set {link} up
        """)
        place = Place(f"/proc/{holder.pid}/ns/net")
        for address in addresses:
            place.run("ip", "address", "add", address, "dev", "eth0")
        place.run("ip", "link", "set", "eth0", "up")
        place.run("ip", "link", "set", "lo", "up")
        place.run("ip", "route", "add", "default", "via", host.partition("/")[0])
        yield place
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


@asynccontextmanager
async def networks(name: str = "tn", **config: Any) -> AsyncIterator[Networks]:
    """The host's side of a runtime of that name."""
    made = Networks(Config(name=name, network=NetworkConfig(**config)))
    made.check()
    try:
        await made.open()
        yield made
    finally:
        made.close()


def on_network_host(
    main: Callable[[Networks], Awaitable[None]], before: str = "", **config: Any
) -> None:
    """Run a test beside the host's side of a runtime, and see that nothing is left of it."""

    async def opened() -> None:
        sh("ip link set lo up\n" + before)
        was = state()
        files = len(list(Path("/proc/self/fd").iterdir()))
        async with networks(**config) as made:
            await main(made)
        await asyncio.sleep(0)
        assert state() == was
        assert len(list(Path("/proc/self/fd").iterdir())) == files

    on_host(opened)


def state() -> list[str]:
    """What a runtime changes of its host."""
    links = sh("ip -o link | cut -d: -f2").split()
    return [
        sh("nft -s list ruleset 2>/dev/null"),
        " ".join(link for link in links if link.startswith("fl")),
        Path("/proc/sys/net/ipv4/ip_forward").read_text(),
    ]  # fmt: skip
