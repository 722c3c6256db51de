"""A whole pod: its network by CNI plugins, then a container in it, as one start.

As a node's runtime does: a network namespace gets its name, the plugins are called, and the OCI
runtime is told the namespace's path. The end point is the payload's first instruction.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from firstlight.backends import Command, Place, native
from firstlight.backends.cni import NAMES, Cni, Pods, hosting
from firstlight.backends.oci import Oci
from firstlight.model import EndPoint, Point

NO_NETWORK = "none"
"""The container has a network namespace of the runtime's own, with nothing in it."""


@dataclass(frozen=True)
class Pod:
    """``runtime`` as in Oci; ``network`` a name of conf/cni, a path, or NO_NETWORK."""

    runtime: str
    network: str
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION

    @property
    def name(self) -> str:
        """The runtime's name and the network's."""
        return f"{self._container.name} + {self._cni.name if self._cni else NO_NETWORK}"

    @property
    def note(self) -> str | None:
        """What either part is spared here, or stands for."""
        notes = [self._container.note, self._cni.note if self._cni else None]
        return "; ".join(note for note in notes if note) or None

    @property
    def _container(self) -> Oci:
        return Oci(self.runtime)

    @property
    def _cni(self) -> Cni | None:
        return None if self.network == NO_NETWORK else Cni(self.network)

    def probe(self) -> None:
        """Needs what its parts need."""
        self._container.probe()
        if self._cni:
            self._cni.probe()

    @contextmanager
    def prepared(self, point: Point, instances: int, place: Place) -> Iterator[list[Command]]:
        """A bundle and a request for each pod; afterwards neither containers nor networks."""
        with self._container.prepared(point, instances, place) as commands:
            if not self._cni:
                yield commands
                return
            with hosting(self.network, int(point.get("background", 0)), place) as pods:
                yield [
                    _networked(command, f"fl{index}", pods)
                    for index, command in enumerate(commands)
                ]


def _networked(command: Command, pod: str, pods: Pods) -> Command:
    """The container's start inside the pod's namespace, after the plugins."""
    bundle = Path(command.argv[command.argv.index("--bundle") + 1])
    spec = json.loads((bundle / "config.json").read_text())
    for namespace in spec["linux"]["namespaces"]:
        if namespace["type"] == "network":
            namespace["path"] = str(NAMES / pod)
    (bundle / "config.json").write_text(json.dumps(spec))
    request = str(pods.request(pod))
    return Command(
        (str(native("cnirun")), "pod", request, *command.argv),
        command.env,
        command.cwd,
        daemons=pods.daemons,
    )
