"""Instances' networks: routed veth pairs, fully preset, behind one nftables table.

Each instance has its own link to the host, so there is no shared segment to police: the host's
routing decides what an instance reaches. The gateway's address is on a bridge without ports; one
with ports would be limited to 1,023 instances.
"""

import asyncio
import binascii
import errno
import logging
import os
import socket
import time
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from struct import pack

from firstlight.agile.config import Config
from firstlight.agile.function import Reach
from firstlight.agile.network import firewall, forwarding, nethelper
from firstlight.agile.network.addresses import GONE_SECONDS, RETRY_SECONDS, Addresses, Ring
from firstlight.agile.network.firewall import Firewall
from firstlight.agile.network.nethelper import Answer, Flag, NetHelper, Request, Verb
from firstlight.agile.network.rulewatch import RuleWatch
from firstlight.errors import Failed

QUARANTINE_SECONDS = 0.05
"""How long a used network rests before it is examined, so that packets in flight arrive."""
_RESTS, _RESTS_TO_WASH = 4, 7
_SHARED_SECONDS = 0.1
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Network:
    """An instance's network namespace. ``address`` is None if it has no link.

    ``digest`` covers everything readable in it when it was new, except ``counters`` of packets and
    calls. ``quick`` covers what an instance without capabilities can change; the node checks that.
    """

    descriptor: int
    """-1 once it is destroyed."""
    address: IPv4Address | None
    digest: int
    counters: int = 0
    quick: int = 0
    listener: socket.socket | None = None
    """A server socket on its own loopback."""

    def take_listener(self) -> socket.socket:
        """Give its server socket to the caller."""
        assert self.listener
        listener, self.listener = self.listener, None
        return listener

    def note(self) -> bytes:
        """What identifies it in addition to its descriptor; see ``from_note``."""
        return f"{self.address or ''} {self.digest:x} {self.counters:x} {self.quick:x}".encode()

    @staticmethod
    def from_note(note: bytes, descriptor: int) -> "Network":
        """Restore a network from its note."""
        address, *numbers = note.decode().split(" ")
        where = IPv4Address(address) if address else None
        digest, counters, quick = (int(number, 16) for number in numbers)
        return Network(descriptor, where, digest, counters, quick)


