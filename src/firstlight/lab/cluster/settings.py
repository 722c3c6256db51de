"""The settings of a cluster's components: command lines, and how to see that each is up.

All addresses are of the cluster's own network namespace, all paths below its own directory.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import msgspec

from firstlight.agile.config import load
from firstlight.agile.pods import daemon as pods
from firstlight.agile.shim import command as shim
from firstlight.host import cgroups
from firstlight.lab.cni import known, services

NODE = "firstlight"
ADDRESS = "10.213.0.1"
"""Of the first node, which has the control plane; the others' follow it."""
PODS = "10.244.0.0/16"
"""Of which the controller manager gives each node a range of its own."""
PAYLOAD, PAUSE = "docker.io/firstlight/payload:1", "docker.io/firstlight/pause:1"
_SERVICES = "10.214.0.0/16"
_NODE_MASK = "22"
INSTALLED = Path("/etc/cni/net.d"), Path("/opt/cni/bin")
"""Where an installation in the cluster puts its list and its plugins: they are the node's own."""
_ROUTED = "10.93.0.0/16"
ANNOTATIONS = {"kube-router.io/pod-cidr": _ROUTED, "kube-router.io/pod-cidrs": _ROUTED}
"""Of the node: kube-router's own range, since two bridges cannot share the node's."""
_ETCD, TELEMETRY, METRICS = "127.0.0.1:2379", "127.0.0.1:4317", "127.0.0.1:1338"
"""etcd's address, where spans are received, and where containerd's metrics are."""
API_PORT = 6443
_EXPORT_MS = 200  # the interval of exports, so that a batch's spans have arrived when it ends


class Handler(msgspec.Struct, frozen=True):
    """A runtime class: an OCI runtime by its path, and the network of a CNI configuration list."""

    name: str
    runtime: str
    network: str
    """The text of the list; "" for what is installed in the cluster."""
    plugins: tuple[str, ...]
    """Directories in which its plugins are looked for."""
    is_shim: bool = False
    """The runtime is firstlight's shim, whose server is a component."""
    daemon: str = ""
    """The network's own daemon, by its program's name; empty without one."""
    service: str = ""
    """The network by its name, if its plugin needs one of lab/cni/services.py; or empty."""


class Settings(msgspec.Struct, frozen=True):
    """One node, the first of a cluster of ``nodes`` or, with a ``number``, one that joins it.

    ``programs`` are paths by name; ``payload`` is the static program of the images. ``environment``
    marks its processes as the run's; ``control_plane`` is False for containerd alone. ``forward``
    is a listening descriptor whose connections go to the API, or -1; ``switch`` is that of the
    namespace that joins the nodes. ``snapshotters`` are those that it can pull for, if not the
    default one; containerd does not pull at all if one of them cannot work.
    """

    run: str
    directory: str
    programs: dict[str, str]
    payload: str
    handlers: tuple[Handler, ...]
    token: str
    environment: dict[str, str]
    control_plane: bool = True
    forward: int = -1
    switch: int = -1
    nodes: int = 1
    number: int = 0
    snapshotters: tuple[str, ...] = ()

    def others(self) -> "tuple[Settings, ...]":
        """The settings of the nodes that join the first, for the first; none for those."""
        numbers = range(1, 1 if self.number else self.nodes)
        return tuple(
            msgspec.structs.replace(
                self, directory=str(self.home / "nodes" / _name(number)), number=number, forward=-1
            )
            for number in numbers
        )

    @property
    def name(self) -> str:
        """Of the Node."""
        return _name(self.number)

    @property
    def address(self) -> str:
        """The Node's address for the other nodes."""
        return str(ip_address(ADDRESS) + self.number)

    @property
    def home(self) -> Path:
        """Its directory."""
        return Path(self.directory)

    @property
    def first_home(self) -> Path:
        """The directory of the first node."""
        return self.home.parents[1] if self.number else self.home

    @property
    def has_network(self) -> bool:
        """Whether pods have a network without one that is installed in the cluster."""
        return all(handler.network for handler in self.handlers)

    @property
    def cgroup(self) -> str:
        """Its top cgroup: not the run's, which is emptied after every batch."""
        return self.name if self.number else f"{cgroups.name(self.run)}-node"

    @property
    def socket(self) -> Path:
        """Where containerd and its CRI listen."""
        return self.home / "containerd.sock"

    @property
    def shim(self) -> Path:
        """The directory of the shim's server, where a handler has it."""
        return self.home / "shim"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's, for use inside the cluster's network namespaces."""
        return self.kubeconfig_of("admin")

    def kubeconfig_of(self, user: str) -> Path:
        """A component's kubeconfig: it has the rights that the cluster's roles give to its name."""
        return self.home / "kubeconfigs" / user

    @property
    def pod_logs(self) -> Path:
        """The directory of containers' logs, as the kubelet arranges it."""
        return self.home / "pod-logs"

    @property
    def spans(self) -> Path:
        """What the components report; see ``telemetry``."""
        return self.home / "spans.jsonl"

    def network(self, handler: Handler) -> Path:
        """A handler's list, in a directory of its own."""
        return self.home / "cni" / handler.name / "10-firstlight.conflist"

    @property
    def has_daemons(self) -> bool:
        """Whether networks have daemons beside the cluster's own components."""
        return any(handler.daemon or handler.service for handler in self.handlers)

    def log(self, component: str) -> Path:
        """What a component printed."""
        return self.home / "logs" / f"{component}.log"


