"""The cluster itself: it comes up, runs a pod, and however it ends nothing of it is left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from firstlight.errors import Failed
from firstlight.host import cgroups
from firstlight.host.workspace import STATE
from firstlight.lab import clean
from firstlight.lab.cluster import programs, running, standing

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "one"},
    "spec": {
        "runtimeClassName": "runc-bridge",
        "dnsPolicy": "Default",
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "containers": [
            {"name": "c", "image": "docker.io/firstlight/payload:1", "stdin": True,
             "imagePullPolicy": "Never"}
        ],
    },
}  # fmt: skip


def kubectl(record: standing.Record, *words: str, text: str = "") -> str:
    done = subprocess.run(
        [programs.path("kubectl"), "--kubeconfig", record.kubeconfig, *words],
        input=text, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def left() -> list[str]:
    """What of the cluster the host still shows."""
    name = cgroups.name(standing.NAME)
    groups = [str(top) for each in cgroups.hierarchies() for top in each.glob(f"{name}*")]
    return groups + [str(path) for path in STATE.glob(f"{standing.NAME}*")]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> None:
    end = time.monotonic() + 30
    while alive(pid):
        assert time.monotonic() < end, f"{pid} has not ended"
        time.sleep(0.02)


def test_a_pod_runs_and_is_reached_from_the_host(standing_cluster: standing.Record) -> None:
    status = standing.status()
    assert status.nodes == {"firstlight": True}
    assert {part.name for part in status.components if part.healthy} == {
        "telemetry", "etcd", "containerd", "kube-apiserver", "kube-scheduler",
        "kube-controller-manager", "kubelet", "kube-proxy",
    }  # fmt: skip
    before = {Path(path) for path in ("/var/lib/cni", "/var/lib/kubelet", "/run/containerd")}
    before = {path for path in before if path.exists()}
    kubectl(standing_cluster, "apply", "-f", "-", text=json.dumps(POD))
    kubectl(standing_cluster, "wait", "--for=condition=Ready", "pod/one", "--timeout=90s")
    assert kubectl(standing_cluster, "logs", "one").startswith("firstlight ready ")
    assert kubectl(standing_cluster, "exec", "one", "--", "/bin/payload", "once")
    pod = json.loads(kubectl(standing_cluster, "get", "pod", "one", "-o", "json"))
    assert pod["status"]["podIP"].startswith("10.90.")
    after = {Path(path) for path in ("/var/lib/cni", "/var/lib/kubelet", "/run/containerd")}
    assert {path for path in after if path.exists()} == before


def test_a_pod_gets_a_prepared_network() -> None:
    record = standing.up(("runc",), ("firstlight",), lambda _: None)
    try:
        assert {part.name for part in standing.status().components if part.healthy} >= {"agent"}
        pod = json.loads(json.dumps(POD).replace("runc-bridge", "runc-firstlight"))
        kubectl(record, "apply", "-f", "-", text=json.dumps(pod))
        kubectl(record, "wait", "--for=condition=Ready", "pod/one", "--timeout=90s")
        shown = json.loads(kubectl(record, "get", "pod", "one", "-o", "json"))
        assert shown["status"]["podIP"].startswith("10.244.")
        leases = Path(f"/proc/{record.first}/root/run/firstlight-agile/pods/leases")
        assert '"default/one"' in leases.read_text()
        kubectl(record, "delete", "pod", "one")
        end = time.monotonic() + 60
        while '["-",' not in leases.read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        standing.down()


def test_version_2_can_give_controllers_to_pods(standing_cluster: standing.Record) -> None:
    """A cgroup with a process of its own gives its children none."""
    name = f"{cgroups.name(standing.NAME)}-node"
    tops = [each / name for each in cgroups.hierarchies()]
    of_2 = [top for top in tops if (top / "cgroup.controllers").exists()]
    for top in of_2:
        assert (top / "cgroup.procs").read_text() == ""
        controllers = (top / "cgroup.controllers").read_text()
        assert (top / "cgroup.subtree_control").read_text() == controllers


def test_a_second_is_refused(standing_cluster: standing.Record) -> None:
    with pytest.raises(Failed, match="already running"):
        standing.up(("runc",), ("bridge",), lambda _: None)
    assert standing.status().up


def test_down_leaves_nothing(standing_cluster: standing.Record) -> None:
    assert standing.down()
    assert not left()
    assert not standing.status().up
    assert not standing.down()


def test_killing_its_first_process_leaves_nothing_of_any_node() -> None:
    record = standing.up(("runc",), ("bridge",), lambda _: None, nodes=2)
    try:
        for node in ("firstlight", "firstlight-2"):
            pod = json.loads(json.dumps(POD).replace('"one"', f'"{node}"'))
            pod["spec"]["nodeName"] = node
            kubectl(record, "apply", "-f", "-", text=json.dumps(pod))
        pods = ("pod/firstlight", "pod/firstlight-2")
        kubectl(record, "wait", "--for=condition=Ready", *pods, "--timeout=90s")
        [other] = running.joined(record.first, record.settings).values()
        os.kill(record.first, signal.SIGKILL)
        gone(record.keeper)
        gone(other)
        assert not left()
    finally:
        standing.down()


def test_a_node_that_ends_takes_nothing_of_the_others_along() -> None:
    record = standing.up(("runc",), ("bridge",), lambda _: None, nodes=2)
    try:
        [other] = running.joined(record.first, record.settings).values()
        os.kill(other, signal.SIGKILL)
        gone(other)
        status = standing.status()
        healthy = {part.name: part.healthy for part in status.components}
        assert not healthy.pop("firstlight-2")
        assert all(healthy.values())
        assert status.nodes
    finally:
        standing.down()
    assert not left()


def test_killing_its_keeper_leaves_what_clean_removes(standing_cluster: standing.Record) -> None:
    os.kill(standing_cluster.keeper, signal.SIGKILL)
    gone(standing_cluster.first)
    end = time.monotonic() + 60
    while left():  # what ends with the first process is in its cgroups a moment longer
        assert time.monotonic() < end, left()
        clean.clean()


def test_killing_who_brings_it_up_takes_it_down() -> None:
    starter = subprocess.Popen(
        [Path(sys.prefix, "bin", "firstlight"), "cluster", "up"], stderr=subprocess.PIPE
    )
    assert starter.stderr
    assert b"is up" in starter.stderr.readline()
    starter.kill()
    starter.wait()
    end = time.monotonic() + 60
    while left():
        assert time.monotonic() < end, left()
        time.sleep(0.05)


def test_a_component_that_cannot_start_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "etcd"
    broken.write_text("#!/bin/sh\necho no room for a database >&2\nexit 7\n")
    broken.chmod(0o755)
    for name in programs.CLUSTER:
        if name != "etcd":
            (tmp_path / name).symlink_to(programs.path(name))
    monkeypatch.setenv("FIRSTLIGHT_KUBERNETES", str(tmp_path))
    with pytest.raises(Failed, match="etcd ended with status 7: no room for a database"):
        standing.up(("runc",), ("bridge",), lambda _: None)
    assert not left()
