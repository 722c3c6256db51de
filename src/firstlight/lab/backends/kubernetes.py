"""A pod by the API server of a cluster, firstlight's or the user's, in its own namespace.

A resident program sends the requests (``cluster.requester``). The pod's container runs the payload,
whose output has the stamp of its first instruction. firstlight's cluster is started once per run,
and its components report telemetry.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from http.client import HTTPException
from ipaddress import ip_network
from itertools import count
from pathlib import Path
from typing import Self

import msgspec

from firstlight.agile import apiserver
from firstlight.errors import Failed, Unsupported, install_extra, longer
from firstlight.host.workspace import Workspace
from firstlight.lab.backends import Ask, Prepared
from firstlight.lab.cluster import metrics, running, start_server
from firstlight.lab.cluster.pod_spans import Book, Clock
from firstlight.lab.cluster.requester import Configuration, Request
from firstlight.lab.cluster.resident_program import resident
from firstlight.lab.cluster.settings import PAYLOAD
from firstlight.lab.cni import known
from firstlight.model import EndPoint, Telemetry

_TELEMETRY_SECONDS = longer(5.0)
_names = count()


@dataclass(frozen=True)
class Own:
    """A cluster started by the run, with these runtime classes."""

    runtimes: tuple[str, ...]
    networks: tuple[str, ...]


@dataclass(frozen=True)
class Users:
    """A user's cluster. ``kubeconfig`` may be several files, with ``:`` between them. An empty
    ``context`` is the current one.
    """

    kubeconfig: str
    context: str = ""


@dataclass(frozen=True)
class Kubernetes:
    """One pod per start. In firstlight's cluster ``runtime`` and ``network`` select the runtime
    class; in a user's cluster ``runtime`` is a class, or empty for the default.

    ``image`` has the payload; a user's cluster may have to pull it. A pod that is not Ready after
    ``patience`` seconds has failed. ``background`` pods exist already.
    """

    cluster: Own | Users
    runtime: str = ""
    network: str = ""
    image: str = PAYLOAD
    patience: float = 55.0
    background: int = 0
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION

    @property
    def name(self) -> str:
        """The runtime's name and the network's, or the cluster's context."""
        if isinstance(self.cluster, Users):
            return self.cluster.context or Path(self.cluster.kubeconfig).name
        return f"{Path(self.runtime).name} + {known.title(self.network)}"

    @property
    def note(self) -> str | None:
        """What is special about these figures."""
        if isinstance(self.cluster, Users):
            return "pods on the user's cluster, without its components' spans"
        return (
            "pods of a control plane on this machine: etcd's data is in memory, and all "
            "components trace themselves"
        )

    def probe(self) -> None:
        """Needs a cluster, or what is needed to start one."""
        if isinstance(self.cluster, Users):
            files = self.cluster.kubeconfig.split(os.pathsep)
            if not any(Path(file).is_file() for file in files):
                raise Unsupported(f"the kubeconfig {self.cluster.kubeconfig} does not exist",
                                  "give one with --kubeconfig FILE")  # fmt: skip
            _read_kubeconfig(self.cluster)
            return
        running.probe()
        running.handlers((self.runtime,), (self.network,))

    def to_first_packet(self) -> Self:
        """The same, to the gateway's answer to the container's first packet."""
        if isinstance(self.cluster, Users):
            raise Unsupported("the gateway of a user's pods is not known", "use --end-point ready")
        gateway(self.network)
        return replace(self, end_point=EndPoint.FIRST_PACKET)

    def at_the_api(self) -> Self:
        """The same, to the pod's being Ready in the API."""
        return replace(self, end_point=EndPoint.READY_AT_API)

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """The cluster and a namespace in it; pods are deleted when their starts end."""
        lab = workspace.once(self.cluster, lambda: _lab(self.cluster, workspace))
        lab.check()
        lab.have_background(self)
        names = [f"p{next(_names)}" for _ in range(instances)]
        clock = Clock()
        before = lab.metrics()
        try:
            yield Prepared(
                [Ask(lab.socket, "{}", self.request(name), lab.daemons) for name in names],
                counts=lambda: lab.counts(before),
                telemetry=lambda: lab.telemetry(names, clock),
            )
        finally:
            lab.await_quiet(self.background)

    def request(self, name: str) -> str:
        """The message that asks for a pod of this name."""
        own = isinstance(self.cluster, Own)
        request = Request(
            name=name,
            image=self.image,
            runtime_class=running.handler_name(self.runtime, self.network) if own else self.runtime,
            args=self._args,
            until="ready" if self.end_point is EndPoint.READY_AT_API else "first",
            pull="Never" if own else "IfNotPresent",
            patience=self.patience,
        )
        return msgspec.json.encode(request).decode()

    @property
    def _args(self) -> tuple[str, ...]:
        return ("reach", gateway(self.network)) if self.end_point is EndPoint.FIRST_PACKET else ()


