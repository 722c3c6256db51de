"""The six commands on a network: ADD, CHECK, DEL, GC, STATUS and VERSION.

Results are cached as libcni caches them, a file an attachment, so that either can end what the
other began. The caller must not run two commands on one attachment at a time.
"""

import base64
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firstlight.errors import FirstlightError
from firstlight.lab.cni.conf import Json, Network, execution
from firstlight.lab.cni.plugin import Call, PluginError, find, invoke

CACHE = Path("/var/lib/cni")
_CONTAINER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_INTERFACE = re.compile(r"(?!\.{1,2}$)[^\s/:]{1,15}")
_KIND = "cniCacheV1"
_OLDEST_WITH_PREVIOUS = "0.4.0"  # that CHECK and DEL are given prevResult


class BadAttachment(FirstlightError):
    """An attachment that the specification does not allow, or not now."""


@dataclass(frozen=True)
class Attachment:
    """One interface of one container. ``capabilities`` are arguments by capability."""

    container: str
    namespace: str
    interface: str = "eth0"
    args: str = ""
    capabilities: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _CONTAINER.fullmatch(self.container):
            raise BadAttachment(
                f"container id {self.container!r} is not allowed",
                "letters and digits, then also '_', '.' and '-'",
            )
        if not _INTERFACE.fullmatch(self.interface):
            raise BadAttachment(
                f"interface name {self.interface!r} is not allowed",
                "1 to 15 characters without '/', ':' and white space",
            )

    @property
    def call(self) -> Call:
        """What its plugins' environment says of it."""
        return Call(self.container, self.namespace, self.interface, self.args)


