"""A pod sandbox and its container by the Container Runtime Interface: the node's part only.

The runtime is containerd, started once per run without a control plane, or the user's own, by its
socket; that needs the image already.
"""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import msgspec

from firstlight.errors import Unsupported, longer
from firstlight.host import cgroups
from firstlight.host.workspace import Workspace
from firstlight.lab.backends import Ask, Prepared
from firstlight.lab.cluster import running
from firstlight.lab.cluster.pod_spans import Book, Clock
from firstlight.lab.cluster.resident_program import resident
from firstlight.lab.cluster.sandboxer import Configuration, Request
from firstlight.lab.cluster.settings import PAYLOAD
from firstlight.lab.cni import known
from firstlight.model import EndPoint, Telemetry

_TELEMETRY_SECONDS = longer(5.0)
_names = count()


@dataclass(frozen=True)
class Containerd:
    """A containerd started by the run, with these runtime classes."""

    runtimes: tuple[str, ...]
    networks: tuple[str, ...]


@dataclass(frozen=True)
class Socket:
    """A user's runtime, by its socket."""

    path: str


@dataclass(frozen=True)
class Cri:
    """One sandbox per start. ``runtime`` and ``network`` select the handler of firstlight's
    containerd; for a user's runtime ``runtime`` is a handler, or empty for the default."""

    of: Containerd | Socket
    runtime: str = ""
    network: str = ""
    image: str = PAYLOAD
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION

    @property
    def name(self) -> str:
        """The runtime's name and the network's, or the socket's."""
        if isinstance(self.of, Socket):
            return Path(self.of.path).name
        return f"{Path(self.runtime).name} + {known.title(self.network)}"

    @property
    def note(self) -> str | None:
        """What is special about these figures."""
        if isinstance(self.of, Socket):
            return f"sandboxes of the runtime at {self.of.path}, without its spans"
        return "sandboxes of a containerd that keeps its data in memory and traces itself"

    def probe(self) -> None:
        """Needs a runtime, or what is needed to start one."""
        if isinstance(self.of, Socket):
            if not Path(self.of.path).is_socket():
                fact = "is not a socket" if Path(self.of.path).exists() else "does not exist"
                raise Unsupported(f"the CRI socket {self.of.path} {fact}",
                                  "give one with --cri PATH")  # fmt: skip
            return
        running.probe(control_plane=False)
        running.handlers((self.runtime,), (self.network,), control_plane=False)

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """The runtime; sandboxes are removed when their starts end."""
        lab = workspace.once(self.of, lambda: _lab(self.of, workspace))
        handler = self.runtime
        if isinstance(self.of, Containerd):
            handler = running.handler_name(self.runtime, self.network)
        requests = [
            Request(
                name=f"s{next(_names)}-{workspace.run.lower()}",
                image=self.image,
                cgroup="/sandboxes" if lab.book else f"/{cgroups.name(workspace.run)}",
                handler=handler,
                trace=secrets.token_hex(16),
            )
            for _ in range(instances)
        ]
        clock = Clock()
        yield Prepared(
            [
                Ask(lab.socket, "{}", msgspec.json.encode(each).decode(), lab.daemons)
                for each in requests
            ],
            telemetry=lambda: lab.telemetry([each.trace for each in requests], clock),
        )


@dataclass(frozen=True)
class _Lab:
    """``book`` is the telemetry of firstlight's containerd, ``daemons`` the node's. A user's
    runtime has neither.
    """

    socket: Path
    book: Book | None = None
    daemons: tuple[int, ...] = ()

    def telemetry(self, traces: list[str], clock: Clock) -> Mapping[int, Telemetry]:
        """The telemetry of each sandbox, by position."""
        clock.close()
        if self.book is None:
            return {}
        self.book.await_traces(traces, _TELEMETRY_SECONDS)
        return {place: self.book.trace(trace, clock) for place, trace in enumerate(traces)}


@contextmanager
def _lab(of: Containerd | Socket, workspace: Workspace) -> Iterator[_Lab]:
    directory, name = workspace.directory, "sandbox-logs"
    socket, logs = str(directory / "sandboxer.sock"), str(directory / name)
    if isinstance(of, Socket):  # it writes outside of the run's mount namespace
        configuration = Configuration(socket, of.path, str(directory.parent / name))
        network = f"/proc/self/fd/{workspace.outside}"
        with resident("sandboxer", configuration, network, workspace) as path:
            yield _Lab(path)
        return
    handlers = running.handlers(of.runtimes, of.networks)
    with running.cluster(workspace, handlers, control_plane=False) as cluster:
        configuration = Configuration(socket, str(cluster.settings.socket), logs)
        with resident("sandboxer", configuration, cluster.network, workspace) as path:
            daemons = running.daemons(cluster)
            yield _Lab(path, Book(cluster.settings.spans), daemons)
