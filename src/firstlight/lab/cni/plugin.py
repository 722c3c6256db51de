"""Where a plugin's program is."""

import os
from collections.abc import Sequence
from pathlib import Path

from firstlight.errors import Unsupported
from firstlight.lab.cni import known
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
