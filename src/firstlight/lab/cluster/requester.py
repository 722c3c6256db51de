"""Requests pods from a cluster for the load generator: one pod per start, by the API.

    python -m firstlight.lab.cluster.requester CONFIGURATION

It makes a namespace, writes ``ready`` or why not to standard output, and serves until its standard
input ends; then it deletes the namespace and all that is in it. Connections to the API are open
before a start is due. Stamps are ns of CLOCK_MONOTONIC: those of events are when they arrived here.
"""

import http
import json
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from firstlight.agile import apiserver
from firstlight.errors import longer
from firstlight.lab.cluster import start_server

_ACCOUNT_SECONDS = longer(30.0)
_DELETE_SECONDS, _LOOK_SECONDS, _AGAIN_SECONDS = longer(60.0), 5.0, 0.2
_PASSING = (http.HTTPStatus.CONFLICT, http.HTTPStatus.TOO_MANY_REQUESTS)
_ANSWER_SECONDS = longer(30.0)
_QUIET_SECONDS = longer(300.0)
"""How long the API may take for an answer, and send no events before they are asked for again."""
_LOG_SECONDS = longer(12.0)  # longer than the payload waits for its packet
_HOPELESS = ("ErrImageNeverPull", "ErrImagePull", "ImagePullBackOff", "InvalidImageName",
             "CreateContainerConfigError", "CreateContainerError", "RunContainerError",
             "CrashLoopBackOff")  # fmt: skip
_CONTAINER = "c"
_INSTRUCTION = "firstlight ready "
_PAYLOAD = "firstlight step payload "


class Configuration(msgspec.Struct, frozen=True):
    """``context`` empty is the kubeconfig's own; ``pod_logs`` empty reads logs by the API."""

    socket: str
    kubeconfig: str
    namespace: str
    run: str
    context: str = ""
    pod_logs: str = ""


class Request(msgspec.Struct, frozen=True):
    """A pod to make. ``until`` is ``first`` or ``ready``; ``patience`` in seconds."""

    name: str
    image: str
    runtime_class: str = ""
    args: tuple[str, ...] = ()
    until: str = "first"
    pull: str = "Never"
    patience: float = 55.0


class _Watch:
    """The API's events for each pod of the namespace, and when each first arrived."""

    def __init__(self, api: Any, namespace: str) -> None:  # noqa: ANN401 - an untyped client
        self._api, self._namespace = api, namespace
        self._events: dict[str, dict[str, int]] = {}
        self._pods: dict[str, dict[str, Any]] = {}
        self._changed = threading.Condition()
        answer = self._open()  # here, to fail at once if this user may not watch
        threading.Thread(target=self._listen, args=(answer,), daemon=True).start()

    def _listen(self, answer: Any) -> None:  # noqa: ANN401 - an untyped client
        while True:
            with suppress(Exception):
                self._follow(answer or self._open())
            answer = None
            time.sleep(0.2)

    def _open(self) -> Any:  # noqa: ANN401 - an untyped client
        return self._api.list_namespaced_pod(
            self._namespace,
            watch=True,
            resource_version="0",  # by itself it would wait until the server's cache is fresh
            _preload_content=False,
            _request_timeout=(_ANSWER_SECONDS, _QUIET_SECONDS),
        )

    def _follow(self, answer: Any) -> None:  # noqa: ANN401 - an untyped client
        waiting = b""
        for part in answer.stream(None):
            now = time.monotonic_ns()
            *lines, waiting = (waiting + part).split(b"\n")
            for line in lines:
                self._note(json.loads(line), now)

    def _note(self, event: dict[str, Any], now: int) -> None:
        pod = event["object"]
        if pod.get("kind") != "Pod":
            return
        name, status = pod["metadata"]["name"], pod.get("status", {})
        with self._changed:
            events = self._events.setdefault(name, {})
            events.setdefault("seen", now)
            if pod["spec"].get("nodeName"):
                events.setdefault("bound", now)
            for condition in status.get("conditions", ()):
                if condition["status"] == "True":
                    events.setdefault(condition["type"], now)
            if event["type"] == "DELETED":
                events.setdefault("deleted", now)
            self._pods[name] = pod
            self._changed.notify_all()

    def await_(self, name: str, what: str, seconds: float) -> dict[str, int] | None:
        """Wait for the event ``what`` of a pod; returns when each was seen, None if late. Raises
        RuntimeError if it cannot come any more.
        """
        until = time.monotonic() + seconds
        with self._changed:
            while True:
                events = self._events.get(name, {})
                if what in events:
                    return dict(events)
                if what != "deleted" and (why := hopeless(self._pods.get(name))):
                    raise RuntimeError(why)
                if "deleted" in events:
                    raise RuntimeError("another program deleted the pod before it was Ready")
                left = until - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)

    def stage(self, name: str) -> str:
        """A pod's progress, in the API's terms."""
        pod = self._pods.get(name)
        if pod is None:
            return "the API has not reported it"
        conditions = pod.get("status", {}).get("conditions", [])
        for condition in conditions:
            if condition["type"] == "PodScheduled" and condition["status"] != "True":
                return f"not scheduled: {condition.get('message', condition.get('reason'))}"
        containers = _containers(pod)
        waiting = [(each, state) for each in containers
                   if (state := each.get("state", {}).get("waiting"))]  # fmt: skip
        if waiting:
            return f"{_title(waiting[0][0])} is waiting: {words(waiting[0][1])}"
        phase = pod.get("status", {}).get("phase", "Pending")
        node = pod["spec"].get("nodeName")
        where = f" on node {node}" if node else ", of which no scheduler says anything"
        if node and not containers:
            where += ", whose kubelet reports no container of it"
        unready = [words(each) for each in conditions if each["type"] == "Ready"]
        return ": ".join([f"the pod is {phase}{where}", *unready])


