"""What each component of a cluster is given: its command line, its files, and how it says it is up.

All addresses are of the cluster's own network namespace, all paths below its own directory.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from firstlight.agile.config import load
from firstlight.agile.pods import daemon as pods
from firstlight.host import cgroups
from firstlight.lab.cni import known

NODE = "firstlight"
ADDRESS = "10.213.0.1"
PAYLOAD, PAUSE = "docker.io/firstlight/payload:1", "docker.io/firstlight/pause:1"
_SERVICES = "10.214.0.0/16"
_ETCD, _TELEMETRY = "127.0.0.1:2379", "127.0.0.1:4317"
API_PORT = 6443
_EXPORT_MS = 200  # spans are handed over that often, so that a batch's are there when it has ended


class Handler(msgspec.Struct, frozen=True):
    """A runtime class: an OCI runtime by its path, and the network of a CNI configuration list."""

    name: str
    runtime: str
    network: str
    """The text of the list."""
    plugins: tuple[str, ...]
    """Directories in which its plugins are looked for."""


class Settings(msgspec.Struct, frozen=True):
    """One cluster. ``programs`` are paths by name; ``payload`` is the static program of the images.

    ``environment`` marks its processes as the run's; ``control_plane`` is False for containerd
    alone. ``forward`` is a listening descriptor whose connections go to the API, or -1.
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

    @property
    def home(self) -> Path:
        """Its directory."""
        return Path(self.directory)

    @property
    def cgroup(self) -> str:
        """Its top cgroup: not the run's, which is emptied after every batch."""
        return f"{cgroups.name(self.run)}-node"

    @property
    def socket(self) -> Path:
        """Where containerd and its CRI listen."""
        return self.home / "containerd.sock"

    @property
    def kubeconfig(self) -> Path:
        """For use inside the cluster's network namespace."""
        return self.home / "kubeconfig"

    @property
    def pod_logs(self) -> Path:
        """What containers print, as the kubelet lays it out."""
        return self.home / "pod-logs"

    @property
    def spans(self) -> Path:
        """What the components report; see ``telemetry``."""
        return self.home / "spans.jsonl"

    def log(self, component: str) -> Path:
        """What a component printed."""
        return self.home / "logs" / f"{component}.log"


@dataclass(frozen=True)
class Health:
    """How to see that a component is up: by HTTP, or by its socket."""

    url: str = ""
    socket: Path | None = None


@dataclass(frozen=True)
class Component:
    """One process. ``after`` are the components that must be up before it starts."""

    name: str
    argv: tuple[str, ...]
    health: Health
    after: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def components(settings: Settings) -> tuple[Component, ...]:
    """All of them, in the order in which they can be started."""
    home, program = settings.home, settings.programs.__getitem__
    telemetry = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{_TELEMETRY}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_INSECURE": "true",
        "OTEL_BSP_SCHEDULE_DELAY": str(_EXPORT_MS),
        "OTEL_BSP_MAX_QUEUE_SIZE": "65536",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4096",
    }
    receiver = Component(
        "telemetry",
        (program("python"), "-m", "firstlight.lab.cluster.telemetry", str(settings.spans),
         _TELEMETRY),
        Health(url="tcp://" + _TELEMETRY),
    )  # fmt: skip
    containerd = Component(
        "containerd",
        (program("containerd"), "--config", str(home / "containerd.toml")),
        Health(socket=settings.socket),
        after=("telemetry",),
        environment={**telemetry, "OTEL_SERVICE_NAME": "containerd"},
    )
    agents = _agents(settings)
    if not settings.control_plane:
        return receiver, containerd, *agents
    certificates, kubeconfig = home / "certs", str(settings.kubeconfig)
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
             "--cert-dir", str(certificates), "--bind-address", "127.0.0.1",
             "--advertise-address", ADDRESS, "--secure-port", str(API_PORT),
             "--service-cluster-ip-range", _SERVICES, "--authorization-mode", "AlwaysAllow",
             "--token-auth-file", str(home / "tokens.csv"),
             "--service-account-issuer", "https://kubernetes.default.svc",
             "--service-account-key-file", str(certificates / "apiserver.key"),
             "--service-account-signing-key-file", str(certificates / "apiserver.key"),
             "--disable-admission-plugins", "ServiceAccount",
             "--enable-priority-and-fairness=false", "--profiling=false",
             "--kubelet-preferred-address-types", "InternalIP", "--allow-privileged=true",
             "--tracing-config-file", str(home / "apiserver-tracing.json")),
            Health(url=f"https://127.0.0.1:{API_PORT}/readyz"),
            after=("telemetry", "etcd"),
            environment=telemetry,
        ),
        Component(
            "kube-scheduler",
            (program("kube-scheduler"), "--kubeconfig", kubeconfig, "--leader-elect=false",
             "--secure-port", "10259", "--cert-dir", str(certificates / "scheduler"), *fast),
            Health(url="https://127.0.0.1:10259/healthz"),
            after=("kube-apiserver",),
        ),
        Component(
            "kube-controller-manager",
            (program("kube-controller-manager"), "--kubeconfig", kubeconfig,
             "--leader-elect=false", "--cert-dir", str(certificates / "controllers"),
             "--service-account-private-key-file", str(certificates / "apiserver.key"), *fast),
            Health(url="https://127.0.0.1:10257/healthz"),
            after=("kube-apiserver",),
        ),
        Component(
            "kubelet",
            (program("kubelet"), "--kubeconfig", kubeconfig,
             "--config", str(home / "kubelet.json"), "--root-dir", str(home / "kubelet"),
             "--cert-dir", str(certificates / "kubelet"), "--hostname-override", NODE,
             "--node-ip", ADDRESS),
            Health(url="http://127.0.0.1:10248/healthz"),
            after=("kube-apiserver", "containerd", *(agent.name for agent in agents)),
            environment=telemetry,
        ),
        *agents,
    )  # fmt: skip


