"""Checks the plan of prepared networks against three nodes: ``python -m bench.provision``, as root.

Each node gets a small pool and more pods at once than it holds. The simulation is given when each
pod's sandbox was there, by its condition, and what a network took to make; it says how many pods
found the pool empty. The agents count how many did.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from tests.kubernetes.test_nodes import NODES, ROOT, Cluster

from firstlight.analysis import provision
from firstlight.lab.cluster import running, standing
from firstlight.lab.cluster.threads import in_network

_PODS = 24
_POOL = provision.Pool(low=4, high=8, rate=2.0)
_TOML = f"""name = "pods"
[pods]
range = ""
kubeconfig = "in-cluster"
metrics = "127.0.0.1:9713"
[pods.pool]
low = {_POOL.low}
high = {_POOL.high}
rate = {_POOL.rate}
"""
_SECONDS = 400.0


def main() -> None:
    """Make the pods, and print both numbers for each node."""
    script = str(ROOT / "mk" / "image.py")
    subprocess.run([sys.executable, script, "agent"], check=True, cwd=ROOT)
    record = standing.up(("runc",), (running.NONE,), lambda _: None, len(NODES))
    try:
        cluster = Cluster(record)
        standing.load(ROOT / "build" / "agent.tar")
        with tempfile.TemporaryDirectory() as copy:
            shutil.copytree(ROOT / "deploy", copy, dirs_exist_ok=True)
            (Path(copy) / "kubernetes" / "base" / "pods.toml").write_text(_TOML)
            cluster.kubectl("apply", "-k", f"{copy}/kubernetes/base")
        cluster.kubectl("-n", "firstlight", "rollout", "status", "daemonset/agent")
        before = _metrics(cluster)
        cluster.apply(*(_pod(f"p{n}-{i}", node) for n, node in enumerate(NODES)
                        for i in range(_PODS)))  # fmt: skip
        pods = _await(cluster)
        after = _metrics(cluster)
        for node in NODES:
            times = sorted(_sandbox(pod) for pod in pods if pod["spec"]["nodeName"] == node)
            made = after[node]["made"] - before[node]["made"]
            seconds = after[node]["make_seconds"] - before[node]["make_seconds"]
            outcome = provision.simulate(_POOL, seconds / made if made else 0.01,
                                         [each - times[0] for each in times])  # fmt: skip
            missed = after[node]["misses"] - before[node]["misses"]
            print(  # noqa: T201 - its output
                f"{node}: {_PODS} pods in {times[-1] - times[0]:.0f} s, a network takes "
                f"{1000 * seconds / max(made, 1):.1f} ms; found the pool empty: "
                f"{outcome.missed} simulated, {missed:.0f} counted"
            )
    finally:
        standing.down()


def _pod(name: str, node: str) -> dict[str, object]:
    container = {"name": "c", "image": "docker.io/firstlight/payload:1", "stdin": True,
                 "imagePullPolicy": "Never"}  # fmt: skip
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": node, "dnsPolicy": "Default", "containers": [container],
                 "automountServiceAccountToken": False},
    }  # fmt: skip


def _await(cluster: Cluster) -> list[dict[str, object]]:
    until = time.monotonic() + _SECONDS
    while True:
        pods = cluster.get("pods")["items"]
        if all(each["status"].get("podIP") for each in pods) or time.monotonic() > until:
            return pods  # type: ignore[no-any-return]
        time.sleep(1)


def _sandbox(pod: dict) -> float:  # type: ignore[type-arg]
    """When a pod's sandbox was there, to a second."""
    [condition] = [each for each in pod["status"]["conditions"]
                   if each["type"] == "PodReadyToStartContainers"]  # fmt: skip
    return datetime.fromisoformat(condition["lastTransitionTime"]).timestamp()


def _metrics(cluster: Cluster) -> dict[str, dict[str, float]]:
    words = ("curl", "-s", "--max-time", "10", "http://127.0.0.1:9713/metrics")
    result = {}
    for node, pid in cluster.first_processes().items():
        text = in_network(pid, lambda: subprocess.run(words, capture_output=True, text=True).stdout)
        counts = re.findall(r"^firstlight_pods_pool_(\w+)_total (\S+)$", text, re.MULTILINE)
        result[node] = {name: float(value) for name, value in counts}
    return result


if __name__ == "__main__":
    main()
