"""Instances' networks: routed veth pairs, everything preset, behind one nftables table.

Each instance has a link of its own to the host and no neighbour on it, so that nothing has to be
kept apart on a shared segment: what one may reach is decided where the host routes. A bridge
without ports holds the gateway's address; a bridge with them ends at 1,023 instances.
"""

import asyncio
import binascii
import errno
import os
import shutil
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from struct import Struct, pack
from typing import NamedTuple

from firstlight.agile import netlink
from firstlight.agile.config import Config
from firstlight.agile.function import Reach
from firstlight.agile.helper import Helper
from firstlight.errors import Failed, Unsupported

_MAKE, _LOOK, _HOST = 1, 2, 3
_ASK_HOST, _ASK, _WRITE, _READ, _COUNTS, _ABSENT = 1, 2, 3, 4, 5, 6
_REQUEST, _ACTION, _ANSWER = Struct("=IIQ"), Struct("=HHI"), Struct("=QQii")
_NAMESPACE_FD = 9  # NAMESPACE of native/spawn_net.c
_HOST_MAC, _INSTANCE_MAC = bytes.fromhex("02666c000001"), bytes.fromhex("02666c000002")
_LOOPBACK, _ETH0 = 1, 2
_GONE_SECONDS, _RETRY_SECONDS = 10.0, 0.01
_NOTHING_SEEN = 14695981039346656037

_SYSCTLS = {
    "/proc/sys/net/ipv6/conf/all/disable_ipv6": "1",
    "/proc/sys/net/ipv6/conf/default/disable_ipv6": "1",
    "/proc/sys/net/ipv4/ping_group_range": "0 2147483647",
    "/proc/sys/net/ipv4/ip_unprivileged_port_start": "0",
}
_SOCKETS = ("/proc/thread-self/net/sockstat", "/proc/thread-self/net/sockstat6")
_WATCHED = (
    *_SYSCTLS,
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/net/ipv4/ip_local_port_range",
    "/proc/sys/net/ipv4/tcp_congestion_control",
    "/proc/sys/net/core/somaxconn",
)

_TABLE = """
table inet {table} {{
  set outbound {{ type ipv4_addr; flags interval; elements = {{ {outbound} }} }}
  set services {{ type inet_proto . inet_service; {services} }}
  set talked {{ type ipv4_addr; flags dynamic,timeout; timeout 10m; size 65535; }}
  map published {{ type inet_service : ipv4_addr . inet_service; }}
  chain raw {{
    type filter hook prerouting priority raw; policy accept;
    iifname "{links}*" ip daddr {gateway} icmp type echo-request notrack
    iifname "{links}*" fib saddr . iif oif missing drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{links}*" ip daddr {gateway} icmp type echo-request accept
    iifname "{links}*" meta l4proto . th dport @services update @talked {{ ip saddr }} accept
    iifname "{links}*" ct state established,related accept
    iifname "{links}*" drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    oifname "{links}*" iifname "{links}*" drop
    iifname "{links}*" ct state established,related accept
    iifname "{links}*" ip saddr != @outbound drop
    iifname "{links}*" update @talked {{ ip saddr }} accept
    oifname "{links}*" ct state established,related accept
    oifname "{links}*" ct status dnat accept
    oifname "{links}*" drop
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname != "{links}*" fib daddr type local dnat ip to tcp dport map @published
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    ip daddr != 127.0.0.0/8 fib daddr type local dnat ip to tcp dport map @published
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr @outbound oifname != "{links}*" masquerade
  }}
}}
"""


class _Answer(NamedTuple):
    id: int
    digest: int
    error: int
    action: int  # the one of the script that failed
    descriptor: int


class _Taken(Exception):
    """The link's name or index is in use still, or the address in a connection."""


class _Ring:
    """Numbers from first to end, each handed out again as late as possible."""

    def __init__(self, first: int, end: int) -> None:
        self.first, self.end, self.size = first, end, end - first
        self._next, self._used = first, set[int]()

    def take(self) -> int:
        if len(self._used) == self.size:
            raise Failed("the address range is exhausted",
                         "stop instances, or configure a larger network.range")  # fmt: skip
        while self._next in self._used:
            self._step()
        number = self._next
        self._used.add(number)
        self._step()
        return number

    def give(self, number: int) -> None:
        self._used.discard(number)

    def _step(self) -> None:
        self._next = self._next + 1 if self._next + 1 < self.end else self.first


