"""A pod's start by the spans of its components: the API server, the kubelet and containerd.

Their spans do not cover it all. Between two of them lies somebody's wait, which is named for who
must act next: the scheduler after the pod is in the datastore, the kubelet after it is bound, and,
once the container runs, the kubelet again until it looks. At each instant the span that began last
owns the time; what none covers before the API server has the request is the client's.
"""

import msgspec

from firstlight.analysis import boot, phases
from firstlight.analysis.boot import Stretch
from firstlight.model import ComponentSpan, Sample

CREATED = "create Create etcd3"
BOUND = "bind GuaranteedUpdate etcd3"
TRACED = frozenset({"cni", "shim", "sandbox.runtime", "sandbox.other", "container.create",
                    "container.runtime", "container.other"})  # fmt: skip
"""The stages that containerd and its children work on, which the kernel's tracer follows."""
_SYNC, _PATCH = "sync syncPod", "status HTTP PATCH"


def first_instruction(sample: Sample) -> int | None:
    """When the container's first instruction ran, in ns of CLOCK_MONOTONIC."""
    return next((step.end for step in sample.steps if step.name == "first-instruction"), None)


def to_first_instruction(sample: Sample) -> Sample:
    """The same start, as if it ended there: what the tracer can follow back."""
    first = first_instruction(sample)
    if first is None:
        return sample
    stamps = msgspec.structs.replace(sample.stamps, ready=first)
    return msgspec.structs.replace(sample, stamps=stamps)


def stretches(sample: Sample) -> list[Stretch]:
    """A start, from its intended arrival to its end point, divided without a gap."""
    begin, end = sample.stamps.intended, sample.stamps.ready
    if sample.telemetry is None or end is None:
        return []
    reported = sample.telemetry.spans
    first = first_instruction(sample) or end
    begun = [
        span for span in reported if span.start < first and not span.name.startswith("status ")
    ]
    if any(step.name == "packet" for step in sample.steps):
        after = [ComponentSpan("packet", first, end)]
    else:
        after = _after(reported, first, end)
    spans = [*begun, *_waits(begun, begin), *after]
    if any(step.name == "RunPodSandbox" for step in sample.steps):
        # the client's own calls, one after the other
        spans.append(ComponentSpan("request", begin, end))
    return boot.partition(spans, begin, end, phases.of_component, phases.UNATTRIBUTED)


def account(sample: Sample) -> dict[str, int]:
    """The time of each phase, in ns, which sum to the latency; empty for any other start."""
    spent: dict[str, int] = {}
    for part in stretches(sample):
        spent[part.phase] = spent.get(part.phase, 0) + part.end - part.start
    return spent


def _waits(spans: list[ComponentSpan], begin: int) -> list[ComponentSpan]:
    """The waits that no component has a span of, up to the kubelet's work on the pod."""
    requested = min((span.start for span in spans if span.name.startswith("create ")), default=None)
    stored = _end(spans, CREATED)
    binding = min((span.start for span in spans if span.name.startswith("bind ")), default=None)
    bound = _end(spans, BOUND)
    synced = min((span.start for span in spans if span.name == _SYNC), default=None)
    waits = []
    for name, start, end in (
        ("request", begin, requested),
        ("schedule", stored, binding),
        ("watch", bound, synced),
    ):
        if start is not None and end is not None and start < end:
            waits.append(ComponentSpan(name, start, end))
    return waits


def _after(spans: tuple[ComponentSpan, ...], first: int, end: int) -> list[ComponentSpan]:
    """From the first instruction to the API's word: the kubelet's wait, and its status."""
    patches = [span for span in spans if span.name == _PATCH and first < span.start < end]
    if not patches:
        return [ComponentSpan("relist", first, end)] if first < end else []
    patch = max(patches, key=lambda span: span.start)
    status = [
        span for span in spans if span.name.startswith("status ") and span.start >= patch.start
    ]
    answered = _end(status, "status GuaranteedUpdate etcd3") or patch.end
    return [
        ComponentSpan("relist", first, patch.start),
        *status,
        ComponentSpan("request", answered, end),
    ]


def _end(spans: list[ComponentSpan], name: str) -> int | None:
    return max((span.end for span in spans if span.name == name), default=None)
