"""What a start that fails leaves in a cluster."""

from types import SimpleNamespace
from typing import cast

import pytest

from firstlight.lab.cluster.requester import Cluster, Pod


class Refusal(Exception):
    """As the client raises: with the server's status, or none if it did not answer."""

    def __init__(self, status: int | None) -> None:
        super().__init__("timed out")
        self.status = status


@pytest.mark.parametrize(
    ("status", "fact", "deleted"),
    [(None, "did not answer", ["p"]), (403, "rejects the pod", [])],
    ids=["unanswered", "rejected"],
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
        watch=SimpleNamespace(await_=lambda *_: {}),
        connection=lambda: api,
        give_back=lambda _: None,
    )
    pod = Pod(cast("Cluster", cluster))
    pod.prepare()
    with pytest.raises(RuntimeError, match=fact):
        pod.make({"name": "p", "image": "i"})
    pod.end()
    assert names == deleted
