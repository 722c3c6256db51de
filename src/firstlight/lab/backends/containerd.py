"""A container by containerd's task service, through its client ``ctr``, without CRI and CNI.

The container has an empty network namespace, as with ``oci``, so the difference between the two is
containerd's: its client, snapshot, shim and event.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from firstlight.host.workspace import Workspace
from firstlight.lab.backends import Execute, Prepared
from firstlight.lab.cluster import programs, running
from firstlight.lab.cluster.settings import PAYLOAD
from firstlight.model import EndPoint

_names = count()
_NETWORK = "bridge"  # containerd needs one for its CRI, which is not used


@dataclass(frozen=True)
class Containerd:
    """``ctr run`` of the payload's image, by containerd's shim and ``runtime``."""

    runtime: str
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION

    @property
    def name(self) -> str:
        """The runtime's name, below containerd."""
        return f"containerd + {Path(self.runtime).name}"

    @property
    def note(self) -> str | None:
        """What is special about these figures."""
        return "containerd's data is in memory"

    def probe(self) -> None:
        """Needs containerd and the runtime."""
        running.probe(control_plane=False)
        running.handlers((self.runtime,), (_NETWORK,))

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """A containerd, once per run; ``ctr run --rm`` removes each container at its end."""
        handlers = running.handlers((self.runtime,), (_NETWORK,))
        node = workspace.once(
            handlers, lambda: running.cluster(workspace, handlers, control_plane=False)
        )
        fifos = workspace.directory / "fifos"
        fifos.mkdir()
        client = (str(programs.path("ctr")), "--address", str(node.settings.socket),
                  "--namespace", "k8s.io", "run", "--rm", "--fifo-dir", str(fifos),
                  "--runtime", "io.containerd.runc.v2",
                  "--runc-binary", handlers[0].runtime)  # fmt: skip
        daemon = running.component_pids(node)["containerd"]
        try:
            yield Prepared(
                [
                    Execute(
                        (*client, PAYLOAD, f"c{next(_names)}"),
                        workspace.environment,
                        daemons=(daemon,),
                    )
                    for _ in range(instances)
                ]
            )
        finally:
            shutil.rmtree(fifos)
