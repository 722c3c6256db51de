"""Three nodes with deploy/kubernetes as it stands: pods, Services and policies across them.

The API server enforces roles, so the agents do all this with the rights that rbac.yaml gives them.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from firstlight.errors import Unsupported
from firstlight.lab.cluster import image, programs, running, standing
from firstlight.model import Ending
from firstlight.store import read

ROOT = Path(__file__).parents[2]
BASE = ROOT / "deploy" / "kubernetes" / "base"
NODES = ("firstlight", "firstlight-2", "firstlight-3")
BUSYBOX = "docker.io/firstlight/busybox:1"
AGENT = "system:serviceaccount:firstlight:agent"
HOST_PORT = 18080
_DEADLINE = 120.0
_SERVE = """mkdir -p /tmp/cgi-bin
echo '#!/bin/sh' > /tmp/cgi-bin/who
echo 'echo; echo "$(hostname) $REMOTE_ADDR"' >> /tmp/cgi-bin/who
chmod +x /tmp/cgi-bin/who
exec httpd -f -p 8080 -h /tmp"""


class Cluster:
    """Three nodes, on each of which a pod serves its name and who asks, and can ask itself."""

    def __init__(self, record: standing.Record) -> None:
        self.record = record

    def kubectl(self, *words: str, text: str = "") -> str:
        done = subprocess.run(
            [programs.path("kubectl"), "--kubeconfig", self.record.kubeconfig, *words],
            input=text, capture_output=True, text=True, timeout=_DEADLINE,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.stderr}{done.stdout}"
        return done.stdout

    def get(self, *words: str) -> dict[str, Any]:
        return json.loads(self.kubectl("get", *words, "-o", "json"))  # type: ignore[no-any-return]

    def apply(self, *objects: dict[str, Any]) -> None:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        self.kubectl("apply", "-f", "-", text=text)

    def address(self, pod: str) -> str:
        return str(self.get("pod", pod)["status"]["podIP"])

    def ask(self, pod: str, address: str, port: int = 8080) -> tuple[str, str] | None:
        """Who answers a pod, and the address under which that sees it."""
        done = subprocess.run(
            [programs.path("kubectl"), "--kubeconfig", self.record.kubeconfig, "exec", "-i", pod,
             "--", "nc", "-w", "3", address, str(port)],
            input="GET /cgi-bin/who HTTP/1.0\r\n\r\n", capture_output=True, text=True,
            timeout=_DEADLINE,
        )  # fmt: skip
        name, _, seen = (done.stdout.splitlines() or [""])[-1].partition(" ")
        return (name, seen.strip("[]").removeprefix("::ffff:")) if seen else None

    def first_processes(self) -> dict[str, int]:
        """The first process of each node's namespaces."""
        first, settings = self.record.first, self.record.settings
        return {settings.name: first, **running.joined(first, settings)}

    def agent_pid(self, node: str) -> int:
        """The agent's process, by its environment."""
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"\0NODE_NAME={node}\0" in f"\0{path.read_text()}\0" and (
                    "agile\0agent" in (path.parent / "cmdline").read_text()
                ):
                    return int(path.parent.name)
            except OSError:
                continue
        raise AssertionError(f"no agent runs on {node}")


