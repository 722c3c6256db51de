"""Makes a Job on each node, follows it, fetches its run, and removes it.

For a node that is not Ready, fails or falls silent, there is a reason instead of a run.
"""

import io
import tarfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import msgspec

from firstlight import __version__
from firstlight.agile import apiserver
from firstlight.errors import Failed, FirstlightError, Unsupported, install_extra, longer
from firstlight.host.workspace import DISK
from firstlight.lab.nodes.order import VARIABLE, Event, Order
from firstlight.store import read

IMAGE = f"docker.io/firstlight/lab:{__version__}"
"""What ``make lab-image`` builds."""
ALL = "all"
_LABEL = "firstlight.run"
_START_SECONDS = longer(300.0)  # an image may have to be pulled
_RUN_MOST, _LINE_MOST = 1 << 30, 1 << 20
_SILENT_SECONDS = longer(60.0)
_DELETE_SECONDS = longer(120.0)
_LONGEST_SECONDS = 6 * 3600  # for a Job that is not followed any more
_ASK_SECONDS = longer(30.0)
_POLL_SECONDS = 0.2
_PROGRAM = ("python3", "-m", "firstlight.lab.nodes.inside")
_HOPELESS = ("ErrImageNeverPull", "ErrImagePull", "ImagePullBackOff", "InvalidImageName",
             "CreateContainerConfigError", "CreateContainerError", "RunContainerError")  # fmt: skip

NodeResult = Path | str
"""The directory of a node's run, or why there is none."""


class Interrupted(KeyboardInterrupt):
    """Nodes were interrupted; ``outcomes`` has what they had measured by then."""

    def __init__(self, outcomes: dict[str, NodeResult]) -> None:
        super().__init__()
        self.outcomes = outcomes


