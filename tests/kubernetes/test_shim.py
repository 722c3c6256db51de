"""Pods of the RuntimeClass firstlight: made by the shim, alive without its server."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.kubernetes.conformance import APPLETS, BUSYBOX, IMAGE
from tests.kubernetes.pod_specs import CASES, CONFIG
from tests.kubernetes.test_cluster import kubectl

from firstlight.lab.cluster import image, running, standing

ROOT = Path(__file__).parents[2]
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


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[standing.Record]:
    directory = tmp_path_factory.mktemp("images")
    escape = directory / "escape"
    subprocess.run(
        ["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-O1", "-static", "-o", escape,
         ROOT / "tests" / "support" / "escape.c"],
        check=True, timeout=60,
    )  # fmt: skip
    record = standing.up(("runc", running.SHIM), ("bridge",), lambda _: None)
    try:
        archive = directory / "busybox.tar"
        links = {
            f"bin/{name}": "/bin/busybox"
            for name in (*APPLETS, "readlink", "grep", "cut", "sed", "kill", "pidof")
        }
        image.archive(archive, IMAGE, ["/bin/sh"],
                      {"bin/busybox": BUSYBOX, "bin/escape": escape}, links)  # fmt: skip
        standing.load(archive)
        yield record
    finally:
        standing.down()


def children(pid: int) -> list[int]:
    pids: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # a thread may end meanwhile
            pids += map(int, (task / "children").read_text().split())
    return pids


def comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def processes(record: standing.Record, name: str) -> list[int]:
    """The children of the shim's keeper with a name."""
    keeper = next(pid for pid in children(record.first) if comm(pid) == "shim-keeper")
    return [pid for pid in children(keeper) if comm(pid).startswith(name)]


def ended(record: standing.Record, container: str, pod: str = "pod") -> tuple[int, str]:
    """The exit status of a container of a pod and the reason, when it has ended."""
    until = time.monotonic() + _SECONDS
    while True:
        observed = json.loads(kubectl(record, "get", "pod", pod, "-o", "json"))["status"]
        for each in observed.get("containerStatuses", ()):
            if each["name"] == container and "terminated" in each["state"]:
                end = each["state"]["terminated"]
                return int(end["exitCode"]), str(end["reason"])
        assert time.monotonic() < until, observed
        time.sleep(0.2)


def test_a_pod_of_the_class_outlives_the_server(cluster: standing.Record) -> None:
    kubectl(cluster, "create", "-f", "-", text=pod())
    kubectl(cluster, "wait", "--for=condition=Ready", "pod/pod", "--timeout=60s")
    assert not [pid for pid in children(cluster.first)
                if comm(pid) == "containerd-shim"]  # fmt: skip
    for server in processes(cluster, "python"):
        os.kill(server, signal.SIGKILL)
    kubectl(cluster, "exec", "pod", "-c", "second", "--", "touch", "/dev/shm/go")
    assert ended(cluster, "first") == (3, "Error")
    assert kubectl(cluster, "logs", "pod", "-c", "first") == "initialised\n"
    assert kubectl(cluster, "logs", "pod", "-c", "second") == "pod\n"
    assert kubectl(cluster, "exec", "pod", "-c", "second", "--", "hostname") == "pod\n"
    kubectl(cluster, "delete", "pod", "pod", "--timeout=60s")
    running.await_quiet(cluster.first)


_CONFINED = {
    "runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": True, "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}  # fmt: skip
_SHOWN = """escape attempts
grep -E '^(Cap|NoNewPrivs|Seccomp|Uid|Gid|Groups)' /proc/self/status
cat /proc/self/oom_score_adj /proc/self/limits /proc/self/attr/current 2>/dev/null
cut -d' ' -f5,6 /proc/self/mountinfo
"""


def of_class(name: str, runtime: str, *containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    for each in containers:
        each |= {"image": IMAGE, "imagePullPolicy": "Never"}
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "runtimeClassName": f"{runtime}-bridge", "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": False,
            "enableServiceLinks": False, "hostname": "same", "containers": containers,
        } | spec,
    }  # fmt: skip


def test_from_inside_a_pod_of_the_class_is_confined_as_by_runc(cluster: standing.Record) -> None:
    """What an attacker can do there, and how the container is confined, is what it is with runc."""

    def attacker(runtime: str) -> dict[str, Any]:
        command = ["/bin/sh", "-c", _SHOWN]
        return of_class(
            runtime, runtime,
            {"name": "default", "command": command},
            {"name": "confined", "command": command, "securityContext": _CONFINED},
            {"name": "greedy", "command": ["/bin/escape", "memory"],
             "resources": {"limits": {"memory": "16Mi"}}},
        )  # fmt: skip

    runtimes = ("runc", running.SHIM)
    pods = [attacker(runtime) for runtime in runtimes]
    kubectl(cluster, "create", "-f", "-",
            text=json.dumps({"apiVersion": "v1", "kind": "List", "items": pods}))  # fmt: skip
    for container in ("default", "confined"):
        seen = {}
        for runtime in runtimes:
            assert ended(cluster, container, runtime) == (0, "Completed")
            shown = kubectl(cluster, "logs", runtime, "-c", container)
            seen[runtime] = sorted(shown.splitlines())  # mounts have no order
        assert "all attempts made" in seen["runc"]
        assert seen[running.SHIM] == seen["runc"]
    for runtime in runtimes:
        assert ended(cluster, "greedy", runtime) == (137, "OOMKilled")
    kubectl(cluster, "delete", "pods", *runtimes, "--timeout=60s")


