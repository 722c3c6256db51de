"""What a start that fails leaves in a cluster."""

from contextlib import nullcontext
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from kubernetes import client

from firstlight.lab.cluster import requester
from firstlight.lab.cluster.requester import Cluster, Configuration, Pod


class Refusal(Exception):
    """As the client raises: with the server's status, or none if it did not answer."""

    def __init__(self, status: int | None) -> None:
        super().__init__("timed out")
        self.status = status


@pytest.mark.parametrize(
    ("status", "fact", "deleted"),
    [(None, "did not answer", ["p"]), (504, "rejects", ["p"]), (403, "rejects the pod", [])],
    ids=["unanswered", "given-up", "rejected"],
)
def test_a_pod_whose_creation_had_no_answer_is_deleted(
    status: int | None, fact: str, deleted: list[str]
) -> None:
    names = []

    def create(*_: object, **__: object) -> None:
        raise Refusal(status)

    def delete(name: str, *_: object, **__: object) -> SimpleNamespace:
        names.append(name)
        return SimpleNamespace(read=lambda: b"")

    api = SimpleNamespace(create_namespaced_pod=create, delete_namespaced_pod=delete)
    cluster = SimpleNamespace(
        configuration=SimpleNamespace(namespace="n"),
        watch=SimpleNamespace(await_=lambda *_: {"deleted": 1}),
        connection=lambda: api,
        give_back=lambda _: None,
        stays="",
    )
    pod = Pod(cast("Cluster", cluster))
    pod.prepare()
    with pytest.raises(RuntimeError, match=fact):
        pod.make({"name": "p", "image": "i"})
    pod.end()
    assert names == deleted


def test_a_watch_does_not_wait_for_a_fresh_cache() -> None:
    """Else it ends with "Too large resource version" while the first pod is made."""
    asked = []

    def open_(_: str, **words: object) -> SimpleNamespace:
        asked.append(words["resource_version"])
        return SimpleNamespace(stream=lambda _: (Event().wait(), [])[1])

    requester._Watch(SimpleNamespace(list_namespaced_pod=open_), "n")
    assert asked == ["0"]


def test_a_deletion_that_the_watch_misses_is_looked_for() -> None:
    answers = [b'{"items": [{}]}', b'{"items": []}']
    api = SimpleNamespace(
        create_namespaced_pod=lambda *_, **__: SimpleNamespace(data=b"{}"),
        delete_namespaced_pod=lambda *_, **__: SimpleNamespace(read=lambda: b""),
        list_namespaced_pod=lambda *_, **__: SimpleNamespace(data=answers.pop(0)),
    )
    back: list[object] = []
    cluster = SimpleNamespace(
        configuration=SimpleNamespace(namespace="n"),
        watch=SimpleNamespace(await_=lambda *_: None, stage=lambda _: ""),
        connection=lambda: api,
        give_back=back.append,
        stays="",
    )
    pod = Pod(cast("Cluster", cluster))
    pod.prepare()
    with pytest.raises(RuntimeError, match="not Ready"):
        pod.make({"name": "p", "image": "i"})
    pod.end()
    assert answers == []
    assert back == [api]


@pytest.mark.parametrize(
    ("refusals", "stays"),
    [([403], "the pod p of an earlier start cannot be deleted: timed out"),
     ([None, 503], ""), ([409, 429], ""), ([404], "")],
    ids=["not-allowed", "away-for-a-while", "busy-for-a-while", "gone"],
)  # fmt: skip
def test_no_start_is_beside_a_pod_that_cannot_be_deleted(
    monkeypatch: pytest.MonkeyPatch, refusals: list[int | None], stays: str
) -> None:
    def delete(*_: object, **__: object) -> SimpleNamespace:
        if refusals:
            raise Refusal(refusals.pop(0))
        return SimpleNamespace(read=lambda: b"")

    monkeypatch.setattr(requester, "_AGAIN_SECONDS", 0)
    cluster = SimpleNamespace(
        configuration=SimpleNamespace(namespace="n", pod_logs=""),
        watch=SimpleNamespace(await_=lambda *_: {"Ready": 1}),
        connection=lambda: SimpleNamespace(
            create_namespaced_pod=lambda *_, **__: SimpleNamespace(
                data=b'{"metadata": {"uid": "u"}}'
            ),
            read_namespaced_pod_log=lambda *_, container: f"firstlight ready {len(container)}",
            delete_namespaced_pod=delete,
        ),
        give_back=lambda _: None,
        stays="",
    )
    first, second = Pod(cast("Cluster", cluster)), Pod(cast("Cluster", cluster))
    first.prepare()
    assert first.make({"name": "p", "image": "i"})[-1] == "firstlight ready 1"
    first.end()
    assert refusals == []
    with pytest.raises(RuntimeError, match=stays) if stays else nullcontext():
        second.prepare()
    second.end()


