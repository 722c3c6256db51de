"""The host's links and directories that a network's configuration names.

A run works in its own namespaces, without the host's links, and must not see or change the state of
the host's plugins. So it replaces both.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

from firstlight.errors import SLOWER, Failed, Unsupported, longer
from firstlight.lab.cni.conf import BadConf, Json, NetworkList

_KINDS = {
    "macvlan": "macvlan", "ipvlan": "ipvlan", "vlan": "vlan", "bridge": "bridge", "ptp": "veth",
    "dummy": "dummy", "vrf": "vrf",
}  # fmt: skip
"""The kind of link that each plugin of containernetworking makes."""

_ON_A_LINK = ("macvlan", "ipvlan", "vlan")
"""Plugins that use the default route's link if their configuration names none."""

_OWN_DEVICES = ("host-device", "sriov", "rdma", "ovs")
"""Plugins that use a physical device of the host, which cannot be replaced."""

_LINK_KEYS = ("master", "hostInterface", "uplink")
_FILE_KEYS = ("logfile", "log_file", "log_file_path")
_UNDER = dict.fromkeys(_ON_A_LINK, "link probe0")
_OPTIONS = {"veth": "peer name probe3", "macvlan": "mode bridge", "vlan": "id 7", "vrf": "table 7"}
_SECONDS = longer(10)


def directories(network: NetworkList) -> set[Path]:
    """The directories in which its plugins keep state, as configured.

    Raises BadConf for a path that is relative, or is the root.
    """
    directories = set()
    for part in _parts(network):
        for key, value in part.items():
            is_directory = key.lower().endswith("dir")
            if not isinstance(value, str) or not value:
                continue
            if not is_directory and key.lower() not in _FILE_KEYS:
                continue
            path = Path(value) if is_directory else Path(value).parent
            if not path.is_absolute() or path == Path("/") or ".." in path.parts:
                raise BadConf(
                    f"{network.source}: {key} is {value!r}",
                    "give an absolute path of its own: a run mounts over it",
                )
            if path.exists() and not path.is_dir():
                raise BadConf(
                    f"{network.source}: {key} is {value!r}, but {path} is not a directory",
                    "give a directory, or a path that does not exist",
                )
            directories.add(path)
    return directories


def links(network: NetworkList) -> set[str]:
    """The host's links that it attaches to, by name."""
    return {
        str(part[key])
        for part in _parts(network)
        for key in _LINK_KEYS
        if isinstance(part.get(key), str) and part[key]
    }


def takes_default_link(network: NetworkList) -> bool:
    """Whether one of its plugins uses the link of the host's default route."""
    return any(
        plugin["type"] in _ON_A_LINK and not any(plugin.get(key) for key in _LINK_KEYS)
        for plugin in network.plugins
    )


def check(network: NetworkList) -> None:
    """Raise Unsupported or BadConf if a run cannot provide what it names."""
    directories(network)
    for name in links(network):
        if len(name.encode()) > 15 or "/" in name or name in (".", "..") or name.split() != [name]:
            raise BadConf(f"{network.source}: {name!r} is not a valid link name",
                          "a link name has 1 to 15 bytes, without blanks and '/'")  # fmt: skip
    for plugin in network.plugins:
        kind = plugin["type"]
        if kind in _OWN_DEVICES:
            raise Unsupported(
                f"{kind} needs a device of the host, which a run cannot use",
                "measure bridge, ptp, macvlan or ipvlan instead",
            )
        addresses = plugin.get("ipam")
        if isinstance(addresses, dict) and addresses.get("type") == "dhcp":
            raise Unsupported(
                f"{kind} asks the daemon of the address plugin dhcp, which a run does not have",
                "measure with the address plugin host-local or static",
            )
        if kind in _KINDS:
            _check_link(_KINDS[kind], f"plugin {kind}")


def _check_link(kind: str, who: str) -> None:
    """Whether the kernel makes links of a kind, tried in a namespace that ends with the command."""
    lines = "" if kind == "veth" else "link add probe0 type veth peer name probe1\n"
    lines += f"link add {_UNDER.get(kind, '')} name probe2 type {kind} {_OPTIONS.get(kind, '')}\n"
    try:
        done = subprocess.run(
            ["unshare", "--net", "ip", "-batch", "-"], input=lines, text=True, capture_output=True,
            timeout=_SECONDS,
        )  # fmt: skip
    except OSError as error:
        raise Unsupported(
            f"unshare cannot be executed: {error.strerror}", "apt-get install util-linux iproute2"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise Failed(f"ip has not made a {kind} link in {_SECONDS:g} s",
                     f"if the machine is slow: {SLOWER}=10") from error  # fmt: skip
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise Unsupported(
            f"{who} needs a link of kind {kind}, which this kernel cannot make: {reason}",
            f"modprobe rtnl-link-{kind}, or boot a kernel with it",
        )


def _parts(network: NetworkList) -> Iterator[Json]:
    """Each object of each plugin's configuration, at any depth."""
    waiting: list[object] = list(network.plugins)
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