class Nodes:
    """The nodes of a cluster; the namespace of the Jobs has the run's ``name``."""

    def __init__(self, kubeconfig: str, context: str, image: str, name: str) -> None:
        try:
            from kubernetes import client
        except ImportError as error:
            raise Unsupported("the Python client of Kubernetes is missing",
                              install_extra("kubernetes")) from error  # fmt: skip
        self._client = client
        self._image, self._name = image or IMAGE, f"firstlight-{name}".lower()
        try:
            self._settings: Any = apiserver.settings(kubeconfig, context)
        except Exception as error:
            raise Failed(f"cannot use the kubeconfig {kubeconfig or '~/.kube/config'}: {error}",
                         "give one with --kubeconfig FILE") from error  # fmt: skip
        self._settings.retries = 1
        self._ended = threading.Event()
        self._pods: dict[str, str] = {}

    def _api(self, kind: str = "CoreV1Api") -> Any:  # noqa: ANN401 - an untyped client
        return getattr(self._client, kind)(self._client.ApiClient(self._settings))

    def chosen(self, selector: str) -> dict[str, bool]:
        """The nodes with these labels, and whether each is Ready. Raises FirstlightError."""
        try:
            nodes = self._api().list_node(
                label_selector="" if selector == ALL else selector, _request_timeout=_ASK_SECONDS
            )
        except Exception as error:
            raise Failed(f"cannot list the cluster's nodes: {_complaint(error)}",
                         "see --kubeconfig, --context and --nodes") from error  # fmt: skip
        if not nodes.items:
            raise FirstlightError(f"no node matches {selector}", "--nodes all chooses all of them")
        return {
            node.metadata.name: any(
                each.type == "Ready" and each.status == "True" for each in node.status.conditions
            )
            for node in nodes.items
        }

    def measure(
        self,
        nodes: dict[str, bool],
        order: Order,
        into: Path,
        say: Callable[[str], None],
        *,
        in_turn: bool,
    ) -> dict[str, NodeResult]:
        """Each node's run below ``into``, or why there is none.

        The nodes measure together or ``in_turn``. Removes the Jobs and their namespace in any case.
        Raises Interrupted for a KeyboardInterrupt; a second one is raised at once.
        """
        say(f"image {self._image}, namespace {self._name}")
        try:
            self._make_namespace()
            pool = ThreadPoolExecutor(1 if in_turn else len(nodes))
            try:
                futures = {
                    node: pool.submit(self._measure, node, ready, order, into / node, say)
                    for node, ready in nodes.items()
                }
                try:
                    return {node: future.result() for node, future in futures.items()}
                except KeyboardInterrupt:
                    self._ended.set()
                    say("interrupted: fetching what was measured")
                    raise Interrupted(self._collect(futures, into)) from None
            finally:
                self._ended.set()
                pool.shutdown(wait=False, cancel_futures=True)
        finally:
            say(f"removing the namespace {self._name}")
            self._delete_namespace()

    def _collect(self, futures: dict[str, Future[NodeResult]], into: Path) -> dict[str, NodeResult]:
        """What each node has come to; its run, if it made one, is fetched."""

        def fetch(node: str) -> NodeResult:
            if futures[node].done() and not futures[node].cancelled():
                return futures[node].result()
            part = into / f"{node}.part"
            try:
                self._fetch(self._pods[node], part)
                read(part)
            except Exception:  # it has not begun, or is gone
                return "interrupted"
            return part

        pool = ThreadPoolExecutor(len(futures))
        try:
            return dict(zip(futures, pool.map(fetch, futures), strict=True))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _make_namespace(self) -> None:
        privileged = {"pod-security.kubernetes.io/enforce": "privileged"}
        body = {"metadata": {"name": self._name, "labels": {_LABEL: self._name, **privileged}}}
        api = self._api()
        try:
            api.create_namespace(body, _request_timeout=_ASK_SECONDS)
            until = time.monotonic() + _ASK_SECONDS
            while time.monotonic() < until:  # without its account, pods are rejected
                with suppress(self._client.ApiException):
                    api.read_namespaced_service_account("default", self._name)
                    return
                time.sleep(_POLL_SECONDS)
        except Exception as error:
            hint = "use a kubeconfig that may make namespaces and Jobs"
            why = f"cannot make the namespace {self._name}: {_complaint(error)}"
            raise Failed(why, hint) from error

    def _delete_namespace(self) -> None:
        """Delete it with its Jobs, and wait until they are gone. A second interrupt gives up."""
        api, until = self._api(), time.monotonic() + _DELETE_SECONDS
        with suppress(self._client.ApiException):
            api.delete_namespace(self._name, _request_timeout=_ASK_SECONDS)
        while time.monotonic() < until:
            try:
                api.read_namespace(self._name, _request_timeout=_ASK_SECONDS)
            except self._client.ApiException as error:
                if error.status == 404:
                    return
            time.sleep(_POLL_SECONDS)
        raise Failed(f"the namespace {self._name} is still there after {_DELETE_SECONDS:.0f} s",
                     f"kubectl delete namespaces -l {_LABEL}={self._name}")  # fmt: skip

    def _measure(
        self, node: str, ready: bool, order: Order, into: Path, say: Callable[[str], None]
    ) -> NodeResult:
        try:
            if not ready:
                raise Failed("the node is not Ready")
            if self._ended.is_set():
                raise Failed("interrupted")
            pod = self._pods[node] = self._start(node, order)
            self._follow(node, pod, say)
            self._fetch(pod, into)
            read(into)  # a node may send anything
        except FirstlightError as error:
            say(f"{node}: {error.message}")
            return error.message
        except Exception as error:
            say(f"{node}: {_complaint(error)}")
            return _complaint(error)
        say(f"{node}: measured")
        return into

    def _start(self, node: str, order: Order) -> str:
        """Make the node's Job and return the name of its pod when that runs. Raises Failed."""
        batch, core = self._api("BatchV1Api"), self._api()
        made = batch.create_namespaced_job(
            self._name, job(node, self._image, order), _request_timeout=_ASK_SECONDS
        )
        until, stage = time.monotonic() + _START_SECONDS, "no pod was made"
        while time.monotonic() < until and not self._ended.is_set():
            pods = core.list_namespaced_pod(
                self._name, label_selector=f"job-name={made.metadata.name}",
                _request_timeout=_ASK_SECONDS,
            ).items  # fmt: skip
            for pod in pods:
                if pod.status.phase in ("Running", "Succeeded", "Failed"):
                    return str(pod.metadata.name)
                stage = _stage(pod)
            time.sleep(_POLL_SECONDS)
        raise Failed(f"its pod did not start: {stage}")

    def _follow(self, node: str, pod: str, say: Callable[[str], None]) -> None:
        """Follow a Job until its run is measured. Raises Failed with the node's own reason."""
        shown, last = 0, ""
        try:
            answer = self._api().read_namespaced_pod_log(
                pod, self._name, follow=True, _preload_content=False,
                _request_timeout=(_ASK_SECONDS, _SILENT_SECONDS),
            )  # fmt: skip
            for line in _lines(answer):
                try:
                    event = msgspec.json.decode(line, type=Event)
                except msgspec.DecodeError:
                    last = line.decode(errors="replace")  # a program's complaint
                    continue
                if event.kind == "measured":
                    return
                if event.kind == "failed":
                    raise Failed(event.message)
                if event.message:
                    say(f"{node}: {event.message}")
                if event.done >= (shown + 1) / 4:
                    shown = int(event.done * 4)
                    say(f"{node}: {event.done:.0%}")
        except Failed:
            raise
        except Exception as error:
            raise Failed(f"the node has vanished: {_complaint(error)}") from error
        raise Failed(f"its pod has ended: {last or self._end(pod)}")

    def _end(self, pod: str) -> str:
        """How a pod ended, which the kubelet reports a moment after its last output."""
        until, why = time.monotonic() + _ASK_SECONDS, "the node does not say how"
        with suppress(Exception):
            while time.monotonic() < until:
                status = (
                    self._api()
                    .read_namespaced_pod(pod, self._name, _request_timeout=_ASK_SECONDS)
                    .status
                )
                for each in status.container_statuses or ():
                    if ended := each.state.terminated:
                        return f"exit status {ended.exit_code}, {ended.reason}"
                if status.phase == "Failed":
                    return str(status.message or status.reason)
                time.sleep(_POLL_SECONDS)
        return why

    def _fetch(self, pod: str, into: Path) -> None:
        from kubernetes.stream import stream

        connection = stream(
            self._api().connect_get_namespaced_pod_exec, pod, self._name,
            command=[*_PROGRAM, "send"], stdout=True, stderr=True, stdin=False, tty=False,
            binary=True, _preload_content=False, _request_timeout=_SILENT_SECONDS,
        )  # fmt: skip
        archive = io.BytesIO()
        until = time.monotonic() + _SILENT_SECONDS
        while connection.is_open():
            connection.update(timeout=1)
            if part := connection.read_stdout(timeout=0):
                archive.write(part)
                until = time.monotonic() + _SILENT_SECONDS
            if archive.tell() > _RUN_MOST:
                raise Failed(f"the node sends more than {_RUN_MOST >> 20} MiB for a run")
            if time.monotonic() > until:
                raise Failed("the node does not send its run")
        archive.write(connection.read_stdout(timeout=0))
        complaint = connection.read_stderr(timeout=0)
        if connection.returncode:
            raise Failed(f"cannot fetch its run: {complaint.decode(errors='replace').strip()}")
        archive.seek(0)
        _unpack(archive, into)


