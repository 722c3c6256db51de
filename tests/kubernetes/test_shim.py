"""Pods of the RuntimeClass firstlight: made by the shim, alive without its server."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.kubernetes.conformance import APPLETS, BUSYBOX, IMAGE
from tests.kubernetes.test_cluster import kubectl

from firstlight.lab.cluster import image, running, standing

_SECONDS = 60.0
_FIRST = "until [ -e /dev/shm/go ]; do sleep 0.1; done; cat /shared/said; exit 3"
_SECOND = "until [ -e /dev/shm/go ]; do sleep 0.1; done; hostname; sleep 600"
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "pod"},
    "spec": {
        "runtimeClassName": "firstlight-bridge",
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "volumes": [{"name": "shared", "emptyDir": {}}],
        "initContainers": [{"name": "before", "script": "echo initialised > /shared/said"}],
        "containers": [
            {"name": "first", "script": _FIRST},
            {"name": "second", "script": _SECOND},
        ],
    },
}


def pod() -> str:
    made: dict[str, Any] = json.loads(json.dumps(POD))
    for each in (*made["spec"]["initContainers"], *made["spec"]["containers"]):
        each |= {
            "image": IMAGE, "imagePullPolicy": "Never",
            "command": ["/bin/sh", "-c", each.pop("script")],
            "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
        }  # fmt: skip
    return json.dumps(made)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[standing.Record]:
    record = standing.up((running.SHIM,), ("bridge",), lambda _: None)
    try:
        archive = tmp_path / "busybox.tar"
        links = {f"bin/{name}": "/bin/busybox" for name in APPLETS}
        image.archive(archive, IMAGE, ["/bin/sh"], {"bin/busybox": BUSYBOX}, links)
        standing.load(archive)
        yield record
    finally:
        standing.down()


def children(pid: int) -> list[int]:
    return [int(each) for task in Path(f"/proc/{pid}/task").iterdir()
            for each in (task / "children").read_text().split()]  # fmt: skip


def comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def processes(record: standing.Record, name: str) -> list[int]:
    """The children of the shim's keeper with a name."""
    keeper = next(pid for pid in children(record.first) if comm(pid) == "shim-keeper")
    return [pid for pid in children(keeper) if comm(pid).startswith(name)]


def ended(record: standing.Record, container: str) -> int:
    """The exit status of a container of the pod, when it has ended."""
    until = time.monotonic() + _SECONDS
    while True:
        document = json.loads(kubectl(record, "get", "pod", "pod", "-o", "json"))["status"]
        for each in document.get("containerStatuses", ()):
            if each["name"] == container and "terminated" in each["state"]:
                return int(each["state"]["terminated"]["exitCode"])
        assert time.monotonic() < until, document
        time.sleep(0.2)


def test_a_pod_of_the_class_outlives_the_server(cluster: standing.Record) -> None:
    kubectl(cluster, "create", "-f", "-", text=pod())
    kubectl(cluster, "wait", "--for=condition=Ready", "pod/pod", "--timeout=60s")
    assert not [pid for pid in children(cluster.first)
                if comm(pid) == "containerd-shim"]  # fmt: skip
    for server in processes(cluster, "python"):
        os.kill(server, signal.SIGKILL)
    kubectl(cluster, "exec", "pod", "-c", "second", "--", "touch", "/dev/shm/go")
    assert ended(cluster, "first") == 3
    assert kubectl(cluster, "logs", "pod", "-c", "first") == "initialised\n"
    assert kubectl(cluster, "logs", "pod", "-c", "second") == "pod\n"
    assert kubectl(cluster, "exec", "pod", "-c", "second", "--", "hostname") == "pod\n"
    kubectl(cluster, "delete", "pod", "pod", "--timeout=60s")
    running.await_quiet(cluster.first)
