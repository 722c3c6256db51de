"""A whole pod as one start: its network, then a container in it.

As on a node: a network namespace is named, the CNI plugins are called, and the OCI runtime gets the
namespace's path; or the namespace comes from a pool. The end point is the payload's first
instruction, or the gateway's answer to its first packet.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

from firstlight.errors import Unsupported
from firstlight.host.workspace import Workspace
from firstlight.lab.backends import Execute, Prepared, pooled
from firstlight.lab.backends.agile import Agile
from firstlight.lab.backends.cni import NAMES, Cni, Pods, hosting
from firstlight.lab.backends.oci import Bundles, Oci
from firstlight.lab.backends.oci_spec import PAYLOAD, Process
from firstlight.lab.cni import known
from firstlight.model import EndPoint
from firstlight.native import native

NO_NETWORK = "none"
"""The container has an empty network namespace, made by the runtime."""

POOLED = "pooled"
"""The container joins a network namespace from the agile runtime's pool."""


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
        """The notes of both parts, one per line."""
        network = pooled.NOTE if self.network == POOLED else self._cni.note if self._cni else None
        return "\n".join(note for note in (self._container.note, network) if note) or None

    @property
    def _container(self) -> Oci:
        return Oci(self.runtime)

    @property
    def _cni(self) -> Cni | None:
        return None if self.network in (NO_NETWORK, POOLED) else Cni(self.network)

    def probe(self) -> None:
        """Has the needs of its parts."""
        self._container.probe()
        if self._cni:
            self._cni.probe()
        if self.network == POOLED:
            Agile("agile").probe()

    def to_first_packet(self) -> Self:
        """The same, to the gateway's answer to the container's first packet."""
        if self.network == NO_NETWORK:
            raise Unsupported("a pod without a network has no first packet",
                              "give networks: --cni bridge --cni pooled")  # fmt: skip
        if not self._container.joins_network:
            raise Unsupported(f"{self._container.name} runs without a network here, so it has no "
                              "first packet", "give another runtime: --runtime runc")  # fmt: skip
        return replace(self, end_point=EndPoint.FIRST_PACKET)

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """A bundle and a network, or a request for one, for each pod."""
        with ExitStack() as stack:
            bundles = stack.enter_context(self._container.bundles(workspace))
            if self.network == NO_NETWORK:
                start = partial(self._alone, bundles)
            elif self.network == POOLED:
                pool = stack.enter_context(pooled.taking(instances, workspace))
                start = partial(self._from_pool, bundles, pool)
            else:
                pods = stack.enter_context(hosting(self.network, 0, workspace))
                start = partial(self._by_plugins, bundles, pods)
            yield Prepared([start(index) for index in range(instances)])

    def _process(self, gateway: str) -> Process:
        if self.end_point is EndPoint.FIRST_PACKET:
            return Process(("/bin/payload", "reach", gateway))
        return PAYLOAD

    def _alone(self, bundles: Bundles, index: int) -> Execute:
        return bundles.make(index).execute(bundles.workspace.environment)

    def _from_pool(self, bundles: Bundles, pool: pooled.Taking, index: int) -> Execute:
        """The command that takes a network and starts the container in it."""
        path = bundles.base / f"network{index}"
        bundle = bundles.make(index, self._process(pool.gateway), network=path)
        return pool.start(bundle.argv, path, bundles.workspace.environment)

    def _by_plugins(self, bundles: Bundles, pods: Pods, index: int) -> Execute:
        """The command that calls the plugins and starts the container in the pod's namespace.

        The gateway is known only after ADD; cnirun then writes it into the configuration.
        """
        pod = f"fl{index}"
        bundle = bundles.make(index, self._process("@GATEWAY@"), network=NAMES / pod)
        fill = [f"fill {bundle.config}"] if self.end_point is EndPoint.FIRST_PACKET else []
        request = str(pods.request(pod, *fill))
        return Execute(
            (str(native("cnirun")), "pod", request, *bundle.argv),
            bundles.workspace.environment,
            daemons=pods.daemons,
        )
