"""Where a plugin's program is."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from firstlight.errors import Unsupported
from firstlight.lab.cni import known
from firstlight.lab.cni.conf import NetworkList
from firstlight.native import make

_PACKAGED = frozenset(
    ("bandwidth", "bridge", "dhcp", "firewall", "host-device", "host-local", "ipvlan", "loopback",
     "macvlan", "portmap", "ptp", "sbr", "static", "tuning", "vlan", "vrf")
)  # fmt: skip
"""The plugins of Debian's containernetworking-plugins."""


def find(kind: str, path: Sequence[Path]) -> Path:
    """The executable of a plugin's type, from the first directory with it. Raises Unsupported."""
    for directory in path:
        program = directory / kind
        if program.is_file() and os.access(program, os.X_OK):
            return program
    packaged = "apt-get install containernetworking-plugins, or " if kind in _PACKAGED else ""
    searches_built = any(directory.is_relative_to(known.BUILT) for directory in path)
    built = f"{make('cni-plugins')}, or " if searches_built else ""
    raise Unsupported(
        f"CNI plugin {kind!r} is not installed",
        f"{packaged}{built}set CNI_PATH to its directory",
    )


def probe(network: NetworkList, path: Sequence[Path]) -> None:
    """Raise Unsupported if one of a network's plugins is in none of the directories."""
    for kind in _kinds(network):
        find(kind, path)


def _kinds(network: NetworkList) -> Iterator[str]:
    """The plugins that a network names: its own, and those that they delegate to."""
    for plugin in network.plugins:
        yield plugin["type"]
        ipam = plugin.get("ipam")
        if isinstance(ipam, dict) and isinstance(ipam.get("type"), str):
            yield ipam["type"]