class Networks:
    """Makes networks, proves used ones clean, and maintains the host's side."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.range = IPv4Network(config.network.range)
        self.gateway = self.range[1]
        self.table = f"firstlight_{config.name}"
        self.anchor = f"fl{config.name}"
        self.links = f"fl{config.name}-"
        self._flags = Flag.WIRED | (Flag.NEIGHBOURS if config.ahead.neighbours else Flag(0))
        self._first = 1 << 28 | (binascii.crc32(config.name.encode()) & 0xFFF) << 16
        half = self.range.num_addresses // 2
        self._parts, self._host = NetHelper(), NetHelper()
        rings = {"outbound": Ring(2, half), "internal": Ring(half, self.range.num_addresses - 1)}
        self._addresses = Addresses(self.range, rings, self._first, self._host, "network.range")
        self._firewall = Firewall(
            config.network, self.table, self.links, self.gateway,
            next(self.range.subnets(1)), self._host,
        )  # fmt: skip
        self._is_open = False
        self._published: dict[int, tuple[IPv4Address, int, socket.socket]] = {}
        self._watch = RuleWatch(self._mend)
        self._warned: set[str] = set()
        self._talked: list[IPv4Address] = []
        self._ending: asyncio.Task[None] | None = None

    def check(self) -> None:
        """Raise Failed if the host has something with this runtime's names."""
        self._check_overlap()
        has_link = self.anchor in (name for _, name in socket.if_nameindex())
        if has_link or firewall.has_table(self.table):
            raise Failed(f"the table {self.table} or the link {self.anchor} already exists",
                         "configure another name, or remove it if nothing uses it")  # fmt: skip

    async def open(self, adopt: bool = False) -> None:
        """Make the host's side; ``adopt`` takes over what exists. Raises Failed, Unsupported."""
        self._is_open = True
        flags = Flag.OURS if adopt else Flag(0)
        answer = await self._host.ask(
            Request(Verb.HOST, flags, self._first, self.gateway, link=self.anchor)
        )
        if not (adopt and answer.error == errno.EEXIST):
            self._is_open = answer.error != errno.EEXIST  # another's is not ours to remove
            answer.check(f"make the link {self.anchor} for the gateway {self.gateway}")
        await self._firewall.open(adopt)
        await self._open_others()
        await asyncio.to_thread(forwarding.open_legacy, self.links, self.table)
        self._watch.open()
        if not adopt:
            everything = [(self.range[0], self.range[-1], 0)]
            answer = await self._host.ask(nethelper.forget(everything))
            answer.check("end the connections of an earlier runtime")

    async def _open_others(self) -> None:
        run = self._firewall.run
        warnings = await forwarding.open_others(run, self.links, self.table, str(self.range))
        for warning in warnings:
            if warning not in self._warned:
                _log.warning("%s", warning)
        self._warned = set(warnings)

    async def resolve_by(self, resolvers: list[IPv4Address]) -> None:
        """Allow instances with an outbound network to reach these resolvers. Raises Failed."""
        await self._firewall.resolve_by(
            [resolver for resolver in resolvers if resolver != self.gateway]
        )

    async def _mend(self) -> None:
        """Restore the rules after another program, such as Docker, changed tables or chains."""
        try:
            await self._firewall.mend(
                {port: (address, inner) for port, (address, inner, _) in self._published.items()}
            )
            await self._open_others()
        except Failed as error:
            _log.warning("the packet filter was changed and cannot be restored: %s", error.message)

    async def adopt(self, network: Network, ports: dict[int, int] | None = None) -> None:
        """Take over a network and its published ports from a runtime that has ended."""
        if network.address is None:
            return
        self._addresses.hold(self._number(network.address))
        for port, inner in (ports or {}).items():
            self._published[port] = network.address, inner, _hold(port)

    async def make(self, reach: Reach, owner: int = -1) -> Network:
        """Make a network namespace that is ready to enter. Raises Failed.

        ``owner`` is its owning user namespace, if not the host's.
        """
        if reach == "none":
            return await self._make(Request(Verb.MAKE), None, owner)
        until = time.monotonic() + GONE_SECONDS
        while True:
            number = await self._addresses.take(reach, until)
            request = Request(
                Verb.MAKE, self._flags, self._first + number, self.range[number], self.gateway,
                f"{self.links}{number:04x}",
            )  # fmt: skip
            try:
                return await self._make(request, self.range[number], owner)
            except FileExistsError:  # the link of a killed runtime, which the kernel is removing
                self._leave(number)
                if time.monotonic() > until:
                    raise Failed(f"old links of {self.range} do not disappear",
                                 "configure a larger network.range") from None  # fmt: skip
            except BaseException:
                self._leave(number)
                raise

    async def _make(self, request: Request, address: IPv4Address | None, owner: int) -> Network:
        self._check_open()
        answer = await self._parts.ask(request, owner)
        if answer.error == errno.EEXIST:
            raise FileExistsError
        what = f"make the network of {address}" if address else "make an empty network"
        answer.check(what)
        if answer.descriptor < 0:
            raise Failed(f"cannot {what}: too many open files",
                         "raise the limit of open files, or stop instances")  # fmt: skip
        return Network(
            answer.descriptor, address, answer.digest, answer.counters, answer.quick
        )  # fmt: skip

    async def is_as_new(self, network: Network) -> bool:
        """Whether a namespace without processes reads as new.

        It rests first. Then it must have passed no packet, and everything readable must be
        unchanged: counters, sockets, addresses, routes and their exceptions, rules, neighbours,
        sysctls, IPsec, packet filters.
        """
        answer = await self._look(network)
        return answer is not None and (
            (answer.digest, answer.counters) == (network.digest, network.counters)
        )

    async def wash(self, network: Network) -> bool:
        """Remove what traffic left in a namespace without processes, except counters.

        Returns whether the rest reads as new. If so, later checks compare with its counters of now.
        """
        try:
            self._check_open()
            (await self._parts.ask(Request(Verb.WASH), network.descriptor)).check("wash")
            if network.address:
                await self._end_connections(network.address)
        except Failed:
            return False
        answer = await self._look(network, _RESTS_TO_WASH)
        if answer is None or answer.digest != network.digest:
            return False
        network.counters, network.quick = answer.counters, answer.quick
        return True

    async def _look(self, network: Network, rests: int = _RESTS) -> Answer | None:
        """The digests of a namespace that has rested, each time twice as long. A closed socket is
        in it until the kernel's next grace period has ended, on a busy host for seconds.
        """
        for times in range(rests):
            await asyncio.sleep(QUARANTINE_SECONDS * 2**times)
            try:
                self._check_open()
                answer = await self._parts.ask(Request(Verb.CHECK), network.descriptor)
            except Failed:
                return None
            if answer.error != errno.EBUSY:
                return None if answer.error else answer
        return None

    async def _end_connections(self, address: IPv4Address) -> None:
        """End its tracked connections; concurrent calls share a pass. Raises Failed."""
        self._talked.append(address)
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._end_all_connections())
        await asyncio.shield(self._ending)

    async def _end_all_connections(self) -> None:
        await asyncio.sleep(_SHARED_SECONDS)
        talked, self._talked, self._ending = self._talked, [], None
        for at in range(0, len(talked), nethelper.RANGES_MAX):
            ranges = [(address, address, 0) for address in talked[at : at + nethelper.RANGES_MAX]]
            (await self._host.ask(nethelper.forget(ranges))).check("end connections")

    async def make_listening(self, reach: Reach, port: int, owner: int = -1) -> Network:
        """Make a network with a server socket on its own loopback. Raises Failed."""
        network = await self.make(reach, owner)
        try:
            request = Request(Verb.LISTEN, link_index=port)
            answer = (await self._parts.ask(request, network.descriptor)).check(f"listen at {port}")
            if answer.descriptor < 0:
                raise Failed(f"cannot listen at {port}: too many open files",
                             "raise the limit of open files, or stop instances")  # fmt: skip
        except BaseException:
            self.discard(network)
            raise
        network.listener = socket.socket(fileno=answer.descriptor)
        return network

    def discard(self, network: Network) -> None:
        """Destroy a namespace; its link goes with its last descriptor and process.

        Its address is reused once the host tracks no connection of it.
        """
        os.close(network.descriptor)
        network.descriptor = -1  # an examination may be under way
        if network.listener:
            network.listener.close()
        if network.address is not None:
            self._leave(self._number(network.address))

    async def publish(self, ports: dict[int, int], address: IPv4Address) -> None:
        """Forward ports of the host, on localhost too, to ports of an instance. Raises Failed."""
        for port in ports:
            if port in self._published:
                raise Failed(f"port {port} is already published for {self._published[port][0]}")
        if not ports:
            return
        held: dict[int, socket.socket] = {}
        try:
            for port in ports:
                held[port] = _hold(port)
            self._published.update(
                (port, (address, ports[port], sock)) for port, sock in held.items()
            )
            index = self._first + self._number(address)
            answer = await self._host.ask(Request(Verb.LOCALNET, body=pack("=i", index)))
            answer.check(f"lead localhost to {address}")
            await self._firewall.publish(ports, address)
        except BaseException:
            for port, sock in held.items():
                self._published.pop(port, None)
                sock.close()
            raise

    async def withdraw(self, ports: dict[int, int], address: IPv4Address) -> None:
        """Undo ``publish`` for the ports of this address. Raises Failed."""
        mine = [port for port in ports if self._published.get(port, (None,))[0] == address]
        if mine:
            await self._firewall.withdraw(mine)
        for port in mine:
            self._published.pop(port)[2].close()

    def close(self) -> None:
        """Remove the host's side, if it exists."""
        was_open = self._is_open
        self.leave()
        if was_open:
            remove(self.table, self.anchor)

    def leave(self) -> None:
        """Leave the host's side to the runtime that adopts it."""
        self._addresses.close()
        if self._ending:
            self._ending.cancel()
        self._watch.close()
        self._parts.close()
        self._host.close()
        for _, _, sock in self._published.values():
            sock.close()
        self._published.clear()
        self._is_open = False

    def _leave(self, number: int) -> None:
        if self._is_open:
            self._addresses.leave(number)

    def _number(self, address: IPv4Address) -> int:
        return int(address) - int(self.range[0])

    def _check_open(self) -> None:
        if not self._is_open:
            raise Failed("the runtime is not running")

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
    """Undo a runtime's changes of the host, and wait until its links are gone.

    Links go with their namespaces, which the kernel destroys with a delay.
    """
    forwarding.close_others(table)
    firewall.remove(table, f"{anchor}-")
    nethelper.ask_once(Request(Verb.REMOVE, link=anchor))[0].check(f"remove the link {anchor}")
    until = time.monotonic() + GONE_SECONDS
    while time.monotonic() < until and any(
        name.startswith(f"{anchor}-") for _, name in socket.if_nameindex()
    ):
        time.sleep(RETRY_SECONDS)


def _hold(port: int) -> socket.socket:
    """A socket that reserves a published port. Raises Failed."""
    sock = socket.socket(socket.AF_INET)
    try:
        sock.bind(("0.0.0.0", port))  # noqa: S104 - it does not listen
    except OSError as error:
        sock.close()
        raise Failed(f"cannot publish port {port}: {error.strerror}") from error
    return sock