@dataclass(frozen=True)
class Health:
    """How to see that a component is up: by HTTP, by its socket, or by a file."""

    url: str = ""
    socket: Path | None = None
    file: Path | None = None


@dataclass(frozen=True)
class Component:
    """One process. ``after`` are the components that must be up before it starts, ``files`` the
    texts to write first, by path.
    """

    name: str
    argv: tuple[str, ...]
    health: Health
    after: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[Path, str] = field(default_factory=dict)


def components(settings: Settings) -> tuple[Component, ...]:
    """All of a node, in the order in which they can be started."""
    home, program = settings.home, settings.programs.__getitem__
    if settings.number:
        containerd = _of_containerd(settings, {}, ())
        return containerd, *_of_node(settings, {}, ()), *_agents(settings, ())
    telemetry = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{TELEMETRY}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_INSECURE": "true",
        "OTEL_BSP_SCHEDULE_DELAY": str(_EXPORT_MS),
        "OTEL_BSP_MAX_QUEUE_SIZE": "65536",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4096",
    }
    receiver = Component(
        "telemetry",
        (program("python"), "-m", "firstlight.lab.cluster.telemetry", str(settings.spans),
         TELEMETRY),
        Health(url="tcp://" + TELEMETRY),
    )  # fmt: skip
    containerd = _of_containerd(settings, telemetry, ("telemetry",))
    if not settings.control_plane:
        return receiver, containerd, *_agents(settings, ())
    certificates = home / "certs"
    fast = ("--kube-api-qps", "500", "--kube-api-burst", "1000")
    return (
        receiver,
        Component(
            "etcd",
            (program("etcd"), "--data-dir", str(home / "etcd"),
             "--listen-client-urls", f"http://{_ETCD}", "--advertise-client-urls",
             f"http://{_ETCD}", "--listen-peer-urls", "http://127.0.0.1:2380"),
            Health(url=f"http://{_ETCD}/health"),
        ),
        containerd,
        Component(
            "kube-apiserver",
            (program("kube-apiserver"), "--etcd-servers", f"http://{_ETCD}",
             "--cert-dir", str(certificates), "--advertise-address", ADDRESS,
             "--secure-port", str(API_PORT), "--service-cluster-ip-range", _SERVICES,
             "--authorization-mode", "Node,RBAC",
             "--token-auth-file", str(home / "tokens.csv"),
             "--service-account-issuer", "https://kubernetes.default.svc",
             "--service-account-key-file", str(certificates / "apiserver.key"),
             "--service-account-signing-key-file", str(certificates / "apiserver.key"),
             "--enable-admission-plugins", "NodeRestriction",
             "--enable-priority-and-fairness=false", "--profiling=false",
             "--kubelet-preferred-address-types", "InternalIP", "--allow-privileged=true",
             "--tracing-config-file", str(home / "apiserver-tracing.json")),
            Health(url=f"https://127.0.0.1:{API_PORT}/readyz"),
            after=("telemetry", "etcd"),
            environment=telemetry,
        ),
        Component(
            "kube-scheduler",
            (program("kube-scheduler"), "--kubeconfig",
             str(settings.kubeconfig_of("system:kube-scheduler")), "--leader-elect=false",
             "--secure-port", "10259", "--cert-dir", str(certificates / "scheduler"), *fast),
            Health(url="https://127.0.0.1:10259/healthz"),
            after=("kube-apiserver",),
        ),
        Component(
            "kube-controller-manager",
            (program("kube-controller-manager"), "--kubeconfig",
             str(settings.kubeconfig_of("system:kube-controller-manager")),
             "--use-service-account-credentials", "--leader-elect=false",
             "--cert-dir", str(certificates / "controllers"),
             "--root-ca-file", str(certificates / "apiserver.crt"),
             "--allocate-node-cidrs", "--cluster-cidr", PODS,
             "--node-cidr-mask-size", _NODE_MASK, "--service-cluster-ip-range", _SERVICES,
             "--service-account-private-key-file", str(certificates / "apiserver.key"), *fast),
            Health(url="https://127.0.0.1:10257/healthz"),
            after=("kube-apiserver",),
        ),
        *_of_node(settings, telemetry, ("kube-apiserver",)),
        *_agents(settings, ("kube-apiserver",)),
        *_daemons(settings),
        *map(_joining, settings.others()),
    )  # fmt: skip


