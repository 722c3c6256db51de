"""The built-in networks (conf/cni), and a user's own files.

A built-in list describes itself to firstlight under the key ``firstlight``::

    about     what it represents, in a clause
    path      folders of ``make cni-plugins`` to search first, such as 0.9.1
    files     files that the plugin reads, by path; only the run sees them
    private   more directories whose content only the run sees
    address   the host's address, such as 10.0.0.1/24, on a link with its default route
    packet    destination of the first packet: "gateway", or an IPv4 address
    args      CNI_ARGS; {pod} is the pod's name
    service   the daemon that must run, by its name in lab/cni/services.py
    daemon    the product's own daemon, which a cluster runs: lab/cluster/settings.py
    keys      initial content of its database, by key
    profile   the binary that this stands in for, with the same operations
    instead_of  the network that this one replaces where that cannot be had
"""

import os
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import msgspec

from firstlight.errors import UnknownName
from firstlight.lab.cni.conf import BadConf, NetworkList, load

BUILT = Path(sys.prefix) / "libexec" / "cni"
"""Where ``make cni-plugins`` installs plugins, one folder per set."""

AGENT = '"type": "firstlight"'
"""In the text of a list whose pods firstlight's own agent serves."""
AGENT_SERVICE = "firstlight-agent"
"""That agent's name as a service."""

_SYSTEM = (Path("/opt/cni/bin"), Path("/usr/lib/cni"), Path("/usr/libexec/cni"))


class NetworkInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The value of the key ``firstlight`` in a configuration list."""

    about: str = ""
    path: tuple[str, ...] = ()
    files: Annotated[Mapping[str, str], msgspec.Meta(max_length=16)] = {}
    private: tuple[str, ...] = ()
    address: str = ""
    packet: str = "gateway"
    args: str = ""
    service: str = ""
    daemon: str = ""
    keys: Mapping[str, Any] = {}
    profile: str = ""
    instead_of: str = ""


def names() -> list[str]:
    """The names of the built-in networks."""
    return sorted(file.name.removesuffix(".conflist") for file in _directory().glob("*.conflist"))


def networks() -> list[str]:
    """The built-in networks that replace no other, sorted by name."""
    return [name for name in names() if not find(name)[1].instead_of]


def find(name: str) -> tuple[NetworkList, NetworkInfo]:
    """A network by its built-in name, or by a file's path. Raises BadConf."""
    if name not in names():
        if "/" in name or os.path.isfile(name):  # noqa: PTH113 - answers no for a name that is too long
            return _described(load(Path(name)))
        raise UnknownName("CNI network", name, [*names(), "or the path of a configuration file"])
    return _described(load(_directory() / f"{name}.conflist"))


def title(name: str) -> str:
    """The name of a network in figures: for a user's file, its own name."""
    return Path(name).name


def path(info: NetworkInfo) -> tuple[Path, ...]:
    """Where plugins are searched: the list's sets, CNI_PATH, the usual directories, profiles."""
    own = tuple(BUILT / part for part in info.path)
    given = tuple(Path(part) for part in os.environ.get("CNI_PATH", "").split(":") if part)
    ours = _package() / "_native"
    return (*own, *given, *_SYSTEM, ours / "cni", ours / "profiles")


def agent_configuration() -> Path:
    """The configuration of the agent that serves the network ``firstlight``."""
    return _directory() / "firstlight" / "pods.toml"


def stand_in(name: str) -> str | None:
    """The network measured instead of this one where it cannot be had, or None."""
    return next((network for network in names() if find(network)[1].instead_of == name), None)


def _described(network: NetworkList) -> tuple[NetworkList, NetworkInfo]:
    try:
        return network, msgspec.convert(network.extra.get("firstlight", {}), NetworkInfo)
    except msgspec.ValidationError as error:
        raise BadConf(f"{network.source}: firstlight: {error}") from error


def _directory() -> Path:
    return _package() / "conf" / "cni"


def _package() -> Path:
    return Path(str(files("firstlight")))