def hopeless(pod: dict[str, Any] | None) -> str | None:
    """Why a pod will not become Ready, from its status; None while it may."""
    if pod is None:
        return None
    status = pod.get("status", {})
    begins = status.get("initContainerStatuses", ())
    for each in _containers(pod):
        state = each.get("state", {})
        waiting, ended = state.get("waiting"), state.get("terminated")
        if waiting and waiting.get("reason") in _HOPELESS:
            return f"{_title(each)} does not start: {words(waiting)}"
        if ended and not (each in begins and ended.get("exitCode") == 0):
            return f"{_title(each)} exited with status {ended.get('exitCode')}: {words(ended)}"
    if status.get("phase") == "Failed":
        return f"the pod failed: {words(status)}"
    for each in status.get("conditions", ()):
        if each["type"] == "DisruptionTarget" and each["status"] == "True":
            return f"the cluster removes the pod: {words(each)}"
    if "deletionTimestamp" in pod["metadata"]:
        return "another program deletes the pod"
    return None


def _containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """The statuses of its containers: those that the cluster's admission added may be among them,
    and begin before."""
    status = pod.get("status", {})
    return [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]


def _title(status: dict[str, Any]) -> str:
    name = status.get("name", _CONTAINER)
    return "the container" if name == _CONTAINER else f"the container {name}"


def words(state: dict[str, Any]) -> str:
    """The reason and message of a status."""
    return ": ".join(str(state[key]) for key in ("reason", "message") if state.get(key)) or "?"


class Cluster:
    """A namespace of a cluster, and idle connections to it.

    ``may_exist`` is whether the namespace may have to be deleted. ``stays`` says why a pod of an
    earlier start could not be.
    """

    may_exist = False
    stays = ""

    def __init__(self, configuration: Configuration) -> None:
        from kubernetes import client

        self.configuration = configuration
        self._client = client
        self._settings = apiserver.settings(configuration.kubeconfig, configuration.context)
        self._settings.retries = 0
        self._idle: list[Any] = []
        self.api = self.connection()

    def make(self) -> None:
        """Make the namespace, and watch it."""
        name = self.configuration.namespace
        labels = {"firstlight.run": self.configuration.run}
        self.may_exist = True
        try:
            self.api.create_namespace({"metadata": {"name": name, "labels": labels}})
        except self._client.ApiException as error:
            self.may_exist = error.status >= 500
            raise
        self._await_account()
        self.watch = _Watch(self._new(), name)

    def _await_account(self) -> None:
        """Wait for the namespace's service account, without which pods are rejected."""
        until = time.monotonic() + _ACCOUNT_SECONDS
        while True:
            try:
                self.api.read_namespaced_service_account("default", self.configuration.namespace)
            except self._client.ApiException as error:
                if error.status != 404 or time.monotonic() > until:
                    raise
                time.sleep(0.02)
            else:
                return

    def _new(self) -> Any:  # noqa: ANN401 - an untyped client
        client: Any = self._client.ApiClient(self._settings)
        ask = client.rest_client.request

        def request(*words: Any, _request_timeout: Any = None, **more: Any) -> Any:  # noqa: ANN401
            return ask(*words, _request_timeout=_request_timeout or _ANSWER_SECONDS, **more)

        client.rest_client.request = request  # by itself it would wait for ever
        return self._client.CoreV1Api(client)

    def connection(self) -> Any:  # noqa: ANN401 - an untyped client
        """Take a client with an open connection."""
        try:
            return self._idle.pop()
        except IndexError:
            api = self._new()
            api.list_namespaced_pod("default", limit=1, _preload_content=False).read()
            return api

    def give_back(self, api: Any) -> None:  # noqa: ANN401 - an untyped client
        """Keep a connection for the next start."""
        self._idle.append(api)

    def delete(self) -> None:
        """Delete the namespace and wait until it is gone. Raises RuntimeError if it stays."""
        name = self.configuration.namespace
        until = time.monotonic() + _DELETE_SECONDS
        try:
            self.api.delete_namespace(name, grace_period_seconds=0)
            left = self.api.read_namespace(name)
            while time.monotonic() < until:
                time.sleep(0.1)
                left = self.api.read_namespace(name)
        except self._client.ApiException as error:
            if error.status == 404:
                return
            raise
        conditions = [each for each in left.status.conditions or () if each.status == "True"]
        why = [each.message or each.reason or each.type for each in conditions]
        raise RuntimeError("; ".join(["it is still Terminating", *why]))


