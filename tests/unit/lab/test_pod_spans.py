"""What a pod's spans are named, and what is derived from their events."""

from types import SimpleNamespace

import pytest

from firstlight.lab.cluster import pod_spans
from firstlight.lab.cluster.pod_spans import Clock, _purposes
from firstlight.lab.cluster.telemetry import Span
from firstlight.model import ComponentSpan


def span(name: str, parent: str, start: int, end: int, **events: int) -> Span:
    marks = {name.replace("_", " "): at for name, at in events.items()}
    return Span("containerd", name, "t", name, parent, start, end, {}, marks)


SANDBOX = (
    span("runtime.v1.RuntimeService/RunPodSandbox", "", 0, 100),
    span("metadata.sandbox.Update", "cri.sandbox.run", 25, 30),
    span("cni.setup_pod_network", "cri.sandbox.run", 32, 60),
)


def test_the_network_begins_when_containerd_makes_its_namespace() -> None:
    run = span("cri.sandbox.run", SANDBOX[0].name, 1, 99, setup_pod_network=10)
    named = _purposes([*SANDBOX, run])
    assert ComponentSpan("sandbox netns", 10, 32) in named
    assert ComponentSpan("sandbox cni.setup_pod_network", 32, 60) in named


def test_a_containerd_that_does_not_say_so_has_no_such_span() -> None:
    run = span("cri.sandbox.run", SANDBOX[0].name, 1, 99)
    assert not [each for each in _purposes([*SANDBOX, run]) if each.name.endswith("netns")]


@pytest.mark.parametrize(("drift", "shift"), [(5_000_000, 2_500_000), (-1_000_000_000, None)])
def test_a_clock_that_is_set_meanwhile_leaves_no_spans(
    monkeypatch: pytest.MonkeyPatch, drift: int, shift: int | None
) -> None:
    offsets, seconds = iter([(0, 1), (drift, 1)]), iter([0, 10_000_000_000])
    monkeypatch.setattr(pod_spans, "_offset", lambda: next(offsets))
    monkeypatch.setattr(pod_spans, "time", SimpleNamespace(monotonic_ns=lambda: next(seconds)))
    clock = Clock()
    clock.close()
    told = clock.telemetry([ComponentSpan("sync syncPod", 10, 20)])
    assert [span.start - 10 for span in told.spans] == ([] if shift is None else [shift])
    assert told.uncertainty == abs(drift) + 1