def pod(name: str, node: str, *, port: int = 0) -> dict[str, Any]:
    """``port`` is the node's that leads to it, if any."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "who", "name": name}},
        "spec": {
            "nodeName": node,
            "dnsPolicy": "Default",
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "containers": [{
                "name": "c", "image": BUSYBOX, "imagePullPolicy": "Never",
                "command": ["/bin/sh", "-c", _SERVE],
                "ports": [{"containerPort": 8080} | ({"hostPort": port} if port else {})],
                "readinessProbe": {"httpGet": {"path": "/cgi-bin/who", "port": 8080},
                                   "periodSeconds": 1, "timeoutSeconds": 30},
            }],
        },
    }  # fmt: skip


def until(check: Callable[[], object]) -> None:
    end = time.monotonic() + _DEADLINE
    while not check():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster(agent_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    busybox = tmp_path_factory.mktemp("image") / "busybox.tar"
    links = {f"bin/{name}": "busybox" for name in ("sh", "mkdir", "chmod", "nc", "hostname")}
    image.archive(busybox, BUSYBOX, ["/bin/sh"], {"bin/busybox": Path("/bin/busybox")},
                  links | {"bin/httpd": "busybox"})  # fmt: skip
    record = standing.up(("runc",), (running.NONE,), lambda _: None, len(NODES))
    try:
        made = Cluster(record)
        standing.load(busybox)
        standing.load(agent_image)
        made.kubectl("apply", "-k", str(BASE))
        made.kubectl("-n", "firstlight", "rollout", "status", "daemonset/agent", "--timeout=110s")
        made.apply(
            pod("p0", NODES[0]),
            pod("p1", NODES[1], port=HOST_PORT),
            pod("p2", NODES[2]),
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "who"},
             "spec": {"selector": {"app": "who"}, "ports": [{"port": 80, "targetPort": 8080}]}},
        )  # fmt: skip
        pods = [f"pod/p{number}" for number in range(len(NODES))]
        made.kubectl("wait", "--for=condition=Ready", *pods, "--timeout=110s")
        yield made
    finally:
        standing.down()


def test_pods_of_all_nodes_reach_each_other_and_services(cluster: Cluster) -> None:
    addresses = [cluster.address(f"p{number}") for number in range(len(NODES))]
    ranges = {node["spec"]["podCIDR"] for node in cluster.get("nodes")["items"]}
    assert len(ranges) == len(NODES)
    service = cluster.get("service", "who")["spec"]["clusterIP"]
    host = next(
        each["address"]
        for each in cluster.get("node", NODES[1])["status"]["addresses"]
        if each["type"] == "InternalIP"
    )

    def check(name: str, own: str) -> None:
        until(lambda: [cluster.ask(name, each) for each in addresses] == [
            (f"p{number}", own) for number in range(len(addresses))])  # fmt: skip
        answers = {cluster.ask(name, service, 80) for _ in range(3)}
        assert all(answer and answer[0] in ("p0", "p1", "p2") for answer in answers)
        assert cluster.ask(name, host, HOST_PORT)

    for number, address in enumerate(addresses):
        check(f"p{number}", address)
    os.kill(cluster.agent_pid(NODES[1]), signal.SIGKILL)
    check("p0", addresses[0])
    check("p1", addresses[1])
    cluster.apply(pod("late", NODES[1]))
    cluster.kubectl("wait", "--for=condition=Ready", "pod/late", "--timeout=110s")
    assert cluster.ask("p2", cluster.address("late")) == ("late", addresses[2])
    cluster.kubectl("delete", "pod", "late")


def test_a_network_policy_holds_across_nodes(cluster: Cluster) -> None:
    """By kube-router's controller, which any CNI can have beside it."""
    try:
        router = programs.path("kube-router")
    except Unsupported as error:
        pytest.skip(f"{error.message}: {error.hint}")
    policy = {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p2"},
        "spec": {"podSelector": {"matchLabels": {"name": "p1"}}, "policyTypes": ["Ingress"],
                 "ingress": [{"from": [{"podSelector": {"matchLabels": {"name": "p2"}}}]}]},
    }  # fmt: skip
    target = cluster.address("p1")
    controllers = [
        subprocess.Popen(
            ["nsenter", f"--target={pid}", "--mount", "--net", "--pid", router,
             f"--kubeconfig={cluster.record.settings.kubeconfig}", f"--hostname-override={node}",
             "--run-router=false", "--run-service-proxy=false", "--run-firewall=true"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for node, pid in cluster.first_processes().items()
    ]  # fmt: skip
    try:
        cluster.apply(policy)
        until(lambda: cluster.ask("p0", target) is None)
        assert cluster.ask("p2", target) == ("p1", cluster.address("p2"))
        assert cluster.ask("p0", cluster.address("p2"))
        cluster.kubectl("delete", "networkpolicy", "p2")
        until(lambda: cluster.ask("p0", target))
    finally:
        for each in controllers:
            each.kill()
            each.wait(60)


def patched(cluster: Cluster, of: str, by: str) -> str:
    """Why the agent of the node ``by`` may not patch the status of a node; "" if it may."""
    from kubernetes import client, config

    settings: Any = client.Configuration()
    config.load_kube_config(cluster.record.kubeconfig, None, settings)  # type: ignore[no-untyped-call]
    api: Any = client.ApiClient(settings)
    api.set_default_header("Impersonate-User", AGENT)
    if by:
        api.set_default_header("Impersonate-Extra-authentication.kubernetes.io%2Fnode-name", by)
    condition = {"type": "FirstlightTest", "status": "True"}
    try:
        client.CoreV1Api(api).patch_node_status(of, {"status": {"conditions": [condition]}})
    except client.ApiException as error:
        return str(error.body)
    return ""


def test_agent_rights_are_minimal(cluster: Cluster) -> None:
    def may(verb: str, what: str) -> bool:
        resource, _, part = what.partition("/")
        answer = subprocess.run(
            [programs.path("kubectl"), "--kubeconfig", cluster.record.kubeconfig, "auth", "can-i",
             verb, resource, f"--subresource={part}", "--as", AGENT, "-A"],
            capture_output=True, text=True, timeout=_DEADLINE,
        ).stdout  # fmt: skip
        return answer.strip() == "yes"

    assert may("watch", "nodes")
    assert may("patch", "nodes/status")
    assert may("create", "events")
    for verb, what in (("delete", "nodes"), ("patch", "nodes"), ("get", "secrets"),
                       ("list", "pods"), ("create", "pods"), ("get", "configmaps"),
                       ("list", "events"), ("impersonate", "users")):  # fmt: skip
        assert not may(verb, what), (verb, what)
    assert patched(cluster, of=NODES[0], by=NODES[0]) == ""
    assert "of its own node only" in patched(cluster, of=NODES[0], by=NODES[1])
    assert "of its own node only" in patched(cluster, of=NODES[0], by="")
    for node in cluster.get("nodes")["items"]:
        conditions = {each["type"]: each["status"] for each in node["status"]["conditions"]}
        assert conditions["FirstlightPodNetworks"] == "True"


def lab(cluster: Cluster, out: Path, *words: str) -> subprocess.Popen[str]:
    """``firstlight run`` on the first and the last node."""
    return subprocess.Popen(
        [Path(sys.prefix, "bin", "firstlight"), "run", "network-setup", "--kubeconfig",
         cluster.record.kubeconfig, "--nodes", f"kubernetes.io/hostname!={NODES[1]}",
         "--instances", "1", "--out", out, *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


FUNCTIONS = "firstlight-functions"
CREDENTIALS = """[default]
aws_access_key_id = AKIDEXAMPLE
aws_secret_access_key = secret
"""
CALL = """
import json, sys, boto3
from botocore.config import Config
answers = []
for address in sys.argv[1:]:
    client = boto3.client(
        "lambda", endpoint_url=f"http://{address}:9400", region_name="us-east-1",
        aws_access_key_id="AKIDEXAMPLE", aws_secret_access_key="secret",
        config=Config(retries={"total_max_attempts": 1}))
    try:
        answer = client.invoke(FunctionName="hello", Payload=json.dumps({"name": "node"}))
        answers.append(json.load(answer["Payload"]))
    except client.exceptions.ResourceNotFoundException:
        answers.append("not found")
print(json.dumps(answers))
"""
CODE = """import os
def main(event):
    return [os.environ.get("WORD", "hello"), event["name"]]
"""


def function(name: str, code: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "firstlight.dev/v1alpha1",
        "kind": "Function",
        "metadata": {"name": name, "namespace": FUNCTIONS},
        "spec": {"handler": "app:main", "code": {"files": {"app.py": code}}} | spec,
    }


def test_a_function_is_applied_once_and_served_by_all_nodes(
    cluster: Cluster, functions_image: Path
) -> None:
    aws = Path(sys.prefix, "aws", "bin", "python")
    if not aws.exists():
        pytest.skip(".venv/aws is missing: make setup")
    standing.load(functions_image)
    kubectl = cluster.kubectl
    kubectl("apply", "-k", str(BASE.parent / "functions"))
    secret = {"apiVersion": "v1", "kind": "Secret",
              "metadata": {"name": "functions-credentials", "namespace": FUNCTIONS},
              "stringData": {"credentials": CREDENTIALS}}  # fmt: skip
    cluster.apply(secret, function("hello", CODE), function("wrong", "import nothing_like_it\n"))
    kubectl("-n", FUNCTIONS, "rollout", "status", "daemonset/functions", "--timeout=110s")
    pods = cluster.get("pods", "-n", FUNCTIONS, "-l", "app.kubernetes.io/component=functions")
    addresses = [str(each["status"]["podIP"]) for each in pods["items"]]
    assert len(addresses) == len(NODES)
    service = str(cluster.get("service", "functions", "-n", FUNCTIONS)["spec"]["clusterIP"])

    def call() -> list[Any]:
        """What the Lambda API of each node answers, and what the Service does."""
        done = subprocess.run(
            ["nsenter", f"--target={cluster.record.first}", "--net", aws, "-c", CALL,
             *addresses, service],
            capture_output=True, text=True, timeout=_DEADLINE,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    def status(name: str) -> tuple[str, dict[str, bool]]:
        observed = cluster.get("function.firstlight.dev", name, "-n", FUNCTIONS).get("status", {})
        [condition] = observed.get("conditions") or [{"status": "", "message": ""}]
        ready = {each["name"]: each["ready"] for each in observed.get("nodes", ())}
        return f"{condition['status']} {condition['message']}".strip(), ready

    assert call() == [["hello", "node"]] * 4
    until(lambda: status("hello") == ("True", dict.fromkeys(NODES, True)))
    words, ready = status("wrong")
    assert words.startswith("False firstlight")
    assert words.endswith("No module named 'nothing_like_it'; /var/task has 'app.py'")
    assert ready == dict.fromkeys(NODES, False)

    cluster.apply(function("hello", CODE, environment={"WORD": "bye"}))
    kubectl("-n", FUNCTIONS, "delete", "function.firstlight.dev", "wrong")
    until(lambda: call() == [["bye", "node"]] * 4)
    kubectl("-n", FUNCTIONS, "delete", "function.firstlight.dev", "hello")
    until(lambda: call() == ["not found"] * 4)

    def may(verb: str, what: str, namespace: str) -> bool:
        resource, _, part = what.partition("/")
        done = subprocess.run(
            [programs.path("kubectl"), "--kubeconfig", cluster.record.kubeconfig, "auth", "can-i",
             verb, resource, f"--subresource={part}", "-n", namespace,
             "--as", f"system:serviceaccount:{FUNCTIONS}:functions"],
            capture_output=True, text=True, timeout=_DEADLINE,
        )  # fmt: skip
        return done.stdout.strip() == "yes"

    functions = "functions.firstlight.dev"
    assert may("watch", functions, FUNCTIONS)
    assert may("update", f"{functions}/status", FUNCTIONS)
    assert may("get", "nodes", "default"), "to see which have left"
    for verb, what, namespace in (
        ("update", functions, FUNCTIONS), ("delete", functions, FUNCTIONS),
        ("list", functions, "default"), ("get", "secrets", FUNCTIONS),
        ("list", "nodes", "default"), ("update", "nodes", "default"), ("list", "pods", FUNCTIONS),
    ):  # fmt: skip
        assert not may(verb, what, namespace), (verb, what)
    kubectl("delete", "-k", str(BASE.parent / "functions"))


def of_jobs() -> dict[str, int]:
    """The processes that measure in Jobs, by their nodes."""
    result = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_text().split("\0")
            variables = (path / "environ").read_text().split("\0")
        except OSError:
            continue
        if words[1:3] == ["-m", "firstlight.lab.nodes.inside"]:
            result.update(
                {node: int(path.name) for node in NODES if f"HOSTNAME={node}" in variables}
            )
    return result


def has_samples(pid: int) -> bool:
    """Whether a Job has written any."""
    run = Path(f"/proc/{pid}/root/run/firstlight-run")
    try:
        return any(path.stat().st_size for path in run.glob("samples*"))
    except OSError:
        return False


def test_experiment_runs_on_nodes_and_names_failing_one(
    cluster: Cluster, lab_image: Path, tmp_path: Path
) -> None:
    standing.load(lab_image, (NODES[0], NODES[2]))
    out = tmp_path / "run"
    started = lab(cluster, out, "--repetitions", "1", "--no-trace")
    until(lambda: NODES[2] in of_jobs())
    os.kill(of_jobs()[NODES[2]], signal.SIGKILL)
    output, talk = started.communicate(timeout=300)
    assert started.returncode == 0, talk
    run = read(out)
    assert run.header.axes == ("node", "method", "order", "instances")
    assert run.header.environment["nodes"] == [NODES[0]]
    endings = {
        node: {sample.ending for sample in run.samples if sample.point["node"] == node}
        for node in NODES
    }
    assert endings == {NODES[0]: {Ending.READY}, NODES[1]: set(), NODES[2]: {Ending.FAILED}}
    assert "its pod has ended: exit status 137" in (run.samples[-1].error or "")
    assert run.footer
    assert any(NODES[2] in each for each in run.footer.warnings)
    assert NODES[0] in output
    assert not cluster.get("namespaces", "-l", "firstlight.run")["items"]
    assert not of_jobs()

    started = lab(cluster, tmp_path / "other", "--repetitions", "1000")
    try:
        until(lambda: len(of_jobs()) == 2 and all(map(has_samples, of_jobs().values())))
        started.terminate()  # as Ctrl-C, which a shell's background jobs ignore
        _, talk = started.communicate(timeout=180)
    finally:
        started.kill()
    assert started.returncode == 130
    run = read(tmp_path / "other")
    assert run.footer, talk
    assert run.footer.interrupted
    assert {sample.point["node"] for sample in run.samples} == {NODES[0], NODES[2]}
    assert all(sample.ending == Ending.READY for sample in run.samples)
    assert not cluster.get("namespaces", "-l", "firstlight.run")["items"]
    until(lambda: not of_jobs())
