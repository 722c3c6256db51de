"""A cluster whose components are slow or gone."""

import http.client
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from firstlight.errors import Failed
from firstlight.lab.backends.kubernetes import Lab
from firstlight.lab.cluster import metrics, running
from firstlight.lab.cluster.metrics import Sums
from firstlight.model import OPERATIONS


@pytest.mark.parametrize("late", ["before", "after"])
def test_metrics_that_do_not_come_are_left_out(monkeypatch: pytest.MonkeyPatch, late: str) -> None:
    """Amid a burst on a busy machine, a kubelet may take long."""
    sums: Sums = dict.fromkeys(OPERATIONS, (1.0, 1.0))
    answers: list[Sums | None] = [None, sums] if late == "before" else [sums, None]

    def read(_: object) -> Sums:
        answer = answers.pop(0)
        if answer is None:
            raise TimeoutError
        return answer

    monkeypatch.setattr(metrics, "read", read)
    lab = Lab(Path(), "n", ExitStack(), own=cast("running.Cluster", object()))
    assert lab.counts(lab.metrics()) == {}


@pytest.mark.parametrize(
    "answer",
    [http.client.IncompleteRead(b"# HELP"), http.client.BadStatusLine(""), (200, b"\xff"),
     (200, b'x_sum{a="b'), (503, b"")],
    ids=["ended", "ending", "no-text", "cut", "not-ready"],
)  # fmt: skip
def test_an_answer_without_metrics_counts_as_none(
    monkeypatch: pytest.MonkeyPatch, answer: Exception | tuple[int, bytes]
) -> None:
    def ask(*_: object, **__: object) -> tuple[int, bytes]:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(metrics, "ask", ask)
    cluster = SimpleNamespace(settings=SimpleNamespace(token=""), inside=lambda call: call())
    lab = Lab(Path(), "n", ExitStack(), own=cast("running.Cluster", cluster))
    assert lab.metrics() == {}


def test_a_component_that_ends_while_pods_do_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    said = ["", "", "containerd of the cluster has ended"]
    monkeypatch.setattr(running, "ended", lambda _: said.pop(0))
    monkeypatch.setattr(running, "_pods", lambda _: [1])
    monkeypatch.setattr(running, "_POLL_SECONDS", 0)
    monkeypatch.setattr(running, "_QUIET_SECONDS", 5.0)
    cluster = cast("running.Cluster", SimpleNamespace(pid=1))
    lab = Lab(Path(), "n", ExitStack(), own=cluster)
    with pytest.raises(Failed, match="containerd of the cluster has ended"):
        lab.await_quiet(0)
    assert said == []
