"""Parses network configurations: lists and single plugins."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firstlight import files
from firstlight.errors import FirstlightError

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""The supported versions of the specification, oldest first."""

Json = dict[str, Any]

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_MOST = 16
"""CHAIN_PLUGINS in native/cni/chain.h."""
_BYTES_MOST = 1 << 20
_LINK: dict[str, type] = {"ipam": dict, "dns": dict, "mtu": int}
_ADDRESSES: dict[str, type] = {"routes": list}
_READ: dict[str, dict[str, type]] = {
    "bridge": {**_LINK, "bridge": str, "isGateway": bool, "isDefaultGateway": bool,
               "forceAddress": bool, "ipMasq": bool, "hairpinMode": bool, "promiscMode": bool,
               "vlan": int},
    "ptp": {**_LINK, "ipMasq": bool},
    "macvlan": {**_LINK, "master": str, "mode": str},
    "ipvlan": {**_LINK, "master": str, "mode": str},
    "vlan": {**_LINK, "master": str, "vlanId": int},
    "portmap": {"snat": bool, "markMasqBit": int, "conditionsV4": list, "conditionsV6": list},
    "bandwidth": dict.fromkeys(("ingressRate", "ingressBurst", "egressRate", "egressBurst"), int),
    "firewall": {"backend": str, "firewalldZone": str, "iptablesAdminChainName": str},
    "tuning": {"sysctl": dict, "mac": str, "promisc": bool, "mtu": int},
    "vrf": {"vrfname": str},
    "host-local": {**_ADDRESSES, "ranges": list, "dataDir": str, "resolvConf": str, "subnet": str,
                   "rangeStart": str, "rangeEnd": str, "gateway": str},
    "static": {**_ADDRESSES, "addresses": list},
}  # fmt: skip
"""The types that containernetworking's plugins read keys as, the same from 0.9.1 to 1.9.1. With any
other but null a plugin fails; it ignores keys that it does not know."""
_TYPES = {dict: "an object", list: "an array", str: "a string", bool: "true or false",
          int: "a whole number"}  # fmt: skip
_LIST_HINT = "a configuration list has the keys cniVersion, name and plugins"


class BadConf(FirstlightError):
    """A network configuration that cannot be used. The message names the file and the place."""


@dataclass(frozen=True)
class NetworkList:
    """A network. ``plugins`` are as written; ``version`` is the highest that both sides support."""

    name: str
    version: str
    plugins: tuple[Json, ...]
    source: str
    disable_check: bool = False
    extra: Json = field(default_factory=dict)
    """Keys of the list that are not in the specification."""


def load(path: Path) -> NetworkList:
    """Read a .conflist or .conf file. Raises BadConf."""
    try:
        text = files.read_regular(path, _BYTES_MOST).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise BadConf(f"cannot read the network configuration {path}: {reason}") from error
    return parse(text, str(path))


def parse(text: str, source: str) -> NetworkList:
    """Parse a network from JSON; ``source`` names it in errors. Raises BadConf."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadConf(
            f"{source} line {error.lineno} column {error.colno}: {error.msg}",
            "network configurations are JSON, without comments or trailing commas",
        ) from error
    except (RecursionError, ValueError) as error:
        raise BadConf(f"{source}: the JSON is nested too deeply, or a number too long") from error
    if not isinstance(document, dict):
        raise BadConf(f"{source}: contains {_kind(document)}, not a JSON object", _LIST_HINT)
    if "plugins" not in document:
        return _network({"plugins": [document], **_heading(document)}, source)
    return _network(document, source)


def execution(network: NetworkList, plugin: Json) -> Json:
    """A plugin's standard input without ``prevResult``: its configuration, by spec §3.

    A pod of the lab asks for no capability, so there is never a ``runtimeConfig``.
    """
    derived = {key: value for key, value in plugin.items() if key != "capabilities"}
    return {**derived, "cniVersion": network.version, "name": network.name}


def _heading(single: Json) -> Json:
    return {key: single[key] for key in ("cniVersion", "cniVersions", "name") if key in single}


def _network(document: Json, source: str) -> NetworkList:
    name = document.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadConf(
            f"{source}: the network's name is {json.dumps(name)}",
            "a name starts with a letter or digit; '_', '.' and '-' may follow",
        )
    plugins = document["plugins"]
    if not isinstance(plugins, list) or not plugins:
        raise BadConf(f"{source}: plugins is {_kind(plugins)}; at least one plugin is needed",
                      _LIST_HINT)  # fmt: skip
    if len(plugins) > _MOST:
        raise BadConf(f"{source}: plugins has {len(plugins)} plugins",
                      f"at most {_MOST} are possible")  # fmt: skip
    for place, plugin in enumerate(plugins):
        _check_plugin(plugin, f"{source}: plugin {place}")
    return NetworkList(
        name=name,
        version=_version(document, source),
        plugins=tuple(plugins),
        source=source,
        disable_check=_flag(document, "disableCheck", source),
        extra={
            key: value
            for key, value in document.items()
            if key not in ("cniVersion", "cniVersions", "name", "plugins", "disableCheck",
                           "disableGC", "loadOnlyInlinedPlugins")
        },
    )  # fmt: skip


def _check_plugin(plugin: object, where: str) -> None:
    if not isinstance(plugin, dict):
        raise BadConf(f"{where} is {_kind(plugin)}, not an object")
    kind = plugin.get("type")
    if not isinstance(kind, str) or not kind or "/" in kind or kind in (".", ".."):
        raise BadConf(
            f"{where}: its type is {json.dumps(kind)}",
            "type is the plugin's file name, without a directory",
        )
    capabilities = plugin.get("capabilities")
    if capabilities is not None and not isinstance(capabilities, dict):
        raise BadConf(f"{where}: capabilities is {_kind(capabilities)}, not an object")
    _check_types(plugin, kind, where)
    addresses = plugin.get("ipam")
    if isinstance(addresses, dict):
        _check_types(addresses, str(addresses.get("type")), f"{where}: ipam")


def _check_types(read: Json, kind: str, where: str) -> None:
    """Raise BadConf for a key that the plugin of this kind would fail to read."""
    for key, wanted in _READ.get(kind, {}).items():
        value = read.get(key)
        if value is not None and type(value) is not wanted:
            raise BadConf(f"{where}: {key} is {json.dumps(value)[:80]}, "
                          f"and {kind} reads {_TYPES[wanted]}")  # fmt: skip


def _version(document: Json, source: str) -> str:
    """The highest supported version in ``cniVersion`` and ``cniVersions``."""
    stated = [document["cniVersion"]] if "cniVersion" in document else []
    more = document.get("cniVersions", [])
    if not isinstance(more, list) or not all(isinstance(each, str) for each in [*stated, *more]):
        raise BadConf(f"{source}: cniVersion must be a string, cniVersions a list of strings")
    spoken = [version for version in VERSIONS if version in [*stated, *more]]
    if not spoken:
        named = ", ".join([*stated, *more]) or "missing"
        raise BadConf(f"{source}: cniVersion is {named}", f"supported: {', '.join(VERSIONS)}")
    return spoken[-1]


def _flag(document: Json, key: str, source: str) -> bool:
    """A boolean, or the string form that specification 1.0 allows."""
    value = document.get(key, False)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise BadConf(f"{source}: {key} is {json.dumps(value)}, not true or false")
    return value


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "an array", str: "a string", type(None): "null"}
    if isinstance(value, list) and not value:
        return "an empty array"
    return kinds.get(type(value), "a number or a boolean")
