"""A whole pod: its network, then a container in it, as one start.

As a node's runtime does: a network namespace gets its name, the CNI plugins are called, and the OCI
runtime is told the namespace's path; or the namespace is taken from a pool. The end point is the
payload's first instruction, or the answer of its gateway to the packet that it sends then.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from firstlight.errors import Unsupported
from firstlight.host.workspace import Workspace
from firstlight.lab.backends import Command, pooled
from firstlight.lab.backends.agile import Agile
from firstlight.lab.backends.cni import NAMES, Cni, Pods, hosting
from firstlight.lab.backends.oci import Oci
from firstlight.lab.cni import known
from firstlight.model import EndPoint, Point
from firstlight.native import native

NO_NETWORK = "none"
"""The container has a network namespace of the runtime's own, with nothing in it."""

POOLED = "pooled"
"""The container joins a network namespace of the agile runtime's pool."""

_BLANK = " " * 79  # where ADD's gateway is written: as long as cnirun's longest address


@dataclass(frozen=True)
class Pod:
    """``runtime`` as in Oci; ``network`` a name of conf/cni, a path, POOLED or NO_NETWORK."""

    runtime: str
    network: str
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION

    @property
    def name(self) -> str:
        """The runtime's name and the network's."""
        return f"{self._container.name} + {known.title(self.network)}"

    @property
    def note(self) -> str | None:
        """What either part is spared here, or stands for, on a line each."""
        network = pooled.NOTE if self.network == POOLED else self._cni.note if self._cni else None
        return "\n".join(note for note in (self._container.note, network) if note) or None

    @property
    def _container(self) -> Oci:
        return Oci(self.runtime)

    @property
    def _cni(self) -> Cni | None:
        return None if self.network in (NO_NETWORK, POOLED) else Cni(self.network)

    def probe(self) -> None:
        """Needs what its parts need."""
        self._container.probe()
        if self._cni:
            self._cni.probe()
        if self.network == POOLED:
            Agile("agile").probe()

    def reaching(self, point: Point) -> Self:
        """Until the gateway has answered the container's first packet."""
        del point
        if self.network == NO_NETWORK:
            raise Unsupported("a pod without a network has no first packet",
                              "name networks: --cni bridge --cni pooled")  # fmt: skip
        if not self._container.joins_network:
            raise Unsupported(f"{self._container.name} runs without a network here, and so has no "
                              "first packet", "name another: --runtime runc")  # fmt: skip
        return replace(self, end_point=EndPoint.FIRST_PACKET)

    @contextmanager
    def prepared(
        self, point: Point, instances: int, workspace: Workspace
    ) -> Iterator[list[Command]]:
        """A bundle and a network, or a request for one, for each pod; afterwards none of them."""
        containers = self._container.prepared(point, instances, workspace)
        if self.network == NO_NETWORK:
            with containers as commands:
                yield commands
        elif self.network == POOLED:
            with pooled.taking(instances, workspace) as pool, containers as commands:
                yield [self._from_pool(command, pool) for command in commands]
        else:
            background = int(point.get("background", 0))
            with containers as commands, hosting(self.network, background, workspace) as pods:
                yield [
                    self._by_plugins(command, f"fl{index}", pods)
                    for index, command in enumerate(commands)
                ]

    @property
    def _reaches(self) -> bool:
        return self.end_point is EndPoint.FIRST_PACKET

    def _from_pool(self, command: Command, pool: pooled.Taking) -> Command:
        """The container's start inside a network that is taken then."""
        path = _bundle(command) / "network"
        _rewrite(command, path, pool.gateway if self._reaches else None)
        return pool.start(command, path)

    def _by_plugins(self, command: Command, pod: str, pods: Pods) -> Command:
        """The container's start inside the pod's namespace, after the plugins."""
        text = _rewrite(command, NAMES / pod, _BLANK if self._reaches else None)
        told = f"tell {text.index(_BLANK)} {_config(command)}" if self._reaches else ""
        request = str(pods.request(pod, *([told] if told else [])))
        return Command(
            (str(native("cnirun")), "pod", request, *command.argv),
            command.env,
            command.cwd,
            daemons=pods.daemons,
        )


def _bundle(command: Command) -> Path:
    return Path(command.argv[command.argv.index("--bundle") + 1])


def _config(command: Command) -> Path:
    return _bundle(command) / "config.json"


def _rewrite(command: Command, namespace: Path, gateway: str | None) -> str:
    """Put the container into a network namespace, there to reach a gateway; the new text."""
    spec: dict[str, Any] = json.loads(_config(command).read_text())
    for one in spec["linux"]["namespaces"]:
        if one["type"] == "network":
            one["path"] = str(namespace)
    if gateway is not None:
        spec["process"]["args"] = ["/bin/payload", "reach", gateway]
    text = json.dumps(spec)
    _config(command).write_text(text)
    return text
