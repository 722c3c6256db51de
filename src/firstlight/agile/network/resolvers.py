"""The resolv.conf of instances with an outbound network.

Instances use the host's resolvers, except those that listen on the host's loopback. If
``network.host_services`` has "udp/53", these also listen at the gateway, and instances use that
address. Otherwise instances use the servers that systemd-resolved asks. Layout: resolv.conf(5).
"""

from ipaddress import AddressValueError, IPv4Address
from pathlib import Path

from firstlight.agile.config import NetworkConfig

HOST = Path("/etc/resolv.conf")
_UPSTREAM = Path("/run/systemd/resolve/resolv.conf")
_MOST, _LINE_MOST = 3, 1024  # glibc reads at most three
_KEPT = ("search", "domain", "options")


def read(config: NetworkConfig, gateway: IPv4Address) -> tuple[list[IPv4Address], str]:
    """The resolvers of instances, and the file's text. May wait for the disk."""
    host = _lines(HOST)
    addresses = [IPv4Address(text) for text in config.resolvers] or _chosen(host, config, gateway)
    lines = [f"nameserver {address}" for address in addresses]
    lines += [line for line in host if line.split()[0] in _KEPT]
    if not addresses:
        lines = ["# The host has no resolver that an instance reaches: set network.resolvers."]
    return addresses, "".join(f"{line}\n" for line in lines)


def _chosen(host: list[str], config: NetworkConfig, gateway: IPv4Address) -> list[IPv4Address]:
    servers = _servers(host)
    beyond = [server for server in servers if not server.is_loopback]
    if len(beyond) < len(servers) and {"udp/53", "tcp/53"} & set(config.host_services):
        return [gateway, *beyond][:_MOST]
    if not beyond:
        beyond = [server for server in _servers(_lines(_UPSTREAM)) if not server.is_loopback]
    return beyond[:_MOST]


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:  # the host has no such file
        return []
    kept = [line.strip().replace("\0", "") for line in lines if len(line) < _LINE_MOST]
    return [line for line in kept if line and line[0] not in "#;"][:16]


def _servers(lines: list[str]) -> list[IPv4Address]:
    """The IPv4 addresses among them: instances have no IPv6."""
    servers = []
    for words in (line.split() for line in lines):
        if words[0] == "nameserver" and len(words) > 1:
            try:
                servers.append(IPv4Address(words[1]))
            except AddressValueError:
                continue
    return servers