def test_a_pod_has_the_hosts_namespaces_where_it_asks_for_them(cluster: standing.Record) -> None:
    asked = {"net": "hostNetwork", "ipc": "hostIPC", "pid": "hostPID"}
    command = ["/bin/sh", "-c", "for each in net ipc pid; do readlink /proc/self/ns/$each; done"]
    pods = [
        of_class(kind, running.SHIM, {"name": "c", "command": command}, **{field: True})
        for kind, field in asked.items()
    ]  # fmt: skip
    kubectl(cluster, "create", "-f", "-",
            text=json.dumps({"apiVersion": "v1", "kind": "List", "items": pods}))  # fmt: skip
    of_node = {kind: str(Path(f"/proc/{cluster.first}/ns/{kind}").readlink()) for kind in asked}
    for pod_of in asked:
        assert ended(cluster, "c", pod_of) == (0, "Completed")
        lines = kubectl(cluster, "logs", pod_of).splitlines()
        shared = {kind for kind, link in zip(asked, lines, strict=True) if link == of_node[kind]}
        assert shared == {pod_of}
    kubectl(cluster, "delete", "pods", *asked, "--timeout=60s")


_NO_MKDIR = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}],
}
_ALL_SECONDS = 600.0


def special(name: str, runtime: str) -> dict[str, Any]:
    case = CASES[name]
    spec: dict[str, Any] = json.loads(json.dumps(case.pod))
    main = {"name": "main", "script": case.script} | case.container
    made = of_class(f"{name}-{runtime}", runtime, main, *spec.pop("containers", ()), **spec)
    made["metadata"]["labels"] = {"case": "special"}
    for each in (*made["spec"]["containers"], *made["spec"].get("initContainers", ())):
        each |= {"image": IMAGE, "imagePullPolicy": "Never"}
        if "script" in each:
            script = f"exec 2>&1; {each.pop('script')}"  # two streams have no order
            each["command"] = ["/bin/sh", "-c", script]
    return made


def states(observed: dict[str, Any]) -> list[dict[str, Any]]:
    status = observed["status"]
    both = status.get("containerStatuses", []) + status.get("initContainerStatuses", [])
    return [each | {"end": each["state"].get("terminated", {})} for each in both]


def is_over(observed: dict[str, Any]) -> bool:
    """Whether a pod and all its containers have ended: a sidecar may end after its pod."""
    return observed["status"]["phase"] in ("Succeeded", "Failed") and not any(
        "running" in each["state"] for each in states(observed)
    )


def how_it_ended(observed: dict[str, Any]) -> list[Any]:
    return [observed["status"]["phase"], observed["status"].get("reason"), *(
        (each["name"], each["restartCount"],
         *(each["end"].get(field) for field in ("exitCode", "reason", "message")))
        for each in states(observed)
    )]  # fmt: skip


def outcomes(record: standing.Record, runtime: str) -> dict[str, tuple[list[Any], str]]:
    """How the pod of each case ended with a runtime, and what it printed."""
    names = {f"{name}-{runtime}": name for name in CASES}
    until = time.monotonic() + _ALL_SECONDS
    while True:
        items = json.loads(kubectl(record, "get", "pods", *names, "-o", "json"))["items"]
        going = [each["metadata"]["name"] for each in items if not is_over(each)]
        if not going:
            break
        assert time.monotonic() < until, going
        time.sleep(0.5)
    return {
        names[pod]: (how_it_ended(each), kubectl(record, "logs", pod, "--all-containers"))
        for each in items
        for pod in [each["metadata"]["name"]]
    }


def test_pods_that_ask_for_much_print_and_end_as_with_runc(cluster: standing.Record) -> None:
    profiles = Path(f"/proc/{cluster.first}/root{cluster.settings.directory}/kubelet/seccomp")
    profiles.mkdir(exist_ok=True)
    (profiles / "no-mkdir.json").write_text(json.dumps(_NO_MKDIR))
    runtimes = ("runc", running.SHIM)
    pods = [special(name, runtime) for name in CASES for runtime in runtimes]
    objects = {"apiVersion": "v1", "kind": "List", "items": [CONFIG, *pods]}
    try:
        kubectl(cluster, "create", "-f", "-", text=json.dumps(objects))
        of_runc, of_ours = (outcomes(cluster, runtime) for runtime in runtimes)
        assert of_ours == of_runc
    finally:  # another try makes them again
        for kind in (("pods", "-lcase=special"), ("configmap", "settings")):
            kubectl(cluster, "delete", *kind, "--ignore-not-found", "--timeout=60s")