@dataclass(frozen=True)
class _Script:
    """Actions for the helper, encoded."""

    count: int
    body: bytes

    def __add__(self, other: "_Script") -> "_Script":
        return _Script(self.count + other.count, self.body + other.body)


@dataclass(eq=False)
class Network:
    """One instance's network namespace. ``address`` is None where it has no link."""

    descriptor: int
    address: IPv4Address | None
    digest: int


class Networks:
    """Makes networks, proves used ones clean, and keeps the host's side of them."""

    def __init__(self, config: Config) -> None:
        self.range = IPv4Network(config.network.range)
        self.gateway = self.range[1]
        self.table = f"firstlight_{config.name}"
        self.anchor = f"fl{config.name}"
        self.links = f"fl{config.name}-"
        self._services = config.network.host_services
        self._knows_neighbours = config.ahead.neighbours
        self._first = 1 << 28 | (binascii.crc32(config.name.encode()) & 0xFFF) << 16
        half = self.range.num_addresses // 2
        self._numbers = {
            "outbound": _Ring(2, half), "internal": _Ring(half, self.range.num_addresses - 1)
        }  # fmt: skip
        self._outbound = next(self.range.subnets(1))
        self._asked: dict[int, asyncio.Future[_Answer]] = {}
        self._serial = 0
        self._helper: Helper | None = None
        self._is_open = False
        self._published: dict[int, IPv4Address] = {}
        self._suspect: set[IPv4Address] = set()

    def check(self) -> None:
        """Raise Failed, Unsupported for what stands in the way; what is another's stays."""
        if not shutil.which("nft"):
            raise Unsupported("nft is not installed", "apt-get install nftables")
        self._check_overlap()
        listed = subprocess.run(["nft", "list", "table", "inet", self.table], capture_output=True)
        if not listed.returncode or self.anchor in (name for _, name in socket.if_nameindex()):
            raise Failed(f"the table {self.table} or the link {self.anchor} is there already",
                         "configure another name, or remove it if nothing uses it")  # fmt: skip

    async def open(self) -> None:
        """Make the host's side. Raises Failed."""
        self._is_open = True
        self._look = _script(
            *(_route(_ASK, request) for request in netlink.dumps()),
            *(_action(_COUNTS, 0, path.encode() + b"\0") for path in _SOCKETS),
            *(_action(_READ, 0, path.encode() + b"\0") for path in _WATCHED),
        )
        await self._do(
            _HOST,
            _script(
                _route(_ASK_HOST, netlink.bridge(self.anchor, self._first)),
                _route(_ASK_HOST, netlink.address(self._first, self.gateway)),
                _action(_WRITE, 0, b"/proc/sys/net/ipv4/ip_forward\0001\0"),
            ),
            f"make the link {self.anchor} for the gateway {self.gateway}",
        )
        services = ", ".join(s.replace("/", " . ") for s in self._services)
        _nft(
            _TABLE.format(
                table=self.table, outbound=self._outbound, links=self.links, gateway=self.gateway,
                services=f"elements = {{ {services} }};" if services else "",
            ),
            f"make the table {self.table}",
        )  # fmt: skip

    async def make(self, reach: Reach, owner: int = -1) -> Network:
        """A network namespace that is ready to be entered. Raises Failed.

        ``owner`` is the user namespace that it shall belong to, if that is not the host's.
        """
        if reach == "none":
            return await self._make(None, _script(*_sysctl_actions()), owner)
        numbers = self._numbers[reach]
        until = time.monotonic() + _GONE_SECONDS
        while True:
            number = numbers.take()
            try:
                return await self._make(self.range[number], self._wiring(number), owner)
            except _Taken:
                numbers.give(number)
                if time.monotonic() > until:
                    raise Failed(f"the links of {self.range} do not go",
                                 "configure a larger network.range") from None  # fmt: skip
                await asyncio.sleep(_RETRY_SECONDS)  # the kernel is ending the last of that number
            except BaseException:
                numbers.give(number)
                raise

    async def _make(self, address: IPv4Address | None, script: _Script, owner: int) -> Network:
        what = f"make the network of {address}"
        if address in self._suspect:
            if await self._is_tracked(address):
                raise _Taken(what)
            self._suspect.discard(address)
        answer = await self._do(_MAKE, script + self._look, what, owner)
        if answer.descriptor < 0:
            raise Failed(f"cannot {what}: no descriptor is left",
                         "raise the limit of open files, or stop instances")  # fmt: skip
        return Network(answer.descriptor, address, answer.digest)

    async def is_as_new(self, network: Network) -> bool:
        """Whether a namespace, its processes gone, reads as when it was made.

        Its addresses, routes, rules, neighbours, sockets and sysctls; and the host must have
        tracked no connection of its address. One that is not is suspect when it is discarded.
        """
        script = self._look
        if network.address is not None:
            talked = netlink.set_element(self.table, "talked", network.address)
            script += _script(_action(_ABSENT, netlink.NETFILTER, talked))
        try:
            answer = await self._do(_LOOK, script, "look", network.descriptor)
            clean = answer.digest == network.digest
        except Failed:
            clean = False
        if not clean and network.address is not None:
            self._suspect.add(network.address)
        return clean

    async def _is_tracked(self, address: IPv4Address) -> bool:
        """Whether the host tracks connections of a suspect address; it walks its whole table."""
        request = netlink.connections_from(address)
        answer = await self._do(
            _HOST, _script(_action(_ASK, netlink.NETFILTER, request)), "list connections"
        )
        return answer.digest != _NOTHING_SEEN

    def discard(self, network: Network) -> None:
        """End a namespace: with its last descriptor and process its link goes."""
        os.close(network.descriptor)
        if network.address is not None:
            number = int(network.address) - int(self.range[0])
            for numbers in self._numbers.values():
                if numbers.first <= number < numbers.end:
                    numbers.give(number)

    def publish(self, ports: dict[int, int], address: IPv4Address) -> None:
        """Lead ports of the host to ports of an instance. Raises Failed."""
        for port in ports:
            if port in self._published:
                raise Failed(f"port {port} is published for {self._published[port]}")
            with socket.socket(socket.AF_INET) as probe:
                try:
                    probe.bind(("0.0.0.0", port))  # noqa: S104 - only to see whether it is free
                except OSError as error:
                    raise Failed(f"port {port} cannot be published: {error.strerror}") from error
        if ports:
            elements = ", ".join(f"{h} : {address} . {i}" for h, i in ports.items())
            _nft(f"add element inet {self.table} published {{ {elements} }}", "publish a port")
            self._published.update(dict.fromkeys(ports, address))

    def withdraw(self, ports: dict[int, int], address: IPv4Address) -> None:
        """Undo publish, of those ports that lead to this address. Raises Failed."""
        mine = [port for port in ports if self._published.get(port) == address]
        if mine:
            elements = ", ".join(map(str, mine))
            _nft(f"delete element inet {self.table} published {{ {elements} }}", "withdraw a port")
        for port in mine:
            del self._published[port]

    def close(self) -> None:
        """Remove the host's side, if it was made."""
        if self._helper:
            self._helper.close()
        if self._is_open:
            remove(self.table, self.anchor)
        self._is_open = False

    def _wiring(self, number: int) -> _Script:
        index, address = self._first + number, self.range[number]
        link = netlink.veth(
            f"{self.links}{number:04x}", index, _HOST_MAC, "eth0", _ETH0, _INSTANCE_MAC,
            _NAMESPACE_FD,
        )  # fmt: skip
        neighbours = [
            _route(_ASK_HOST, netlink.neighbour(index, address, _INSTANCE_MAC)),
            _route(_ASK, netlink.neighbour(_ETH0, self.gateway, _HOST_MAC)),
        ]
        return _script(
            *_sysctl_actions(),
            _route(_ASK, netlink.link_up(_LOOPBACK)),
            _route(_ASK_HOST, link),
            _route(_ASK_HOST, netlink.link_up_without_ipv6(index)),
            _route(_ASK_HOST, netlink.route_host(index, address, self.gateway)),
            _route(_ASK, netlink.link_up(_ETH0)),
            _route(_ASK_HOST, netlink.link_settle(index)),
            _route(_ASK, netlink.address(_ETH0, address)),
            *(neighbours if self._knows_neighbours else ()),
            _route(_ASK, netlink.route_host(_ETH0, self.gateway)),
            _route(_ASK, netlink.route_default(_ETH0, self.gateway)),
        )

    async def _do(self, verb: int, script: _Script, what: str, descriptor: int = -1) -> _Answer:
        """What the helper answers. Raises Failed, _Taken."""
        if not self._is_open:
            raise Failed(f"cannot {what}: the runtime is not running")
        if self._helper is None:
            self._helper = Helper("spawn-net", self._heard, self._lost)
        self._serial += 1
        future: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._asked[self._serial] = future
        self._helper.send(
            _REQUEST.pack(verb, script.count, self._serial) + script.body,
            [descriptor] if descriptor >= 0 else [],
        )
        try:
            answer = await future
        except asyncio.CancelledError:
            _drop(future)
            raise
        if answer.error == errno.EEXIST and verb == _MAKE:
            raise _Taken(what)
        if answer.error:
            raise Failed(f"cannot {what}: {os.strerror(answer.error)} (action {answer.action})")
        return answer

    def _heard(self, message: bytes, descriptor: int) -> None:
        serial, digest, error, action = _ANSWER.unpack(message)
        answer = _Answer(serial, digest, error, action, descriptor)
        future = self._asked.pop(answer.id, None)
        if future and not future.done():
            future.set_result(answer)
        elif descriptor >= 0:
            os.close(descriptor)

    def _lost(self) -> None:
        """The helper was killed: what it was asked fails, and another takes its place."""
        if self._helper:
            self._helper.close()
        for future in self._asked.values():
            if not future.done():
                future.set_exception(Failed("the network helper was killed", "try again"))
        self._asked.clear()
        self._helper = None
        with suppress(Failed):  # then it is for the next request to try, and to tell
            self._helper = Helper("spawn-net", self._heard, self._lost)

    def _check_overlap(self) -> None:
        for line in Path("/proc/thread-self/net/route").read_text().splitlines()[1:]:
            words = line.split()
            to, mask = (IPv4Address(pack("=I", int(words[i], 16))) for i in (1, 7))
            route = IPv4Network(f"{to}/{mask}")
            if route.prefixlen and route.overlaps(self.range):
                raise Failed(
                    f"the address range {self.range} overlaps the host's route {route} "
                    f"on {words[0]}",
                    "configure another network.range",
                )