def _of_containerd(
    settings: Settings, telemetry: Mapping[str, str], after: tuple[str, ...]
) -> Component:
    return Component(
        "containerd",
        (settings.programs["containerd"], "--config", str(settings.home / "containerd.toml")),
        Health(socket=settings.socket),
        after=after,
        environment={
            **({**telemetry, "OTEL_SERVICE_NAME": "containerd"} if telemetry else {}),
            "FIRSTLIGHT_SHIM": str(settings.shim / "socket"),
        },
    )


def _of_node(
    settings: Settings, telemetry: Mapping[str, str], after: tuple[str, ...]
) -> tuple[Component, ...]:
    """The kubelet and kube-proxy."""
    home, program = settings.home, settings.programs.__getitem__
    kubelet = Component(
        "kubelet",
        (program("kubelet"), "--kubeconfig", str(settings.kubeconfig_of(node_user(settings))),
         "--config", str(home / "kubelet.json"), "--root-dir", str(home / "kubelet"),
         "--cert-dir", str(home / "certs" / "kubelet"), "--hostname-override", settings.name,
         "--node-ip", settings.address),
        Health(url="http://127.0.0.1:10248/healthz"),
        after=(*after, "containerd"),
        environment=telemetry,
    )  # fmt: skip
    proxy = Component(
        "kube-proxy",
        (program("kube-proxy"), "--config", str(home / "kube-proxy.json"),
         "--hostname-override", settings.name),
        Health(url="http://127.0.0.1:10249/healthz"),
        after=after,
    )  # fmt: skip
    return kubelet, proxy


def _joining(settings: Settings) -> Component:
    """Another node, as a component of the first."""
    file = str(settings.home / "settings.json")
    argv = (settings.programs["python"], "-m", "firstlight.lab.cluster.node", file)
    return Component(settings.name, argv, Health(socket=settings.socket), ("kube-apiserver",))