@pytest.mark.parametrize(("after", "pause"), [("3", 3.0), ("0", 0.2), ("soon", 0.2), (None, 0.2)])
def test_a_busy_server_is_asked_again_when_it_says(after: str | None, pause: float) -> None:
    error = Refusal(429)
    assert requester._pause(error) == 0.2
    error.headers = {"Retry-After": after}  # type: ignore[attr-defined]
    assert requester._pause(error) == pause


def status(**of: object) -> dict[str, Any]:
    return {"metadata": {"name": "p"}, "spec": {}, "status": of}


def ended(name: str, code: int) -> dict[str, object]:
    return {"name": name, "state": {"terminated": {"exitCode": code, "reason": "Error"}}}


@pytest.mark.parametrize(
    ("pod", "why"),
    [
        (status(initContainerStatuses=[ended("mesh", 0)]), None),
        (status(initContainerStatuses=[ended("mesh", 2)]),
         "the container mesh exited with status 2: Error"),
        (status(containerStatuses=[{"name": "c"}, ended("proxy", 0)]),
         "the container proxy exited with status 0: Error"),
        (status(conditions=[{"type": "DisruptionTarget", "status": "True", "message": "m",
                             "reason": "PreemptionByScheduler"}]),
         "the cluster removes the pod: PreemptionByScheduler: m"),
        (status() | {"metadata": {"deletionTimestamp": "t"}}, "another program deletes the pod"),
    ],
    ids=["prepared", "not-prepared", "sidecar", "preempted", "deleted"],
)  # fmt: skip
def test_what_the_cluster_adds_or_takes_away_ends_the_wait(
    pod: dict[str, Any], why: str | None
) -> None:
    assert requester.hopeless(pod) == why


@pytest.mark.parametrize(
    ("failing", "error", "deleted"),
    [
        ("create_namespace", client.ApiException(403, "Forbidden"), False),
        ("create_namespace", client.ApiException(504, "Timeout"), True),
        ("create_namespace", OSError("timed out"), True),
        ("read_namespaced_service_account", client.ApiException(403, "Forbidden"), True),
        ("list_namespaced_pod", client.ApiException(403, "Forbidden"), True),
    ],
    ids=["rejected", "given-up", "unanswered", "without-account", "without-watch"],
)
@pytest.mark.parametrize("stays", [False, True])
def test_a_namespace_that_may_exist_is_deleted_or_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    failing: str, error: Exception, deleted: bool, stays: bool,
) -> None:  # fmt: skip
    names = []

    def fail(*_: object, **__: object) -> None:
        raise error

    def read(_: str) -> SimpleNamespace:
        if not stays:
            raise client.ApiException(404, "Not Found")
        why = SimpleNamespace(status="True", message="has finalizers")
        return SimpleNamespace(status=SimpleNamespace(conditions=[why]))

    api = SimpleNamespace(
        create_namespace=lambda _: None,
        delete_namespace=lambda name, **_: names.append(name),
        read_namespace=read,
        read_namespaced_service_account=lambda *_: None,
    )
    setattr(api, failing, fail)

    def init(self: Cluster, configuration: Configuration) -> None:
        self.configuration, self._client, self.api = configuration, client, api

    monkeypatch.setattr(Cluster, "__init__", init)
    monkeypatch.setattr(Cluster, "_new", lambda self: self.api)
    monkeypatch.setattr(requester, "_DELETE_SECONDS", 0.0)
    file = tmp_path / "requester.json"
    file.write_bytes(msgspec.json.encode(Configuration("s", "k", "n", "r")))
    requester.main(file)
    out, err = capsys.readouterr()
    assert out.startswith("cannot use the cluster of k: ")
    assert names == ["n"] * deleted
    assert ("n is not known to be deleted: it is still Terminating; has finalizers" in err) == (
        deleted and stays
    )
