"""Pods' networks: for each pod a routed veth pair and a namespace to enter.

They outlive the agent: a pod's link goes with its namespace, and the gateway's link and the table
stay until ``remove``. Networks that no pod uses end with the agent.
"""

import asyncio
import binascii
import errno
import logging
import os
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path

import msgspec

from firstlight.agile.config import Config
from firstlight.agile.network import forwarding, nethelper
from firstlight.agile.network.addresses import GONE_SECONDS, Addresses, Ring
from firstlight.agile.network.nethelper import Answer, Flag, NetHelper, Request, Verb
from firstlight.agile.network.rulewatch import RuleWatch
from firstlight.agile.pods import firewall, wire
from firstlight.errors import Failed

_HOST_MAC = bytes((2, 0x66, 0x6C, 0, 0, 1))  # every link has it; see native/agile/net_make.c
_MTU = 1500  # the kernel's default of a veth pair
_NO_IPV6 = IPv6Address(0)
_CREATE = "create its link"
_FORWARD = ("/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PodNetwork:
    """A prepared namespace with the address of that number in the range, and the answer that
    describes it.
    """

    number: int
    descriptor: int
    answer: bytes


class PodNetworks:
    """Makes networks in the pods' range, and manages the host's side of them."""

    def __init__(self, config: Config) -> None:
        self._config = config.pods
        self.range = IPv4Network(config.pods.range)
        self.range6 = IPv6Network(config.pods.range6) if config.pods.range6 else None
        self.anchor, self.table = f"fp{config.name}", f"firstlight_pods_{config.name}"
        self.links = f"{self.anchor}-"
        self.first = 1 << 29 | (binascii.crc32(config.name.encode()) & 0xFFF) << 16
        self._flags = Flag.WIRED | Flag.NEIGHBOURS | Flag.POD
        self._flags |= Flag.IPV6 if self.range6 else Flag(0)
        self._parts, self._host = NetHelper(), NetHelper()
        rings = {"pod": Ring(2, self.range.num_addresses - 1)}
        self.addresses = Addresses(self.range, rings, self.first, self._host, "pods.range")
        self._rules = firewall.text(self._config, self.table, self.links)
        self._watch = RuleWatch(self._mend)

    async def open(self) -> None:
        """Make the host's side, or take over an existing one. Raises Failed."""
        await self._open_gateway()
        await asyncio.to_thread(self._drop_old_gateways)
        self.forward()
        await firewall.replace(self._host, self.table, self._rules)
        await self._open_others()
        self._watch.open()

    async def _open_gateway(self) -> None:
        request = self._request(Verb.HOST, 0)._replace(
            flags=self._flags | Flag.OURS, address=self.range[1], link=self.anchor,
            address6=self.range6[1] if self.range6 else _NO_IPV6,
        )  # fmt: skip
        answer = await self._host.ask(request)
        if answer.error != errno.EEXIST:
            answer.check(f"make the link {self.anchor} for the gateway {self.range[1]}")

    def forward(self) -> bool:
        """Let the host forward packets; returns whether it did not. Raises Failed."""
        paths = _FORWARD if self.range6 else _FORWARD[:1]
        changed = [path for path in paths if _forward(Path(path))]
        return bool(changed)

    def _drop_old_gateways(self) -> None:
        """Remove the gateways of ranges that the node had before."""
        from pyroute2 import IPRoute, NetlinkError

        gateways = {str(range[1]) for range in (self.range, self.range6) if range}
        with IPRoute() as netlink:
            [index] = netlink.link_lookup(ifname=self.anchor)
            for entry in netlink.get_addr(index=index):
                address = entry.get_attr("IFA_ADDRESS")
                if address not in gateways and not ip_address(address).is_link_local:
                    with suppress(NetlinkError):  # another program removed it meanwhile
                        netlink.addr(
                            "del", index=index, address=address, prefixlen=entry["prefixlen"]
                        )

    async def show_to(self, others: Iterable[str]) -> None:
        """Do not masquerade pods' traffic to other nodes' ranges. Raises Failed."""
        cluster = tuple(dict.fromkeys((*self._config.cluster, *sorted(others))))
        config = msgspec.structs.replace(self._config, cluster=cluster)
        rules = firewall.text(config, self.table, self.links)
        before, self._rules = self._rules, rules
        if rules == before:
            return
        try:
            await firewall.replace(self._host, self.table, rules)
        except BaseException:
            self._rules = before
            raise

    async def make(self) -> PodNetwork:
        """Make a namespace with its link. Raises Failed."""
        number, answer = await self._make_link(Verb.MAKE, -1, "eth0")
        if answer.descriptor < 0:
            self.addresses.leave(number)
            raise Failed("cannot make a network: too many open files",
                         "raise the limit of open files, or lower pods.pool.high")  # fmt: skip
        return PodNetwork(number, answer.descriptor, self.answer(number))

    async def fill(self, namespace: int, interface: str) -> int:
        """Make a link in another program's namespace; returns its number. Raises Failed."""
        return (await self._make_link(Verb.FILL, namespace, interface))[0]

    async def _make_link(self, verb: Verb, descriptor: int, interface: str) -> tuple[int, Answer]:
        until, is_mended = time.monotonic() + GONE_SECONDS, False
        while True:
            number = await self.addresses.take("pod", until)
            try:
                request = self._request(verb, number)._replace(peer=interface)
                answer = await self._parts.ask(request, descriptor)
                is_taken = answer.error == errno.EEXIST and answer.step == _CREATE
                if is_taken and time.monotonic() < until:  # held by a link of the previous agent
                    self.addresses.leave(number)
                    continue
                answer.check(f"make the network of {self.range[number]}")
            except BaseException as error:
                self.addresses.leave(number)
                if is_mended or not isinstance(error, Failed):
                    raise
            else:
                return number, answer
            is_mended = True
            await self._open_gateway()  # another program may have removed it, or set it down

    def _request(self, verb: Verb, number: int) -> Request:
        return Request(
            verb, self._flags, self.first + number, self.range[number], self.range[1],
            f"{self.links}{number:04x}", mtu=self._config.mtu,
            address6=self.range6[number] if self.range6 else _NO_IPV6,
            gateway6=self.range6[1] if self.range6 else _NO_IPV6,
        )  # fmt: skip

    async def end(self, number: int) -> None:
        """Delete a pod's link, if it exists, and then free its address. Raises Failed."""
        link = f"{self.links}{number:04x}"
        answer = await self._host.ask(Request(Verb.REMOVE, link=link))
        answer.check(f"remove the link {link}")
        self.addresses.leave(number)

    def discard(self, network: PodNetwork) -> None:
        """Discard a prepared network."""
        os.close(network.descriptor)
        self.addresses.leave(network.number)

    def answer(self, number: int) -> bytes:
        """The answer that describes a network to the plugin."""
        return wire.Answer(
            flags=wire.Flag.IPV6 if self.range6 else wire.Flag(0),
            mtu=self._config.mtu or _MTU,
            address=self.range[number], gateway=self.range[1],
            address6=self.range6[number] if self.range6 else _NO_IPV6,
            gateway6=self.range6[1] if self.range6 else _NO_IPV6,
            mac=b"\x02\x66" + self.range[number].packed, host_mac=_HOST_MAC,
            link=f"{self.links}{number:04x}",
        ).encode()  # fmt: skip

    def linked(self) -> set[int]:
        """The numbers of the links that exist."""
        names = (name for _, name in socket.if_nameindex() if name.startswith(self.links))
        return {int(name[len(self.links) :], 16) for name in names}

    async def _open_others(self) -> None:
        async def run(commands: str, what: str) -> list[dict[str, object]]:
            return nethelper.read_rules(await self._host.ask(nethelper.rules(commands)), what)

        for warning in await forwarding.open_others(run, self.links, self.table, str(self.range)):
            _log.warning("%s", warning)
        await asyncio.to_thread(forwarding.open_legacy, self.links, self.table)

    async def _mend(self) -> None:
        try:
            if self.table not in await firewall.tables(self._host):
                await firewall.replace(self._host, self.table, self._rules)
                _log.warning("the table %s was removed by another program and is made again",
                             self.table)  # fmt: skip
        except Failed as error:
            _log.warning("the packet filter was changed and cannot be restored: %s", error.message)

    def close(self) -> None:
        """Keep the host's side for the next agent."""
        self.addresses.close()
        self._watch.close()
        self._parts.close()
        self._host.close()


def _forward(setting: Path) -> bool:
    """Raises Failed: in a container the setting cannot be written."""
    if setting.read_text().strip() != "0":
        return False
    try:
        setting.write_text("1")
    except OSError as error:
        raise Failed(f"this node does not forward pods' packets, and the agent cannot change that: "
                     f"{setting}: {error.strerror}",
                     f"set {'.'.join(setting.parts[3:])} to 1 on the node, in /etc/sysctl.d too"
                     ) from error  # fmt: skip
    return True


def remove(config: Config) -> None:
    """Remove the host's side, and with it the links of remaining pods. Blocks. Raises Failed."""
    anchor = f"fp{config.name}"
    table = f"firstlight_pods_{config.name}"
    forwarding.close_others(table)
    firewall.remove(table)
    links = [n for _, n in socket.if_nameindex() if n == anchor or n.startswith(f"{anchor}-")]
    requests = [Request(Verb.REMOVE, link=link) for link in links]
    for link, answer in zip(links, nethelper.ask_once(*requests), strict=True):
        answer.check(f"remove the link {link}")
