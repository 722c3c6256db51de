"""The host's packet filter for pods, as one nft table.

Pods reach each other, the cluster and the world. They do not reach what ``pods.closed`` lists (by
default the clouds' metadata services), nor the node's own sockets, except ``pods.node_services``.
Traffic that kube-proxy or portmap redirects to the node does not count as the node's own.
"""

import socket
from collections.abc import Iterable

from firstlight.agile.config import PodsConfig
from firstlight.agile.network import nethelper
from firstlight.agile.network.nethelper import NetHelper

_TABLE = """
table inet {table} {{
  set closed {{ type ipv4_addr; flags interval; auto-merge; {closed} }}
  set closed6 {{ type ipv6_addr; flags interval; auto-merge; {closed6} }}
  set inside {{ type ipv4_addr; flags interval; auto-merge; {inside} }}
  set inside6 {{ type ipv6_addr; flags interval; auto-merge; {inside6} }}
  set services {{ type inet_proto . inet_service; {services} }}
  chain raw {{
    type filter hook prerouting priority raw; policy accept;
    iifname "{links}*" fib saddr . iif oif missing drop
    iifname "{links}*" ip daddr @closed drop
    iifname "{links}*" ip6 daddr @closed6 drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{links}*" jump to_host
  }}
  chain to_host {{
    ct state established,related accept
    meta l4proto {{ {icmp}, {icmp6} }} accept
    ct status dnat accept
    meta l4proto . th dport @services accept
    {otherwise}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    iifname "{links}*" oifname != "{links}*" jump leaving
  }}
  chain leaving {{
    ip daddr @inside accept
    ip6 daddr @inside6 accept
    {masquerade}
  }}
}}
"""


def text(config: PodsConfig, table: str, links: str) -> str:
    """The table's rules; ``links`` is the prefix of the names of pods' links."""
    inside = [*config.cluster, config.range, *([config.range6] if config.range6 else [])]
    return _TABLE.format(
        table=table, links=links,
        closed=_elements(a for a in config.closed if ":" not in a),
        closed6=_elements(a for a in config.closed if ":" in a),
        inside=_elements(a for a in inside if ":" not in a),
        inside6=_elements(a for a in inside if ":" in a),
        services=_elements(_service(each) for each in config.node_services),
        icmp=socket.IPPROTO_ICMP, icmp6=socket.IPPROTO_ICMPV6,
        otherwise="accept" if config.node == "open" else "drop",
        masquerade="masquerade" if config.masquerade else "accept",
    )  # fmt: skip


async def tables(helper: NetHelper) -> set[str]:
    """The names of the host's inet tables. Raises Failed."""
    answer = await helper.ask(nethelper.rules("list tables inet"))
    listing = nethelper.read_rules(answer, "list tables")
    return {entry["table"]["name"] for entry in listing if "table" in entry}


async def replace(helper: NetHelper, table: str, rules: str) -> None:
    """Replace the table of this name in one transaction. Raises Failed."""
    commands = f"table inet {table}\ndelete table inet {table}\n{rules}"
    answer = await helper.ask(nethelper.rules(commands))
    nethelper.read_rules(answer, f"make the table {table}")


def remove(table: str) -> None:
    """Remove the table, if it exists. Blocks. Raises Failed."""
    commands = f"table inet {table}\ndelete table inet {table}"
    [answer] = nethelper.ask_once(nethelper.rules(commands))
    nethelper.read_rules(answer, f"remove the table {table}")


def _service(text: str) -> str:
    """A service in numbers: for names nft needs /etc/protocols, which an image may lack."""
    protocol, _, port = text.partition("/")
    return f"{socket.IPPROTO_TCP if protocol == 'tcp' else socket.IPPROTO_UDP} . {port}"


def _elements(parts: Iterable[str]) -> str:
    text = ", ".join(parts)
    return f"elements = {{ {text} }};" if text else ""
