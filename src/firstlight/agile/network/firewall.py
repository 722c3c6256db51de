"""The host's packet filter for a runtime, as nft rules.

It is one table whose size is independent of the number of instances; published ports are elements
of a map. The host's runtimes share a guard, which restricts the forwarding that they turned on to
themselves. ``forwarding.py`` deals with other software's tables.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from firstlight.agile.config import NetworkConfig
from firstlight.agile.network import nethelper
from firstlight.agile.network.nethelper import NetHelper, Unanswered
from firstlight.errors import Failed, Unsupported

Listing = list[dict[str, Any]]
Run = Callable[[str, str], Awaitable[Listing]]
"""Runs nft commands for a purpose and returns what they list. Raises Failed."""

GUARD = "firstlight_guard"
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_log = logging.getLogger(__name__)

CLOSED = (
    "0.0.0.0/8",  # this network
    "10.0.0.0/8",
    "100.64.0.0/10",  # carrier-grade NAT; a cloud's metadata service (100.100.100.200)
    "127.0.0.0/8",
    "168.63.129.16/32",  # another cloud's
    "169.254.0.0/16",  # link-local; the others'
    "172.16.0.0/12",
    "192.0.0.0/24",  # protocol assignments; an older one
    "192.88.99.0/24",  # 6to4 relays
    "192.168.0.0/16",
    "198.18.0.0/15",  # benchmarks
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, and broadcast
)
"""Addresses that instances reach only if ``network.allow`` has them.