@dataclass(frozen=True)
class Runtime:
    """Where plugins are looked for and results are kept; ``timeout`` is for each call, in s.

    ``environment`` is what plugins get besides the specification's variables; None: ours.
    """

    path: tuple[Path, ...]
    cache: Path = CACHE
    timeout: float = 60.0
    environment: Mapping[str, str] | None = None

    def add(self, network: Network, attachment: Attachment) -> Json:
        """Attach; returns the last plugin's result. Raises PluginError, Unsupported.

        After a failure DEL has been called, and the error is that of the ADD.
        """
        kept = self._kept(network, attachment)
        if kept.exists():
            raise BadAttachment(
                f"container {attachment.container} already has {attachment.interface} in "
                f"network {network.name}",
                "DEL must come before the next ADD",
            )
        result: Json | None = None
        try:
            for plugin in network.plugins:
                result = self._add_one(network, attachment, plugin, result)
        except FirstlightError:
            self._undo(network, attachment)
            raise
        assert result is not None
        self._keep(kept, network, attachment, result)
        return result

    def check(self, network: Network, attachment: Attachment) -> None:
        """Ask each plugin whether the attachment is as it should be. Raises PluginError."""
        if not network.at_least(_OLDEST_WITH_PREVIOUS):
            raise BadAttachment(
                f"network {network.name} is of CNI version {network.version}, without CHECK",
                f"CHECK needs {_OLDEST_WITH_PREVIOUS}",
            )
        if network.disable_check:
            return
        result = self.result(network, attachment)
        if result is None:
            raise BadAttachment(
                f"container {attachment.container} has no {attachment.interface} in network "
                f"{network.name}",
                "CHECK is for what ADD has made",
            )
        for plugin in network.plugins:
            self._call("CHECK", network, plugin, attachment.call, attachment.capabilities, result)

    def delete(self, network: Network, attachment: Attachment) -> None:
        """Detach, by the plugins in reverse order. Raises PluginError; then the result is kept."""
        result = None
        if network.at_least(_OLDEST_WITH_PREVIOUS):
            result = self.result(network, attachment)
        for plugin in reversed(network.plugins):
            self._call("DEL", network, plugin, attachment.call, attachment.capabilities, result)
        self._kept(network, attachment).unlink(missing_ok=True)

    def collect(self, network: Network, valid: Iterable[Attachment]) -> None:
        """GC: end the attachments of this network that are not ``valid``.

        Those that are cached get a DEL; then each plugin is told which are valid, so that it can
        free what no cache knows of. Every plugin is called; the first error is raised at the end.
        """
        if network.disable_gc:
            return
        attached = list(valid)
        keep = {(one.container, one.interface) for one in attached}
        errors: list[FirstlightError] = []
        for stale in self.attachments(network):
            if (stale.container, stale.interface) not in keep:
                _collecting(errors, self.delete, network, stale)
        if network.at_least("1.1.0"):
            named = [{"containerID": one.container, "ifname": one.interface} for one in attached]
            more = {"cni.dev/valid-attachments": named, "cni.dev/attachments": named}
            for plugin in network.plugins:
                _collecting(errors, self._call, "GC", network, plugin, Call(), {}, None, more)
        if errors:
            raise errors[0]

    def status(self, network: Network) -> None:
        """Raise PluginError if a plugin is not ready to ADD; code 50 or 51 says how so."""
        if network.at_least("1.1.0"):
            for plugin in network.plugins:
                self._call("STATUS", network, plugin, Call(), {}, None)

    def versions(self, kind: str, spoken: str = "1.1.0") -> tuple[str, ...]:
        """The versions that a plugin says it supports. Raises PluginError, Unsupported."""
        program = find(kind, self.path)
        variables = Call().environment("VERSION", self.path)
        answer = invoke(program, variables, {"cniVersion": spoken}, timeout=self.timeout,
                        base=self.environment) or {}  # fmt: skip
        supported = answer.get("supportedVersions")
        if not isinstance(supported, list):
            raise PluginError(f"plugin {kind} VERSION", "named no supportedVersions")
        return tuple(map(str, supported))

    def result(self, network: Network, attachment: Attachment) -> Json | None:
        """What the last ADD of an attachment returned; None if it is not attached."""
        kept = self._kept(network, attachment)
        try:
            result = json.loads(kept.read_text())["result"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise BadAttachment(f"the cached result {kept} cannot be read", "remove it") from error
        return result if isinstance(result, dict) else None

    def attachments(self, network: Network) -> Iterator[Attachment]:
        """The cached attachments of one network."""
        for file in sorted((self.cache / "results").glob(f"{network.name}-*")):
            try:
                kept = json.loads(file.read_text())
            except (OSError, ValueError):
                continue
            if kept.get("kind") == _KIND and kept.get("networkName") == network.name:
                yield Attachment(
                    kept["containerId"], kept.get("netns", ""), kept["ifName"],
                    ";".join("=".join(pair) for pair in kept.get("cniArgs") or []),
                    kept.get("capabilityArgs") or {},
                )  # fmt: skip

    def _add_one(
        self, network: Network, attachment: Attachment, plugin: Json, previous: Json | None
    ) -> Json:
        result = self._call(
            "ADD", network, plugin, attachment.call, attachment.capabilities, previous
        )
        call = f"plugin {plugin['type']} ADD"
        if result is None:
            raise PluginError(call, "printed no result")
        result = {"cniVersion": network.version, **result}  # which plugins before 0.3.1 leave out
        if result["cniVersion"] != network.version:
            raise PluginError(
                call,
                f"its result is of CNI version {json.dumps(result['cniVersion'])}",
                hint=f"the network {network.name} is of version {network.version}",
            )
        return result

    def _call(
        self,
        command: str,
        network: Network,
        plugin: Json,
        call: Call,
        capabilities: Mapping[str, Any],
        previous: Json | None,
        more: Mapping[str, Any] | None = None,
    ) -> Json | None:
        configuration = {**execution(network, plugin, capabilities), **(more or {})}
        if previous is not None:
            configuration["prevResult"] = previous
        return invoke(
            find(plugin["type"], self.path),
            call.environment(command, self.path),
            configuration,
            timeout=self.timeout,
            base=self.environment,
        )

    def _undo(self, network: Network, attachment: Attachment) -> None:
        """DEL after a failed ADD: each plugin, also those that ADD did not reach."""
        errors: list[FirstlightError] = []
        for plugin in reversed(network.plugins):
            _collecting(errors, self._call, "DEL", network, plugin, attachment.call,
                        attachment.capabilities, None)  # fmt: skip

    def _kept(self, network: Network, attachment: Attachment) -> Path:
        name = f"{network.name}-{attachment.container}-{attachment.interface}"
        return self.cache / "results" / name

    def _keep(self, file: Path, network: Network, attachment: Attachment, result: Json) -> None:
        written = {
            "kind": _KIND,
            "containerId": attachment.container,
            "config": base64.b64encode(as_list(network).encode()).decode(),
            "ifName": attachment.interface,
            "networkName": network.name,
            "netns": attachment.namespace,
            "cniArgs": [pair.split("=", 1) for pair in attachment.args.split(";") if pair],
            "capabilityArgs": dict(attachment.capabilities),
            "result": result,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f".{file.name}.{os.getpid()}")
        fresh.write_text(json.dumps(written))
        fresh.replace(file)


def as_list(network: Network) -> str:
    """A network as the text of a configuration list."""
    plugins: Sequence[Json] = network.plugins
    return json.dumps(
        {"cniVersion": network.version, "name": network.name, "plugins": list(plugins)}
    )


def _collecting(errors: list[FirstlightError], act: Any, *arguments: Any) -> None:  # noqa: ANN401
    """Go on after an error, but keep it."""
    try:
        act(*arguments)
    except FirstlightError as error:
        errors.append(error)