class Pod:
    """One start: a pod of the namespace."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._name = cluster, ""
        self._api: Any = None

    def prepare(self) -> None:
        """A connection of its own. Raises RuntimeError beside a pod of an earlier start."""
        self._api = self._cluster.connection()
        if self._cluster.stays:
            raise RuntimeError(self._cluster.stays)

    def make(self, message: dict[str, Any]) -> list[str]:
        """Create the pod and wait until it is Ready."""
        request = msgspec.convert(message, Request)
        namespace, watch = self._cluster.configuration.namespace, self._cluster.watch
        self._name = request.name
        begun = time.monotonic_ns()
        try:
            answer = self._api.create_namespaced_pod(
                namespace, body(request), _preload_content=False
            )
            made = json.loads(answer.data)
        except Exception as error:
            answered = getattr(error, "status", None)
            if answered and answered < 500:
                self._name = ""  # else there may be a pod to delete
            fact = "rejects the pod" if answered else "did not answer the request to create the pod"
            raise RuntimeError(f"the API server {fact}: {complaint(error)}") from error
        created = time.monotonic_ns()
        try:
            events = watch.await_(self._name, "Ready", request.patience)
        except RuntimeError as error:
            raise RuntimeError(f"{error}{self._warning()}") from error
        if events is None:
            raise RuntimeError(
                f"not Ready after {request.patience:.0f} s: {watch.stage(self._name)}"
                f"{self._warning()}"
            )
        lines = [f"firstlight step create {begun} {created}",
                 f"firstlight step Ready {begun} {events['Ready']}"]  # fmt: skip
        output = self._output(made["metadata"]["uid"])
        first = [line for line in output if line.startswith(_INSTRUCTION)]
        rest = [line for line in output if not line.startswith(_INSTRUCTION)]
        sent = [line for line in output if line.startswith(_PAYLOAD)]
        if first:  # with a packet, the end point is its answer
            stamp = sent[0].split()[3] if sent else first[0].removeprefix(_INSTRUCTION)
            lines.append(f"firstlight step first-instruction {begun} {stamp}")
        if request.until == "ready":
            return [*lines, *rest, f"firstlight ready {events['Ready']}"]
        if not first:
            raise RuntimeError("the pod is Ready, but its container did not print firstlight ready")
        return [*lines, *rest, first[0]]

    def _output(self, uid: str) -> list[str]:
        """Read the container's output, by line. The container was Ready, so it is available at
        once.
        """
        configuration = self._cluster.configuration
        until = time.monotonic() + _LOG_SECONDS
        while True:
            if configuration.pod_logs:
                directory = f"{configuration.namespace}_{self._name}_{uid}"
                log = Path(configuration.pod_logs, directory, _CONTAINER, "0.log")
                text = log.read_text() if log.exists() else ""
                lines = [line.split(" ", 3)[-1] for line in text.splitlines()]
            else:
                try:
                    text = self._api.read_namespaced_pod_log(
                        self._name, configuration.namespace, container=_CONTAINER
                    )
                except Exception as error:
                    why = complaint(error)
                    raise RuntimeError(f"the container's output cannot be read: {why}") from error
                lines = text.splitlines()
            if any(line.startswith(_INSTRUCTION) for line in lines) or time.monotonic() > until:
                return lines
            time.sleep(0.01)

    def _warning(self) -> str:
        """The last warning event of the pod."""
        with suppress(Exception):
            answer = self._api.list_namespaced_event(
                self._cluster.configuration.namespace,
                field_selector=f"involvedObject.name={self._name},type=Warning",
                _preload_content=False,
            )
            events = json.loads(answer.data)["items"]
            if events:
                last = max(events, key=lambda each: each.get("lastTimestamp") or "")
                by = last.get("source", {}).get("component") or last.get("reportingComponent")
                text = str(last.get("message"))
                known = self._cluster.watch.stage(self._name)
                return f"; {by}: {last.get('reason')}{'' if text in known else f': {text}'}"
        return ""

    def end(self) -> None:
        """Delete the pod, and wait until the API has removed it. A server that is away, or has too
        many requests, is asked again.
        """
        until = time.monotonic() + _DELETE_SECONDS
        while self._name:
            try:
                self._delete(until)
                break
            except Exception as error:
                status = getattr(error, "status", None) or 500
                if status == 404:
                    break
                left = until - time.monotonic()
                if (status < 500 and status not in _PASSING) or left < 0:
                    self._cluster.stays = (
                        f"the pod {self._name} of an earlier start cannot be deleted: "
                        f"{complaint(error)}"
                    )
                    break
                time.sleep(min(_pause(error), left))
        if self._api:
            self._cluster.give_back(self._api)

    def _delete(self, until: float) -> None:
        """A watch that is interrupted does not tell of what was deleted meanwhile: look, too."""
        namespace, watch = self._cluster.configuration.namespace, self._cluster.watch
        self._api.delete_namespaced_pod(
            self._name, namespace, grace_period_seconds=0, _preload_content=False
        ).read()  # so that the connection can be used again
        while not watch.await_(self._name, "deleted", _LOOK_SECONDS):
            answer = self._api.list_namespaced_pod(
                namespace, field_selector=f"metadata.name={self._name}", _preload_content=False
            )
            if not json.loads(answer.data)["items"] or time.monotonic() > until:
                return


def body(request: Request) -> dict[str, Any]:
    """The pod as the API takes it."""
    container: dict[str, Any] = {
        "name": _CONTAINER, "image": request.image, "imagePullPolicy": request.pull, "stdin": True,
    }  # fmt: skip
    if request.args:
        container["args"] = list(request.args)
    spec: dict[str, Any] = {
        "containers": [container],
        "restartPolicy": "Never",
        "dnsPolicy": "Default",
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
    }
    if request.runtime_class:
        spec["runtimeClassName"] = request.runtime_class
    return {"metadata": {"name": request.name}, "spec": spec}


def _pause(error: Exception) -> float:
    """When to ask again, in seconds: a server that has too many requests may say it."""
    with suppress(Exception):
        return max(_AGAIN_SECONDS, int(error.headers["Retry-After"]))  # type: ignore[attr-defined]
    return _AGAIN_SECONDS


def complaint(error: Exception) -> str:
    """An API error's own message, in one line; of a failed connection, why."""
    with suppress(Exception):
        return str(json.loads(error.body)["message"])  # type: ignore[attr-defined]
    return " ".join(str(getattr(error, "reason", None) or error).split())


def main(file: Path) -> None:
    """Make the namespace, serve, and delete it."""
    configuration = msgspec.json.decode(file.read_bytes(), type=Configuration)
    cluster = None
    try:
        cluster = Cluster(configuration)
        cluster.make()
    except Exception as error:
        print(  # noqa: T201 - the answer
            f"cannot use the cluster of {configuration.kubeconfig}: {complaint(error)}", flush=True
        )
    else:
        start_server.serve(Path(configuration.socket), lambda: Pod(cluster))
        print("ready", flush=True)  # noqa: T201 - the answer
        while os.read(0, 4096):
            pass
    if cluster and cluster.may_exist:
        _delete(cluster)


def _delete(cluster: Cluster) -> None:
    try:
        cluster.delete()
    except Exception as error:
        name = cluster.configuration.namespace
        print(  # noqa: T201 - to whoever runs it
            f"namespace {name} is not known to be deleted: {complaint(error)}\n"
            f"remedy: kubectl delete namespace {name}, if the cluster still runs", file=sys.stderr,
        )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
