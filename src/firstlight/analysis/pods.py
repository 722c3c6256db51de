"""A pod's start by what its components told: the API server, the kubelet and containerd.

Their spans do not cover it all. Between two of them lies somebody's wait, which is named for who
must act next: the scheduler after the pod is in the datastore, the kubelet after it is bound, and,
once the container runs, the kubelet again until it looks. At each instant the span that began last
owns the time; what none covers before the API server has the request is the client's.
"""

from firstlight.analysis import boot, phases
from firstlight.analysis.boot import Stretch
from firstlight.model import Sample, Told

CREATED = "create Create etcd3"
BOUND = "bind GuaranteedUpdate etcd3"
TRACED = frozenset({"cni", "shim", "sandbox.runtime", "sandbox.other", "container.create",
                    "container.runtime", "container.other"})  # fmt: skip
"""The stages that containerd and its children work on, which the kernel's tracer follows."""
_SYNC, _PATCH = "sync syncPod", "status HTTP PATCH"


def first_instruction(sample: Sample) -> int | None:
    """When the container's first instruction ran, in ns of CLOCK_MONOTONIC."""
    return next((step.end for step in sample.steps if step.name == "first-instruction"), None)


def stretches(sample: Sample) -> list[Stretch]:
    """A start, from its intended arrival to its end point, divided without a gap."""
    begin, end = sample.stamps.intended, sample.stamps.ready
    if sample.telemetry is None or end is None:
        return []
    told = sample.telemetry.spans
    first = first_instruction(sample) or end
    begun = [span for span in told if span.start < first and not span.name.startswith("status ")]
    if any(step.name == "packet" for step in sample.steps):
        after = [Told("packet", first, end)]
    else:
        after = _after(told, first, end)
    spans = [*begun, *_waits(begun, begin), *after]
    if any(step.name == "RunPodSandbox" for step in sample.steps):
        spans.append(Told("request", begin, end))  # the client's own calls, one after the other
    return boot.partition(spans, begin, end, phases.of_component, phases.UNATTRIBUTED)


def account(sample: Sample) -> dict[str, int]:
    """The time of each phase, in ns, which sum to the latency; empty for any other start."""
    spent: dict[str, int] = {}
    for part in stretches(sample):
        spent[part.phase] = spent.get(part.phase, 0) + part.end - part.start
    return spent


def _waits(told: list[Told], begin: int) -> list[Told]:
    """What nobody tells of, up to the kubelet's work on the pod."""
    requested = min((one.start for one in told if one.name.startswith("create ")), default=None)
    stored = _end(told, CREATED)
    binding = min((one.start for one in told if one.name.startswith("bind ")), default=None)
    bound = _end(told, BOUND)
    synced = min((one.start for one in told if one.name == _SYNC), default=None)
    found = []
    for name, start, end in (
        ("request", begin, requested),
        ("schedule", stored, binding),
        ("watch", bound, synced),
    ):
        if start is not None and end is not None and start < end:
            found.append(Told(name, start, end))
    return found


def _after(told: tuple[Told, ...], first: int, end: int) -> list[Told]:
    """From the first instruction to the API's word: the kubelet's wait, and its status."""
    patches = [one for one in told if one.name == _PATCH and first < one.start < end]
    if not patches:
        return [Told("relist", first, end)] if first < end else []
    patch = max(patches, key=lambda one: one.start)
    status = [one for one in told if one.name.startswith("status ") and one.start >= patch.start]
    answered = _end(status, "status GuaranteedUpdate etcd3") or patch.end
    return [Told("relist", first, patch.start), *status, Told("request", answered, end)]


def _end(told: list[Told], name: str) -> int | None:
    return max((one.end for one in told if one.name == name), default=None)