def job(node: str, image: str, order: Order) -> dict[str, Any]:
    """The Job of a node, as the API takes it.

    It makes its own network and mounts. The tracer needs the node's PID namespace.
    """
    return {
        "metadata": {"generateName": "node-"},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": _LONGEST_SECONDS,
            "template": {
                "spec": {
                    "nodeName": node,
                    "tolerations": [{"operator": "Exists"}],
                    "restartPolicy": "Never",
                    "hostNetwork": True,
                    "hostPID": True,
                    "dnsPolicy": "Default",
                    "terminationGracePeriodSeconds": 30,
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "containers": [{
                        "name": "lab",
                        "image": image,
                        "imagePullPolicy": "IfNotPresent",
                        "command": list(_PROGRAM),
                        "env": [{"name": VARIABLE,
                                 "value": msgspec.json.encode(order).decode()}],
                        "securityContext": {"privileged": True},
                        "volumeMounts": [{"name": "run", "mountPath": "/run"},
                                         {"name": "disk", "mountPath": str(DISK.parent)}],
                    }],
                    "volumes": [{"name": "run", "emptyDir": {"medium": "Memory"}},
                                {"name": "disk", "emptyDir": {}}],
                },
            },
        },
    }  # fmt: skip


def _unpack(archive: IO[bytes], into: Path) -> None:
    """Write the regular files of a tar file, as a run has them, and nothing outside of ``into``."""
    with tarfile.open(fileobj=archive) as tar:
        for member in tar:
            path = into / member.name
            if member.isfile() and ".." not in path.parts and not Path(member.name).is_absolute():
                path.parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                assert content
                path.write_bytes(content.read())


def _lines(answer: Any) -> Any:  # noqa: ANN401 - an untyped client
    waiting = b""
    for part in answer.stream(None):
        *lines, waiting = (waiting + part).split(b"\n")
        yield from lines
        if len(waiting) > _LINE_MOST:
            raise Failed(f"the node sends a line of more than {_LINE_MOST >> 20} MiB")


def _stage(pod: Any) -> str:  # noqa: ANN401 - an untyped client
    """Why a pod does not run yet. Raises Failed if it never will."""
    for each in pod.status.container_statuses or ():
        if waiting := each.state.waiting:
            words = ": ".join(filter(None, (waiting.reason, waiting.message)))
            if waiting.reason in _HOPELESS:
                raise Failed(f"its pod does not start: {words}")
            return words
    return f"the pod is {pod.status.phase}"


def _complaint(error: Exception) -> str:
    """An API error's own message."""
    with suppress(Exception):
        return str(msgspec.json.decode(error.body)["message"])  # type: ignore[attr-defined]
    return str(error) or repr(error)