def _agents(settings: Settings, after: tuple[str, ...]) -> tuple[Component, ...]:
    """What firstlight's own CNI plugin and shim need, where a handler has them."""
    agents = []
    if any(known.AGENT in handler.network for handler in settings.handlers):
        usual = known.agent_configuration()
        configuration = agent_file(settings) if settings.control_plane else usual
        argv = (settings.programs["python"], "-P", pods.__file__, str(configuration))
        health = Health(socket=load(usual).socket)
        agents.append(Component("agent", argv, health, after, {"NODE_NAME": settings.name}))
    if any(handler.is_shim for handler in settings.handlers):
        events, runtime = f"{settings.socket}.ttrpc", Path(settings.programs["runc"])
        words = shim.words(settings.shim, events, runtime, shim.PREPARED)
        health = Health(socket=settings.shim / "socket")
        agents.append(Component("shim-keeper", tuple(words), health))
    return tuple(agents)


def _daemons(settings: Settings) -> tuple[Component, ...]:
    """The products' own daemons, as on a node: they find it by the API, so they start after it."""
    names = dict.fromkeys(handler.daemon for handler in settings.handlers if handler.daemon)
    served = dict.fromkeys(handler.service for handler in settings.handlers if handler.service)
    return (
        *(DAEMONS[name](settings) for name in names),
        *(_service(settings, name) for name in served),
    )


def service_name(network: str) -> str:
    """The component that serves a network's plugin."""
    return f"service-{network}"


def _service(settings: Settings, network: str) -> Component:
    """What a profile's plugin needs in place of the product's daemon."""
    directory = settings.home / f"service-{known.title(network)}"
    argv = (settings.programs["python"], "-m", services.__name__, network, str(directory))
    return Component(
        service_name(network), argv, Health(file=directory / "up"), ("kubelet", "etcd")
    )


def _flannel(settings: Settings) -> Component:
    """flannel with VXLAN, its subnet from the node object. It writes what its plugin reads."""
    network = settings.home / "flannel.json"
    text = json.dumps({"Network": PODS, "Backend": {"Type": "vxlan"}})
    argv = (settings.programs["flanneld"], "--kube-subnet-mgr",
            "--kubeconfig-file", str(settings.kubeconfig), "--net-config-path", str(network),
            "--iface", "ext0", "--ip-masq")  # fmt: skip
    subnet = Path("/run/flannel/subnet.env")
    named = {"NODE_NAME": settings.name}
    return Component("flanneld", argv, Health(file=subnet), ("kubelet",), named, {network: text})


def _kube_router(settings: Settings) -> Component:
    """kube-router as router and CNI. It writes the node's range into the list of its network."""
    handler = next(each for each in settings.handlers if each.daemon == "kube-router")
    argv = (settings.programs["kube-router"], "--kubeconfig", str(settings.kubeconfig),
            "--hostname-override", settings.name, "--run-router", "--enable-cni",
            "--run-firewall=false", "--run-service-proxy=false", "--run-loadbalancer=false",
            "--health-port", "20244", "--metrics-port", "0")  # fmt: skip
    health = Health(url="http://127.0.0.1:20244/healthz")
    file = {"KUBE_ROUTER_CNI_CONF_FILE": str(settings.network(handler))}
    return Component("kube-router", argv, health, ("kubelet",), file)


DAEMONS: dict[str, Callable[[Settings], Component]] = {
    "flanneld": _flannel,
    "kube-router": _kube_router,
}
"""By the name of their program, which a network's configuration gives under ``daemon``."""


def agent_file(settings: Settings) -> Path:
    """The configuration of the agent, with a range of the Node object."""
    return settings.home / "pods.toml"


def node_user(settings: Settings) -> str:
    """The name by which a kubelet is known to the node authorizer."""
    return f"system:node:{settings.name}"


def _name(number: int) -> str:
    return f"{NODE}-{number + 1}" if number else NODE


def plugin_directories(settings: Settings) -> list[str]:
    """Where containerd looks for the plugins of all handlers, the first handler's first."""
    return list(dict.fromkeys(path for handler in settings.handlers for path in handler.plugins))