def _read_kubeconfig(of: Users) -> None:
    """Raise Unsupported if the file is no kubeconfig, or lacks the context."""
    try:
        apiserver.settings(of.kubeconfig, of.context)
    except ImportError as error:
        raise Unsupported("the Python client of Kubernetes is missing",
                          install_extra("kubernetes")) from error  # fmt: skip
    except Exception as error:
        raise Unsupported(f"cannot use the kubeconfig {of.kubeconfig}: {error}",
                          "give another with --kubeconfig or --context") from error  # fmt: skip


def gateway(name: str) -> str:
    """The destination of a network's first packet. Raises Unsupported if it is unknown."""
    network, info = known.find(name)
    if info.packet != "gateway":
        return info.packet
    for plugin in network.plugins:
        ipam = plugin.get("ipam", {})
        ranges = ipam.get("ranges") or [[ipam]]
        if ipam.get("type") == "host-local" and "subnet" in ranges[0][0]:
            chosen = ranges[0][0]
            return str(chosen.get("gateway") or ip_network(chosen["subnet"])[1])
    raise Unsupported(f"the gateway of {name} is unknown before a pod exists",
                      "give a network with host-local, such as --cni bridge")  # fmt: skip


@dataclass
class Lab:
    """A namespace of a cluster; a user's has nothing else. ``own`` is firstlight's, ``book`` its
    components' telemetry, ``daemons`` the pids of its containerd and of its networks' daemons.
    The pods of ``background`` are those of the backend ``beside``.
    """

    socket: Path
    namespace: str
    background: ExitStack
    book: Book | None = None
    own: running.Cluster | None = None
    daemons: tuple[int, ...] = ()
    beside: Kubernetes | None = None

    def have_background(self, backend: Kubernetes) -> None:
        """Have this backend's pods in the background: the last one's, if it is the same."""
        if self.beside == backend:
            return
        self.beside = None
        self.background.close()
        self.await_quiet(0)
        requests = [backend.request(f"p{next(_names)}") for _ in range(backend.background)]
        self.background.enter_context(start_server.held(self.socket, requests))
        self.beside = backend

    def check(self) -> None:
        """Raise Failed if a component of firstlight's cluster has ended."""
        if self.own and (words := running.ended(self.own)):
            raise Failed(words)

    def await_quiet(self, left: int) -> None:
        """Wait until a firstlight's cluster has so many pods left. Raises Failed."""
        self.check()
        if self.own:
            running.await_quiet(self.own.pid, left, self.check)

    def counts(self, before: metrics.Sums) -> dict[str, float]:
        """The means since that reading; none without it, or if a component has ended meanwhile."""
        after = self.metrics() if before else {}
        return metrics.between(before, after) if after else {}

    def metrics(self) -> metrics.Sums:
        """The sums of its components' metrics; empty for a user's cluster, or without an answer."""
        with suppress(OSError, HTTPException, ValueError):
            return metrics.read(self.own) if self.own else {}
        return {}

    def telemetry(self, names: list[str], clock: Clock) -> Mapping[int, Telemetry]:
        """The telemetry of each pod, by position."""
        clock.close()
        if self.book is None:
            return {}
        pods = [f"{self.namespace}/{name}" for name in names]
        self.book.await_pods(pods, _TELEMETRY_SECONDS)
        return {place: self.book.pod(pod, clock) for place, pod in enumerate(pods)}


@contextmanager
def _lab(of: Own | Users, workspace: Workspace) -> Iterator[Lab]:
    namespace = f"firstlight-{workspace.run.lower()}"
    if isinstance(of, Users):
        network = f"/proc/self/fd/{workspace.outside}"
        configuration = Configuration(
            socket=str(workspace.directory / "requester.sock"),
            kubeconfig=of.kubeconfig,
            context=of.context,
            namespace=namespace,
            run=workspace.run,
        )
        with (
            resident("requester", configuration, network, workspace) as socket,
            ExitStack() as background,
        ):
            yield Lab(socket, namespace, background)
        return
    handlers = running.handlers(of.runtimes, of.networks)
    with running.cluster(workspace, handlers) as cluster:
        configuration = Configuration(
            socket=str(workspace.directory / "requester.sock"),
            kubeconfig=str(cluster.settings.kubeconfig),
            namespace=namespace,
            run=workspace.run,
            pod_logs=str(cluster.settings.pod_logs),
        )
        with (
            resident("requester", configuration, cluster.network, workspace) as socket,
            ExitStack() as background,
        ):
            book = Book(cluster.settings.spans)
            yield Lab(socket, namespace, background, book, cluster, running.daemons(cluster))