def _agents(settings: Settings) -> tuple[Component, ...]:
    """The agent of firstlight's own CNI plugin, where a handler has that."""
    if not any(known.AGENT in handler.network for handler in settings.handlers):
        return ()
    configuration = known.agent_configuration()
    argv = (settings.programs["python"], "-P", pods.__file__, str(configuration))
    return (Component("agent", argv, Health(socket=load(configuration).socket)),)


def write(settings: Settings) -> None:
    """Make the directories and files that the components are given."""
    home = settings.home
    for name in ("logs", "certs", "pod-logs", "ipam"):
        (home / name).mkdir()
    for handler in settings.handlers:
        directory = home / "cni" / handler.name
        directory.mkdir(parents=True)
        (directory / "10-firstlight.conflist").write_text(handler.network)
    (home / "containerd.toml").write_text(_containerd(settings))
    (home / "tokens.csv").write_text(f'{settings.token},admin,admin,"system:masters"\n')
    tracing = {"endpoint": _TELEMETRY, "samplingRatePerMillion": 1_000_000}
    (home / "apiserver-tracing.json").write_text(
        json.dumps({"apiVersion": "apiserver.config.k8s.io/v1beta1",
                    "kind": "TracingConfiguration", **tracing})
    )  # fmt: skip
    (home / "kubelet.json").write_text(json.dumps(_kubelet(settings, tracing)))


def kubeconfig(server: str, token: str, authority: str) -> str:
    """A kubeconfig of one context; ``authority`` is a file of certificates."""
    name = "firstlight"
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [
                {"name": name, "cluster": {"server": server, "certificate-authority": authority}}
            ],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        },
        indent=1,
    )


def _kubelet(settings: Settings, tracing: Mapping[str, object]) -> dict[str, object]:
    """See https://kubernetes.io/docs/reference/config-api/kubelet-config.v1beta1/."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "enforceNodeAllocatable": [],
        "containerRuntimeEndpoint": f"unix://{settings.socket}",
        "podLogsDir": str(settings.pod_logs),
        "volumePluginDir": str(settings.home / "volume-plugins"),
        "resolvConf": "",
        "makeIPTablesUtilChains": False,
        "enableControllerAttachDetach": False,
        "failSwapOn": False,
        "maxPods": 250,
        # A laboratory's small or full machine is not to be tidied up in the middle of a run.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%",
                         "imagefs.available": "1%", "nodefs.inodesFree": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "eventRecordQPS": 0,
        "kubeAPIQPS": 500,
        "kubeAPIBurst": 1000,
        "tracing": tracing,
    }  # fmt: skip


def _containerd(settings: Settings) -> str:
    """See containerd's docs/cri/config.md; version 4 would ignore the address."""
    home = settings.home
    runtime = "plugins.'io.containerd.cri.v1.runtime'"
    first = settings.handlers[0]
    lines = [
        "version = 3",
        f'root = "{home}/containerd"',
        f'state = "{home}/containerd-state"',
        "disabled_plugins = ['io.containerd.nri.v1.nri', 'io.containerd.internal.v1.opt']",
        "[grpc]",
        f'address = "{settings.socket}"',
        "[ttrpc]",
        f'address = "{settings.socket}.ttrpc"',
        "[plugins.'io.containerd.cri.v1.images'.pinned_images]",
        f'sandbox = "{PAUSE}"',
        f"[{runtime}]",
        "disable_apparmor = true",
        "restrict_oom_score_adj = true",
        f"[{runtime}.cni]",
        f"bin_dirs = {json.dumps(plugin_directories(settings))}",
        f'conf_dir = "{home}/cni/{first.name}"',
        "max_conf_num = 1",
        f"[{runtime}.containerd]",
        f'default_runtime_name = "{first.name}"',
    ]
    for handler in settings.handlers:
        name = f"{runtime}.containerd.runtimes.'{handler.name}'"
        lines += [
            f"[{name}]",
            "runtime_type = 'io.containerd.runc.v2'",
            f'cni_conf_dir = "{home}/cni/{handler.name}"',
            "cni_max_conf_num = 1",
            f"[{name}.options]",
            f'BinaryName = "{handler.runtime}"',
            "SystemdCgroup = false",
        ]
    return "\n".join(lines) + "\n"


def plugin_directories(settings: Settings) -> list[str]:
    """Where containerd looks for the plugins of all handlers, the first handler's first."""
    return list(dict.fromkeys(path for handler in settings.handlers for path in handler.plugins))
