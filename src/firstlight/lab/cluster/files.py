"""Writes the files of a node's components: configurations, users and kubeconfigs."""

import hashlib
import json
from pathlib import Path

import msgspec

from firstlight.lab.cluster import image
from firstlight.lab.cluster.settings import (
    ADDRESS,
    API_PORT,
    INSTALLED,
    METRICS,
    PAUSE,
    PODS,
    TELEMETRY,
    Handler,
    Settings,
    agent_file,
    node_user,
    plugin_directories,
)
from firstlight.lab.cni import known


def _agent(settings: Settings) -> str:
    """The agent's usual configuration, with the range that its Node has."""
    usual = known.agent_configuration().read_text()
    start = usual.index("range = ")
    end = usual.index("\n", start)
    ours = f'range = ""\ncluster = ["{PODS}"]\nkubeconfig = "{settings.kubeconfig}"'
    return usual[:start] + ours + usual[end:]


def write(settings: Settings) -> None:
    """Make the directories and files of the components."""
    home = settings.home
    for name in ("logs", "certs", "pod-logs", "ipam", "kubeconfigs", "nodes", "shim"):
        (home / name).mkdir()
    for handler in (each for each in settings.handlers if each.network):
        settings.network(handler).parent.mkdir(parents=True)
        settings.network(handler).write_text(handler.network)
    (home / "containerd.toml").write_text(_containerd(settings))
    agent_file(settings).write_text(_agent(settings))
    (home / "kube-proxy.json").write_text(json.dumps(_proxy(settings)))
    users = _users(settings)
    for node in settings.others():
        node.home.mkdir()
        (node.home / "settings.json").write_bytes(msgspec.json.encode(node))
        users |= _users(node)
    (home / "tokens.csv").write_text(
        "".join(f'{_token(settings, user)},{user},{user},"{users[user]}"\n' for user in users)
    )
    tracing = {"endpoint": TELEMETRY, "samplingRatePerMillion": 1_000_000}
    (home / "apiserver-tracing.json").write_text(
        json.dumps({"apiVersion": "apiserver.config.k8s.io/v1beta1",
                    "kind": "TracingConfiguration", **tracing})
    )  # fmt: skip
    (home / "kubelet.json").write_text(
        json.dumps(_kubelet(settings) | ({} if settings.number else {"tracing": tracing}))
    )


def write_kubeconfigs(settings: Settings, authority: Path) -> None:
    """Write those of a node's components; ``authority`` is a file of certificates."""
    server = f"https://{ADDRESS}:{API_PORT}"
    for user in _users(settings):
        file = settings.kubeconfig_of(user)
        file.touch(mode=0o600)
        file.write_text(kubeconfig(server, _token(settings, user), str(authority)))


def _users(settings: Settings) -> dict[str, str]:
    """The groups of a node's components by their names, which the cluster's own roles know."""
    users = {
        "admin": "system:masters",
        node_user(settings): "system:nodes",
        "system:kube-proxy": "",
    }
    if not settings.number:
        users |= {"system:kube-scheduler": "", "system:kube-controller-manager": ""}
    return users


def _token(settings: Settings, user: str) -> str:
    if user == "admin":
        return settings.token
    return hashlib.sha256(f"{settings.token} {user}".encode()).hexdigest()


def kubeconfig(server: str, token: str, authority: str) -> str:
    """A kubeconfig of one context; ``authority`` is a file of certificates."""
    name = "firstlight"
    cluster = {
        "server": server,
        "certificate-authority": authority,
        "tls-server-name": "kubernetes.default",  # the host's loopback is not in the certificate
    }
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        },
        indent=1,
    )


def _proxy(settings: Settings) -> dict[str, object]:
    """See https://kubernetes.io/docs/reference/config-api/kube-proxy-config.v1alpha1/."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": PODS,
        "clientConnection": {
            "kubeconfig": str(settings.kubeconfig_of("system:kube-proxy")), "qps": 500,
            "burst": 1000,
        },
        "nftables": {"minSyncPeriod": "0s"},
        # The sysctls are the host's and must not change.
        "conntrack": {"maxPerCore": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s"},
    }  # fmt: skip


def _kubelet(settings: Settings) -> dict[str, object]:
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
        # The kubelet must not evict or collect anything in the middle of a run, however full the
        # machine is.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%",
                         "imagefs.available": "1%", "nodefs.inodesFree": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "eventRecordQPS": 0,
        "kubeAPIQPS": 500,
        "kubeAPIBurst": 1000,
    }  # fmt: skip


def _containerd(settings: Settings) -> str:
    """See containerd's docs/cri/config.md; version 4 would ignore the address."""
    home = settings.home
    runtime = "plugins.'io.containerd.cri.v1.runtime'"
    first = settings.handlers[0]
    has_shim = any(handler.is_shim for handler in settings.handlers)
    lines = [
        "version = 3",
        f'root = "{home}/containerd"',
        f'state = "{home}/containerd-state"',
        "disabled_plugins = ['io.containerd.nri.v1.nri', 'io.containerd.internal.v1.opt']",
        "[grpc]",
        f'address = "{settings.socket}"',
        "[metrics]",
        f'address = "{METRICS}"',
        "[ttrpc]",
        f'address = "{settings.socket}.ttrpc"',
        "[plugins.'io.containerd.cri.v1.images'.pinned_images]",
        f'sandbox = "{PAUSE}"',
        f"[{runtime}]",
        "disable_apparmor = true",
        "restrict_oom_score_adj = true",
        f"[{runtime}.cni]",
        f"bin_dirs = {json.dumps(plugin_directories(settings))}",
        f'conf_dir = "{_lists(settings, first)}"',
        "max_conf_num = 1",
        f"use_internal_loopback = {str(has_shim).lower()}",  # the same as in deploy/containerd
        f"[{runtime}.containerd]",
        f'default_runtime_name = "{first.name}"',
    ]
    for name in settings.snapshotters:
        lines += [
            "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]",
            f"platform = 'linux/{image.MACHINE}'",
            f"snapshotter = '{name}'",
            f"differ = '{'erofs' if name == 'erofs' else 'walking'}'",
        ]
    for handler in settings.handlers:
        name = f"{runtime}.containerd.runtimes.'{handler.name}'"
        lines += [
            f"[{name}]",
            f'cni_conf_dir = "{_lists(settings, handler)}"',
            "cni_max_conf_num = 1",
        ]
        lines += _of_shim(handler) if handler.is_shim else _of_runc(name, handler)
    return "\n".join(lines) + "\n"


def _of_runc(name: str, handler: Handler) -> list[str]:
    return [
        "runtime_type = 'io.containerd.runc.v2'",
        f"[{name}.options]",
        f'BinaryName = "{handler.runtime}"',
        "SystemdCgroup = false",
    ]


def _of_shim(handler: Handler) -> list[str]:
    return [
        f'runtime_type = "{handler.runtime}"',
        'sandboxer = "shim"',
        "disable_pause_image_pull = true",
    ]


def _lists(settings: Settings, handler: Handler) -> Path:
    return settings.home / "cni" / handler.name if handler.network else INSTALLED[0]
