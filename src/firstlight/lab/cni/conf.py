"""Networks as their configuration files describe them: lists, and single configurations."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firstlight.errors import FirstlightError

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""The specification's versions that this runtime speaks, oldest first."""

Json = dict[str, Any]

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_LIST_HINT = "a configuration list has the keys cniVersion, name and plugins"


class BadConf(FirstlightError):
    """A network configuration that cannot be used; the message names the file and the place."""


@dataclass(frozen=True)
class Network:
    """One network. ``plugins`` are as written; ``version`` is the highest that we both speak."""

    name: str
    version: str
    plugins: tuple[Json, ...]
    source: str
    disable_check: bool = False
    disable_gc: bool = False
    extra: Json = field(default_factory=dict)
    """The list's other keys, which are not of the specification."""

    def at_least(self, version: str) -> bool:
        """Whether the network's version is this one or newer."""
        return VERSIONS.index(self.version) >= VERSIONS.index(version)


def load(path: Path) -> Network:
    """The network of a .conflist or .conf file. Raises BadConf."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise BadConf(f"cannot read the network configuration {path}: {reason}") from error
    return parse(text, str(path))


def parse(text: str, source: str) -> Network:
    """The network that a JSON text describes; ``source`` names it in errors. Raises BadConf."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadConf(
            f"{source} line {error.lineno} column {error.colno}: {error.msg}",
            "network configurations are JSON, without comments or trailing commas",
        ) from error
    except RecursionError as error:
        raise BadConf(f"{source}: its JSON is nested too deeply") from error
    if not isinstance(document, dict):
        raise BadConf(f"{source}: it holds {_kind(document)} and not a JSON object", _LIST_HINT)
    if "plugins" not in document:
        return _network({"plugins": [document], **_heading(document)}, source)
    return _network(document, source)


def execution(network: Network, plugin: Json, runtime_config: Mapping[str, Any]) -> Json:
    """What one plugin is given, but for ``prevResult``: its configuration, derived as spec §3 says.

    Of ``runtime_config``, by capability, it gets what its ``capabilities`` ask for.
    """
    derived = {key: value for key, value in plugin.items() if key != "capabilities"}
    wanted = plugin.get("capabilities") or {}
    granted = {name: value for name, value in runtime_config.items() if wanted.get(name) is True}
    if granted:
        derived["runtimeConfig"] = granted
    return {**derived, "cniVersion": network.version, "name": network.name}


def _heading(single: Json) -> Json:
    return {key: single[key] for key in ("cniVersion", "cniVersions", "name") if key in single}


def _network(document: Json, source: str) -> Network:
    name = document.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadConf(
            f"{source}: the network's name is {json.dumps(name)}",
            "a name is letters and digits, then also '_', '.' and '-'",
        )
    plugins = document["plugins"]
    if not isinstance(plugins, list) or not plugins:
        raise BadConf(f"{source}: plugins is {_kind(plugins)}, and needs one plugin or more",
                      _LIST_HINT)  # fmt: skip
    for place, plugin in enumerate(plugins):
        _check_plugin(plugin, f"{source}: plugin {place}")
    return Network(
        name=name,
        version=_version(document, source),
        plugins=tuple(plugins),
        source=source,
        disable_check=_flag(document, "disableCheck", source),
        disable_gc=_flag(document, "disableGC", source),
        extra={
            key: value
            for key, value in document.items()
            if key not in ("cniVersion", "cniVersions", "name", "plugins", "disableCheck",
                           "disableGC", "loadOnlyInlinedPlugins")
        },
    )  # fmt: skip


def _check_plugin(plugin: object, where: str) -> None:
    if not isinstance(plugin, dict):
        raise BadConf(f"{where} is {_kind(plugin)} and not an object")
    kind = plugin.get("type")
    if not isinstance(kind, str) or not kind or "/" in kind or kind in (".", ".."):
        raise BadConf(
            f"{where}: its type is {json.dumps(kind)}",
            "type is the file name of the plugin's executable, without a directory",
        )
    capabilities = plugin.get("capabilities")
    if capabilities is not None and not isinstance(capabilities, dict):
        raise BadConf(f"{where}: capabilities is {_kind(capabilities)} and not an object")


def _version(document: Json, source: str) -> str:
    """The highest version of ``cniVersion`` and ``cniVersions`` that this runtime speaks."""
    stated = [document["cniVersion"]] if "cniVersion" in document else []
    more = document.get("cniVersions", [])
    if not isinstance(more, list) or not all(isinstance(one, str) for one in [*stated, *more]):
        raise BadConf(f"{source}: cniVersion is a string and cniVersions a list of strings")
    spoken = [version for version in VERSIONS if version in [*stated, *more]]
    if not spoken:
        said = ", ".join([*stated, *more]) or "missing"
        raise BadConf(f"{source}: cniVersion is {said}", f"versions here: {', '.join(VERSIONS)}")
    return spoken[-1]


def _flag(document: Json, key: str, source: str) -> bool:
    """A boolean, also as the string that specification 1.0 has."""
    value = document.get(key, False)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise BadConf(f"{source}: {key} is {json.dumps(value)} and neither true nor false")
    return value


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "an array", str: "a string", type(None): "null"}
    if isinstance(value, list) and not value:
        return "an empty array"
    return kinds.get(type(value), "a number or a boolean")