def remove(table: str, anchor: str) -> None:
    """Remove a runtime's table and its gateway's link, and wait until its other links are gone.

    Those go with their namespaces, which the kernel ends a while after their last process.
    """
    subprocess.run(["nft", "delete", "table", "inet", table], capture_output=True)
    subprocess.run(["ip", "link", "delete", anchor], capture_output=True)
    until = time.monotonic() + _GONE_SECONDS
    while time.monotonic() < until and any(
        name.startswith(f"{anchor}-") for _, name in socket.if_nameindex()
    ):
        time.sleep(_RETRY_SECONDS)


def _drop(future: "asyncio.Future[_Answer]") -> None:
    """Close the namespace in an answer that came just before its asker was cancelled."""
    if future.done() and not future.cancelled() and not future.exception():
        answer = future.result()
        if answer.descriptor >= 0:
            os.close(answer.descriptor)


def _script(*actions: bytes) -> _Script:
    return _Script(len(actions), b"".join(actions))


def _action(kind: int, family: int, body: bytes) -> bytes:
    return _ACTION.pack(kind, family, len(body)) + body + b"\0" * (-len(body) % 4)


def _route(kind: int, request: bytes) -> bytes:
    return _action(kind, netlink.ROUTE, request)


def _sysctl_actions() -> list[bytes]:
    return [_action(_WRITE, 0, f"{path}\0{value}\0".encode()) for path, value in _SYSCTLS.items()]


def _nft(script: str, what: str) -> None:
    try:
        done = subprocess.run(["nft", "-f", "-"], input=script, capture_output=True, text=True)
    except OSError as error:
        raise Failed(f"cannot {what}: nft cannot be executed: {error.strerror}",
                     "more pids and open files, or fewer instances") from error  # fmt: skip
    if done.returncode:
        raise Failed(f"cannot {what}: {done.stderr.strip()}")
