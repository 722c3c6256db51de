"""deploy/kubernetes on a real API server, kubelet and containerd: installed, upgraded, removed."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstlight.lab.cluster import programs, standing
from firstlight.lab.cluster.settings import NODE
from firstlight.lab.cluster.threads import in_network

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "kubernetes"
RANGE = "10.77.0.0/28"  # 13 pods
_DEADLINE = 180.0


def pod(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "runtimeClassName": "runc-bridge",
            "dnsPolicy": "Default",
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "containers": [{"name": "c", "image": "docker.io/firstlight/payload:1",
                            "stdin": True, "imagePullPolicy": "Never"}],
        },
    }  # fmt: skip


class Cluster:
    """``bin`` is where its containerd looks for plugins first."""

    def __init__(self, record: standing.Record, binaries: Path, overlay: Path) -> None:
        self.record, self.bin, self.overlay = record, binaries, overlay
        self.home = record.settings.home

    def kubectl(self, *words: str, text: str = "") -> str:
        done = subprocess.run(
            [programs.path("kubectl"), "--kubeconfig", self.record.kubeconfig, *words],
            input=text, capture_output=True, text=True, timeout=_DEADLINE,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.stderr}{done.stdout}{self.log()}"
        return done.stdout

    def log(self) -> str:
        pods = self.root(str(self.record.settings.pod_logs))
        return "".join(file.read_text()[-3000:] for file in pods.glob("firstlight_*/*/*.log"))

    def root(self, path: str) -> Path:
        """A path of the node, from outside."""
        return Path(f"/proc/{self.record.first}/root{path}")

    def kustomize(self, name: str, pods_toml: str) -> str:
        """An overlay for this node: its directories, and a kubeconfig in place of a Service."""
        directory = self.overlay / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "pods.toml").write_text(pods_toml)
        lists = str(self.home / "cni" / "runc-bridge")
        spec: dict[str, Any] = {
            "volumes": [
                {"name": "bin", "hostPath": {"path": str(self.bin), "type": ""}},
                {"name": "lists", "hostPath": {"path": lists, "type": ""}},
                {"name": "home", "hostPath": {"path": str(self.home)}},
            ],
            "runtimeClassName": "runc-bridge",
        }
        if name == "base":
            mount = {"name": "home", "mountPath": str(self.home), "readOnly": True}
            spec["containers"] = [{"name": "agent", "volumeMounts": [mount]}]
        patch = {"spec": {"template": {"spec": spec}}}
        kustomization = {
            "resources": [str(Path("..") / ".." / "deploy" / name)],
            "namespace": "firstlight",
            "configMapGenerator": [
                {"name": "agent" if name == "base" else "remove", "behavior": "merge",
                 "files": ["pods.toml"]}],
            "patches": [{"target": {"kind": "DaemonSet"}, "patch": json.dumps(
                {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "any"}} | patch
            )}],
        }  # fmt: skip
        (directory / "kustomization.yaml").write_text(json.dumps(kustomization))
        return str(directory)

    def addresses(self) -> dict[str, str]:
        pods = json.loads(self.kubectl("get", "pods", "-o", "json"))["items"]
        return {each["metadata"]["name"]: each["status"].get("podIP", "") for each in pods}


def until(check: Any) -> None:
    end = time.monotonic() + _DEADLINE
    while not check():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture
def cluster(
    agent_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    binaries = tmp_path / "bin"
    binaries.mkdir()
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    monkeypatch.setenv("CNI_PATH", str(binaries))
    record = standing.up(("runc",), ("bridge",), lambda _: None)
    try:
        made = Cluster(record, binaries, tmp_path / "overlay")
        standing.load(agent_image)
        yield made
    finally:
        standing.down()


def test_the_agent_is_installed_upgraded_and_removed(cluster: Cluster) -> None:
    kubectl = cluster.kubectl
    kubectl("apply", "-f", str(DEPLOY / "namespace" / "namespace.yaml"))
    for name in ("base", "remove"):
        assert "daemonset.apps" in kubectl("apply", "--dry-run=server", "-k", str(DEPLOY / name))
    kubeconfig = cluster.record.settings.kubeconfig
    toml = (f'name = "pods"\n[pods]\nrange = "{RANGE}"\nkubeconfig = "{kubeconfig}"\n'
            'metrics = "127.0.0.1:9713"\n[pods.pool]\nlow = 8\nhigh = 8\n')  # fmt: skip
    base = cluster.kustomize("base", toml)
    kubectl("apply", "-k", base)
    kubectl("-n", "firstlight", "rollout", "status", "daemonset/agent", "--timeout=120s")
    assert (cluster.bin / "firstlight").exists()

    kubectl("apply", "-f", "-", text=json.dumps(pod("one")))
    kubectl("wait", "--for=condition=Ready", "pod/one", "--timeout=90s")
    assert cluster.addresses()["one"].startswith("10.77.0.")
    node = json.loads(kubectl("get", "node", NODE, "-o", "json"))
    conditions = {each["type"]: each["status"] for each in node["status"]["conditions"]}
    assert conditions["FirstlightPodNetworks"] == "True"

    other = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "other"},
             "spec": {"podCIDR": "10.78.0.0/24", "podCIDRs": ["10.78.0.0/24"]}}  # fmt: skip
    kubectl("apply", "-f", "-", text=json.dumps(other))
    status = {"status": {"addresses": [{"type": "InternalIP", "address": "10.213.0.9"}]}}
    kubectl("patch", "node", "other", "--subresource=status", "-p", json.dumps(status))
    until(lambda: "10.78.0.0/24 via 10.213.0.9" in routes(cluster))
    kubectl("delete", "node", "other")
    until(lambda: "10.78.0.0/24" not in routes(cluster))

    names = [f"p{number}" for number in range(12)]
    kubectl("-n", "firstlight", "rollout", "restart", "daemonset/agent")
    for name in names:
        kubectl("apply", "-f", "-", text=json.dumps(pod(name)))
    kubectl("-n", "firstlight", "rollout", "status", "daemonset/agent", "--timeout=120s")
    kubectl("wait", "--for=condition=Ready", *(f"pod/{name}" for name in names), "--timeout=120s")
    addresses = cluster.addresses()
    assert len(set(addresses.values())) == len(names) + 1
    assert all(address.startswith("10.77.0.") for address in addresses.values())

    kubectl("apply", "-f", "-", text=json.dumps(pod("more")))
    query = ("get", "events", "--field-selector", "reason=NoNetwork", "-o", "json")
    until(lambda: json.loads(kubectl(*query))["items"])
    [event, *_] = json.loads(kubectl(*query))["items"]
    assert event["involvedObject"]["name"] == "more"
    assert "pods.range" in event["message"]
    kubectl("delete", "pod", "one")
    kubectl("wait", "--for=condition=Ready", "pod/more", "--timeout=120s")
    kubectl("delete", "pods", "--all", "--wait=true")

    kubectl("delete", "-k", base)
    kubectl("apply", "-k", cluster.kustomize("remove", 'name = "pods"\n'))
    kubectl("-n", "firstlight", "rollout", "status", "daemonset/remove", "--timeout=120s")
    assert not (cluster.bin / "firstlight").exists()
    lists = cluster.root(str(cluster.home / "cni" / "runc-bridge"))
    assert [each.name for each in lists.iterdir()] == ["10-firstlight.conflist"]
    assert "fppods" not in inside(cluster, "ip", "-br", "link")
    kubectl("apply", "-f", "-", text=json.dumps(pod("last")))
    kubectl("wait", "--for=condition=Ready", "pod/last", "--timeout=90s")
    assert cluster.addresses()["last"].startswith("10.90.")


def test_watch_serves_the_starts_of_its_node(cluster: Cluster, watch_image: Path) -> None:
    kubectl, folder, own = cluster.kubectl, str(DEPLOY / "watch"), ("-n", "firstlight-watch")
    standing.load(watch_image)
    kubectl("apply", "-k", folder)
    patch = {"spec": {"template": {"spec": {"runtimeClassName": "runc-bridge"}}}}
    kubectl(*own, "patch", "daemonset", "watch", "-p", json.dumps(patch))
    kubectl(*own, "rollout", "status", "daemonset/watch", "--timeout=120s")
    [name] = kubectl(*own, "get", "pods", "-o", "name", "--field-selector=status.phase=Running",
                     "-l", "app.kubernetes.io/component=watch").split()  # fmt: skip
    until(lambda: "watching" in kubectl(*own, "logs", name))
    kubectl("apply", "-f", "-", text=json.dumps(pod("one")))
    served = f"pods/{name.removeprefix('pod/')}:9101/proxy/metrics"
    path = f"/api/v1/namespaces/firstlight-watch/{served}"
    start = 'firstlight_start_seconds_count{cni="bridge",namespace="default",runtime="runc"} 1.0'
    until(lambda: start in kubectl("get", "--raw", path))
    assert 'phase="' in kubectl("get", "--raw", path)
    kubectl("delete", "pod", "one")
    kubectl("delete", "-k", folder)


def inside(cluster: Cluster, *words: str) -> str:
    return in_network(
        cluster.record.first,
        lambda: subprocess.run(words, capture_output=True, text=True, check=True).stdout,
    )


def routes(cluster: Cluster) -> str:
    return inside(cluster, "ip", "route")