Sources: IANA's registry of special-purpose IPv4 addresses without what is globally reachable (and
without the three networks for documentation, where nothing is), and clouds' documentation.
"""

_TABLE = """
table inet {table} {{
  set outbound {{ type ipv4_addr; flags interval; elements = {{ {outbound} }}; }}
  set closed {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {closed} }}; }}
  set allowed {{ type ipv4_addr; flags interval; auto-merge; {allowed} }}
  set resolvers {{ type ipv4_addr; }}
  set services {{ type inet_proto . inet_service; {services} }}
  set opened {{ type ipv4_addr; size 65535; flags dynamic; }}
  set served {{ type ipv4_addr; size 65535; flags dynamic; }}
  set opening {{ type ipv4_addr; size 65535; flags dynamic,timeout; timeout 10s; }}
  map ports {{ type inet_service : ipv4_addr . inet_service; }}
  chain raw {{
    type filter hook prerouting priority raw; policy accept;
    iifname "{links}*" jump entering
  }}
  chain entering {{
    meta nfproto != ipv4 drop
    fib saddr . iif oif missing drop
    ip daddr 127.0.0.0/8 drop
    ip daddr {gateway} icmp type echo-request notrack
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{links}*" jump to_host
  }}
  chain to_host {{
    ip daddr {gateway} icmp type echo-request accept
    ct state established accept
    ct state related meta l4proto icmp accept
    meta l4proto . th dport @services jump limited
    drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{links}*" jump leaving
    oifname "{links}*" jump arriving
  }}
  chain leaving {{
    oifname "{links}*" drop
    ct state established accept
    ct state related meta l4proto icmp accept
    ip saddr != @outbound drop
    ip daddr @resolvers meta l4proto {{ tcp, udp }} th dport 53 jump limited
    ip daddr @closed ip daddr != @allowed drop
    meta nfproto ipv4 jump limited
    drop
  }}
  chain limited {{
    ct state != new drop
    {rate}
    {count}
    accept
  }}
  chain arriving {{
    ct state established accept
    ct state related meta l4proto icmp accept
    ct status dnat jump published
    drop
  }}
  chain published {{
    {count_served}
    accept
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname "{links}*" accept
    ip daddr != 127.0.0.0/8 fib daddr type local dnat ip to tcp dport map @ports
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    fib daddr type local dnat ip to tcp dport map @ports
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{links}*" ip saddr 127.0.0.0/8 snat ip to {gateway}
    ip saddr @outbound oifname != "{links}*" masquerade
  }}
}}
"""
_RATE = "update @opening {{ ip saddr limit rate over {rate}/second burst {rate} packets }} drop"
_COUNT = "add @{set} {{ ip {end} ct count over {connections} }} drop"
_WAIT_SECONDS = 120  # how long the kernel keeps an unanswered connection

_GUARD = """
table inet {guard} {{
  set ours {{ type ifname; flags interval; elements = {{ "{links}*" }}; }}
  chain forward {{
    type filter hook forward priority filter - 1; policy accept;
    meta nfproto ipv4 iifname != @ours oifname != @ours drop
  }}
}}
"""

_NEEDS = (
    ("nft_fib_inet", "chain c { type filter hook prerouting priority raw; "
                     "fib saddr . iif oif missing drop; }"),
    ("nft_ct", "chain c { type filter hook forward priority filter; ct state new accept; }"),
    ("nft_limit", "chain c { type filter hook forward priority filter; "
                  "limit rate over 1/second drop; }"),
    ("nft_nat", "chain c { type nat hook prerouting priority dstnat; "
                "meta l4proto tcp dnat ip to 192.0.2.1:80; }"),
    ("nft_masq", "chain c { type nat hook postrouting priority srcnat; masquerade; }"),
)  # fmt: skip


class Firewall:
    """The table of a runtime. ``links`` is the prefix of its instances' link names."""

    def __init__(
        self, config: NetworkConfig, table: str, links: str, gateway: IPv4Address,
        outbound: IPv4Network, helper: NetHelper,
    ) -> None:  # fmt: skip
        self._config, self.table, self._links = config, table, links
        self._gateway, self._outbound, self._helper = gateway, outbound, helper
        self._queue: list[tuple[str, str, asyncio.Future[None]]] = []
        self._sender: asyncio.Task[None] | None = None
        self._is_guarded = False
        self._resolvers: list[IPv4Address] = []

    async def open(self, adopt: bool = False) -> None:
        """Make the table, unless ``adopt`` finds it, and set up forwarding. Raises Failed."""
        tables = await self._tables()
        if not (adopt and self.table in tables):
            await self._make_table()
        self._is_guarded = GUARD in tables or not int(_FORWARD.read_text())
        if GUARD in tables:
            await self._join_guard(f"{self._links}*")
        elif self._is_guarded:
            await self.run(_GUARD.format(guard=GUARD, links=self._links), "guard what is forwarded")
            _FORWARD.write_text("1")

    async def mend(self, published: dict[int, tuple[IPv4Address, int]]) -> None:
        """Restore what another program removed, such as by "flush ruleset". Raises Failed."""
        tables = await self._tables()
        if self._is_guarded and GUARD not in tables:
            await self.run(_GUARD.format(guard=GUARD, links=self._links), "guard what is forwarded")
        if self.table in tables:
            return
        await self._make_table()
        resolvers, self._resolvers = self._resolvers, []
        await self.resolve_by(resolvers)
        if published:
            elements = ", ".join(f"{h} : {a} . {i}" for h, (a, i) in published.items())
            await self.run(f"add element inet {self.table} ports {{ {elements} }}", "publish ports")
        _log.warning(
            "the table %s was removed by another program and is restored: in between, instances "
            "could reach the host", self.table,
        )  # fmt: skip

    async def run(self, commands: str, what: str) -> Listing:
        """Run one transaction; returns what it lists. Raises Failed."""
        return nethelper.read_rules(await self._helper.ask(nethelper.rules(commands)), what)

    async def resolve_by(self, resolvers: list[IPv4Address]) -> None:
        """Allow instances with an outbound network to reach these resolvers, even in closed ranges.
        Raises Failed.
        """
        if resolvers == self._resolvers:
            return
        commands = [f"flush set inet {self.table} resolvers"]
        if addresses := ", ".join(str(resolver) for resolver in dict.fromkeys(resolvers)):
            commands.append(f"add element inet {self.table} resolvers {{ {addresses} }}")
        await self.run("\n".join(commands), "let instances reach the resolvers")
        self._resolvers = resolvers

    async def publish(self, ports: dict[int, int], address: IPv4Address) -> None:
        """Forward ports of the host to ports of an instance. Raises Failed."""
        elements = ", ".join(f"{h} : {address} . {i}" for h, i in ports.items())
        await self._run_batched(
            f"add element inet {self.table} ports {{ {elements} }}", "publish a port"
        )

    async def withdraw(self, ports: Iterable[int]) -> None:
        """Stop forwarding these ports. Raises Failed."""
        elements = ", ".join(map(str, ports))
        await self._run_batched(
            f"delete element inet {self.table} ports {{ {elements} }}", "withdraw a port"
        )

    async def _tables(self) -> set[str]:
        listing = await self.run("list tables inet", "list tables")
        return {entry["table"]["name"] for entry in listing if "table" in entry}

    async def _join_guard(self, links: str) -> None:
        try:
            await self.run(f'add element inet {GUARD} ours {{ "{links}" }}', "join the guard")
        except Unanswered:
            raise
        except Failed:  # nft 1.0.6 takes some names that end in a star for overlapping
            listing = await self.run(f"list set inet {GUARD} ours", "read the guard")
            await self.run(_guarded({*_members(listing), links}), "join the guard")

    async def _make_table(self) -> None:
        rate, count = self._config.connection_rate, _COUNT
        try:
            await self._load(self._text(rate, count))
        except Unanswered:
            raise
        except Failed as error:
            await self._explain(error)
            rate = max(1, min(rate, self._config.connections // _WAIT_SECONDS))
            await self.run(self._text(rate, ""), f"make the table {self.table}")
            _log.warning(
                "the kernel cannot count connections, so an instance opens at most %d a second; "
                "modprobe nft_connlimit", rate,
            )  # fmt: skip

    async def _load(self, table: str) -> None:
        """Make the table, whose modules a slow kernel takes long to load: it goes on meanwhile.

        A killed helper may have made it all the same, and making it again adds its rules twice.
        """
        anew = f"table inet {self.table}\ndelete table inet {self.table}\n{table}"
        for tries in (2, 1, 0):
            try:
                await self.run(table, f"make the table {self.table}")
            except Unanswered:
                if not tries:
                    raise
                table = anew
            else:
                return

    async def _explain(self, failure: Failed) -> None:
        """Raise Unsupported if the kernel lacks a module that the table needs."""
        for module, chain in _NEEDS:
            try:
                scratch = f"table inet {self.table}_try"
                await self.run(f"{scratch} {{ {chain}\n}}\ndelete {scratch}", "try a rule")
            except Unanswered:
                raise
            except Failed:
                raise Unsupported(
                    f"the kernel lacks {module}, which the packet filter needs ({failure.message})",
                    f"modprobe {module}, or build it into the kernel",
                ) from failure

    def _text(self, rate: int, count: str) -> str:
        config = self._config
        services = ", ".join(s.replace("/", " . ") for s in config.host_services)
        limits = {"connections": config.connections}
        return _TABLE.format(
            table=self.table, links=self._links, gateway=self._gateway, outbound=self._outbound,
            closed=", ".join(CLOSED), allowed=_elements(", ".join(config.allow)),
            services=_elements(services), rate=_RATE.format(rate=rate),
            count=count.format(set="opened", end="saddr", **limits),
            count_served=count.format(set="served", end="daddr", **limits),
        )  # fmt: skip

    async def _run_batched(self, commands: str, what: str) -> None:
        """Run commands, batched with those that arrive meanwhile, because each transaction waits
        for RCU.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((commands, what, future))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.get_running_loop().create_task(self._send())
        await future

    async def _send(self) -> None:
        while self._queue:
            batch, self._queue = self._queue, []
            failure = await self._try("\n".join(commands for commands, _, _ in batch), batch[0][1])
            for commands, what, future in batch:
                if failure and len(batch) > 1:  # retried alone, the faulty one fails by itself
                    own = await self._try(commands, what)
                else:
                    own = failure
                if future.done():
                    continue
                if own:
                    future.set_exception(own)
                else:
                    future.set_result(None)

    async def _try(self, commands: str, what: str) -> Failed | None:
        try:
            await self.run(commands, what)
        except Failed as failure:
            return failure
        return None


def remove(table: str, links: str) -> None:
    """Remove a runtime's table; after the last, also the guard, and turn forwarding off. Waits."""
    tables = _tables_now()
    if GUARD in tables:
        _leave_guard(f"{links}*")
    if table in tables:
        _run_now(f"delete table inet {table}", f"remove the table {table}")


def _leave_guard(links: str) -> None:
    others = _members(_run_now(f"list set inet {GUARD} ours", "read the guard")) - {links}
    if others:  # nft 1.0.6 deletes no name that ends in a star
        _run_now(_guarded(others), "leave the guard")
        return
    if int(_FORWARD.read_text()) == 1:
        _FORWARD.write_text("0")
    _run_now(f"delete table inet {GUARD}", "remove the guard")


def _members(listing: Listing) -> set[str]:
    [members] = [entry["set"].get("elem", []) for entry in listing if "set" in entry]
    return set(members)


def _guarded(members: set[str]) -> str:
    names = ", ".join(f'"{member}"' for member in sorted(members))
    return f"flush set inet {GUARD} ours; add element inet {GUARD} ours {{ {names} }}"


def has_table(table: str) -> bool:
    """Whether there is an inet table of that name. Raises Failed."""
    return table in _tables_now()


def _tables_now() -> set[str]:
    listing = _run_now("list tables inet", "list tables")
    return {entry["table"]["name"] for entry in listing if "table" in entry}


def _run_now(commands: str, what: str) -> Listing:
    [answer] = nethelper.ask_once(nethelper.rules(commands))
    return nethelper.read_rules(answer, what)


def _elements(text: str) -> str:
    return f"elements = {{ {text} }};" if text else ""
