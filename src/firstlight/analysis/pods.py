"""A pod's start by the spans of its components: the API server, the kubelet and containerd.

Their spans leave gaps. A gap is named after the component that must act next: the scheduler after
the pod is in the datastore, the kubelet after it is bound, the container's own process after the
runtime has let it go, and, once the container runs, the kubelet again until it looks. At each
instant the span that began last owns the time; what none covers before the API server has the
request is the client's.
"""

from collections.abc import Callable

import msgspec

from firstlight.analysis import boot, phases
from firstlight.analysis.boot import Stretch
from firstlight.model import OPERATIONS, ComponentSpan, Sample

CREATED = "create Create etcd3"
BOUND = "bind GuaranteedUpdate etcd3"
TRACED = frozenset({"sandbox.netns", "cni", "shim", "sandbox.runtime", "sandbox.other",
                    "container.create", "container.runtime", "container.other"})  # fmt: skip
"""The stages that containerd and its children work on, which the kernel's tracer follows."""
_SPANS = {
    "run_podsandbox": ("sandbox runtime.v1.RuntimeService/RunPodSandbox",),
    "network": ("sandbox netns", "sandbox cni.setup_pod_network"),
    "create_container": ("container runtime.v1.RuntimeService/CreateContainer",),
    "start_container": ("start runtime.v1.RuntimeService/StartContainer",),
}
"""The spans of each operation, one after the other."""
_SYNC, _PATCH = "sync syncPod", "status HTTP PATCH"


def first_instruction(sample: Sample) -> int | None:
    """When the container's first instruction ran, in ns of CLOCK_MONOTONIC."""
    return next((step.end for step in sample.steps if step.name == "first-instruction"), None)


def to_first_instruction(sample: Sample) -> Sample:
    """The same start, cut at that time, from which the tracer can follow it back."""
    first = first_instruction(sample)
    if first is None:
        return sample
    stamps = msgspec.structs.replace(sample.stamps, ready=first)
    return msgspec.structs.replace(sample, stamps=stamps)


def stretches(
    sample: Sample, phase_of: Callable[[str], str] = phases.of_component
) -> list[Stretch]:
    """A start, from its intended arrival to its end point, divided without a gap."""
    begin, end = sample.stamps.intended, sample.stamps.ready
    if not (sample.telemetry and sample.telemetry.spans) or end is None:
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
    spans = [*begun, *_waits(begun, begin, first), *after]
    if not any(span.name.startswith(("create ", "bind ", "sync ")) for span in reported):
        # no API server: the client's own calls, one after the other
        spans.append(ComponentSpan("request", begin, end))
    return boot.partition(spans, begin, end, phase_of, phases.UNATTRIBUTED)


def account(sample: Sample) -> dict[str, int]:
    """The time of each phase, in ns, which sum to the latency; empty for any other start."""
    spent: dict[str, int] = {}
    for part in stretches(sample):
        spent[part.phase] = spent.get(part.phase, 0) + part.end - part.start
    return spent


def network(sample: Sample) -> int:
    """How long CNI plugins set up the pod's network, in ns; 0 if nobody reported it."""
    return account(sample).get("cni", 0)


def of_operations(sample: Sample) -> dict[str, tuple[int, int]]:
    """The CRI's operations of a pod, by the names in OPERATIONS, in ns: what the phases give each,
    and how long its own spans are. The network begins with the making of its namespace.
    """
    by_phases = dict.fromkeys(_SPANS, 0)
    for part in stretches(sample, _operation):
        if part.phase in by_phases:
            by_phases[part.phase] += part.end - part.start
    by_phases["run_podsandbox"] += by_phases["network"]
    spans = sample.telemetry.spans if sample.telemetry else ()
    lengths = {
        name: sum(
            max((span.end - span.start for span in spans if span.name == part), default=0)
            for part in parts
        )
        for name, parts in _SPANS.items()
    }
    return {name: (by_phases[name], lengths[name]) for name in OPERATIONS}


def _operation(span: str) -> str:
    if phases.of_component(span) in ("sandbox.netns", "cni"):
        return "network"
    purpose = span.partition(" ")[0]
    return next((name for name, parts in _SPANS.items() if parts[0].startswith(f"{purpose} ")), "")


def _waits(spans: list[ComponentSpan], begin: int, first: int) -> list[ComponentSpan]:
    """The waits without a component's span, up to the first instruction."""
    requested = min((span.start for span in spans if span.name.startswith("create ")), default=None)
    stored = _end(spans, CREATED)
    binding = min((span.start for span in spans if span.name.startswith("bind ")), default=None)
    bound = _end(spans, BOUND)
    synced = min((span.start for span in spans if span.name == _SYNC), default=None)
    started = _end(spans, *_SPANS["start_container"])
    waits = []
    for name, start, end in (
        ("request", begin, requested),
        ("schedule", stored, binding),
        ("watch", bound, synced),
        ("exec", started, first),
    ):
        if start is not None and end is not None and start < end:
            waits.append(ComponentSpan(name, start, end))
    return waits


def _after(spans: tuple[ComponentSpan, ...], first: int, end: int) -> list[ComponentSpan]:
    """From the first instruction to the status in the API: the kubelet's wait, and its update."""
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
