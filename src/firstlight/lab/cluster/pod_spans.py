"""Finds the components' spans of a pod or a sandbox, and the purpose of each.

A pod's start consists of several traces: the API server's of its creation, binding and status, each
found by the pod's key or URL; and the kubelet's syncPod, found by the pod's name, which continues
through the CRI into containerd and ends at the shim. A sandbox requested by the lab through the CRI
is one trace, with the id that the lab sent.
"""

import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from firstlight.lab.cluster.telemetry import Reader, Span
from firstlight.model import ComponentSpan, Telemetry

_PURPOSES = {
    "RunPodSandbox": "sandbox",
    "CreateContainer": "container",
    "StartContainer": "start",
    "ImageStatus": "image",
    "PullImage": "image",
}
"""The verbs of the CRI, and the purpose of the spans below each."""
_POLL_SECONDS, _EXPORT_SECONDS = 0.05, 0.5
_DRIFT_MOST = 0.01
"""Of the time between the readings: a clock that drifts more is being set."""
_LAYER = "layer.media.digest"
_NETWORK_BEGINS = "setup pod network"
"""containerd's event within cri.sandbox.run: its metric of the network begins there, and the span
cni.setup_pod_network only when the namespace has been made and recorded."""


class Book:
    """The telemetry of a cluster's components."""

    def __init__(self, file: Path) -> None:
        self._reader = Reader(file)
        self._traces: dict[str, list[Span]] = defaultdict(list)
        self._syncs: dict[str, set[str]] = defaultdict(set)
        self._created: dict[str, str] = {}
        self._bound: dict[str, str] = {}
        self._status: dict[str, list[str]] = defaultdict(list)

    def read(self) -> None:
        """Read new spans."""
        for span in self._reader.new():
            self._traces[span.trace].append(span)
            key, url = str(span.attributes.get("key", "")), _url(span)
            if span.name == "syncPod":
                self._syncs[str(span.attributes.get("k8s.pod"))].add(span.trace)
            elif span.name == "Create etcd3" and key.startswith("/pods/"):
                self._created[key.removeprefix("/pods/")] = span.trace
            elif url.endswith("/binding") and span.name.startswith("POST"):
                self._bound[_pod(url)] = span.trace
            elif url.endswith("/status") and span.name.startswith("HTTP PATCH"):
                self._status[_pod(url)].append(span.trace)

    def images(self, since: int, clock: "Clock") -> Telemetry:
        """containerd's spans that began after ``since``, in ns of CLOCK_REALTIME, of pulling an
        image and of running a container of it: all, so for one start at a time."""
        time.sleep(_EXPORT_SECONDS)
        self.read()
        spans = [span for trace in self._traces.values() for span in trace if span.start >= since]
        return clock.telemetry(
            named for span in spans for named in _of_image(span) if span.service == "containerd"
        )

    def await_traces(self, traces: Iterable[str], seconds: float) -> None:
        """Read until the last call of every sandbox has arrived, for at most some seconds."""
        until = time.monotonic() + seconds
        missing = set(traces)
        while True:
            self.read()
            missing = {
                trace
                for trace in missing
                if not any(span.name.endswith("/StartContainer") for span in self._traces[trace])
            }
            if not missing or time.monotonic() > until:
                return
            time.sleep(_POLL_SECONDS)

    def await_pods(self, pods: Iterable[str], seconds: float) -> None:
        """Read until every pod's start is complete, for at most some seconds."""
        until = time.monotonic() + seconds
        missing = set(pods)
        while True:
            self.read()
            missing = {pod for pod in missing if not self._is_whole(pod)}
            if not missing or time.monotonic() > until:
                return
            time.sleep(_POLL_SECONDS)

    def _is_whole(self, pod: str) -> bool:
        """Whether it was created, bound, synchronised and its status patched twice: Ready."""
        in_all = pod in self._created and pod in self._bound and pod in self._syncs
        return in_all and len(self._status[pod]) > 1

    def pod(self, pod: str, clock: "Clock") -> Telemetry:
        """The spans of a pod, ``namespace/name``, on the host's clock."""
        spans = [
            *_named("create", self._traces.get(self._created.get(pod, ""), ())),
            *_named("bind", self._traces.get(self._bound.get(pod, ""), ())),
        ]
        for trace in self._syncs.get(pod, ()):
            spans += _purposes(self._traces[trace])
        for trace in self._status.get(pod, ()):
            spans += _named("status", self._traces[trace])
        return clock.telemetry(spans)

    def trace(self, trace: str, clock: "Clock") -> Telemetry:
        """The spans of one of containerd's traces, on the host's clock."""
        return clock.telemetry(_purposes(self._traces.get(trace, [])))


class Clock:
    """Converts CLOCK_REALTIME to CLOCK_MONOTONIC, by readings at both ends of a batch."""

    def __init__(self) -> None:
        self._offset, self._bracket = _offset()
        self._opened = time.monotonic_ns()

    def close(self) -> None:
        """Read both again; their drift adds to the uncertainty."""
        offset, bracket = _offset()
        drift = abs(offset - self._offset)
        self._was_set = drift > _DRIFT_MOST * (time.monotonic_ns() - self._opened)
        self._uncertainty = drift + max(bracket, self._bracket)
        self._offset = (offset + self._offset) // 2

    def telemetry(self, spans: Iterable[ComponentSpan]) -> Telemetry:
        """Spans converted to CLOCK_MONOTONIC, in order; none if the clock was set meanwhile."""
        if self._was_set:
            return Telemetry((), self._uncertainty)
        shift = self._offset
        laid = (ComponentSpan(s.name, s.start + shift, s.end + shift) for s in spans)
        return Telemetry(tuple(sorted(laid, key=lambda span: span.start)), self._uncertainty)


def _offset() -> tuple[int, int]:
    """The offset to add to CLOCK_REALTIME, and half the duration of the reading, in ns."""
    best = (0, 1 << 62)
    for _ in range(5):
        before = time.monotonic_ns()
        real = time.time_ns()
        after = time.monotonic_ns()
        if after - before < best[1]:
            best = ((before + after) // 2 - real, after - before)
    return best[0], best[1] // 2 + 1


def _of_image(span: Span) -> list[ComponentSpan]:
    """A span with its purpose: of a layer, by its digest; of the image; of the container."""
    last = span.name.rpartition(".")[2]
    if digest := str(span.attributes.get(_LAYER, "")):
        short = digest.partition(":")[2][:12]
        return _named(f"image {last} {short}", [span])
    if span.name.startswith("pkg.unpack") or "Transfer" in span.name:
        return _named("image", [span])
    if "ask" in span.name:
        return _named("start", [span])
    return _named("container", [span]) if "ontainers" in span.name else []


def _named(purpose: str, spans: Iterable[Span]) -> list[ComponentSpan]:
    return [ComponentSpan(f"{purpose} {span.name}", span.start, span.end) for span in spans]


def _purposes(spans: list[Span]) -> list[ComponentSpan]:
    """Each span with its purpose: by the CRI verb above it, else the kubelet's."""
    by_id = {span.id: span for span in spans}
    named = []
    for span in spans:
        above: Span | None = span
        purpose = "sync"
        while above:
            if verb := _PURPOSES.get(above.name.rpartition("/")[2]):
                purpose = verb
            above = by_id.get(above.parent)
        interface = span.attributes.get("cni.ifname")
        name = f"{span.name} {interface}" if interface else span.name
        named.append(ComponentSpan(f"{purpose} {name}", span.start, span.end))
        sandbox = by_id.get(span.parent)
        began = sandbox.events.get(_NETWORK_BEGINS) if sandbox else None
        if span.name == "cni.setup_pod_network" and began is not None:
            named.append(ComponentSpan(f"{purpose} netns", began, span.start))
    return named


def _url(span: Span) -> str:
    return str(span.attributes.get("http.target") or span.attributes.get("http.url") or "")


def _pod(url: str) -> str:
    """namespace/name of a URL …/namespaces/NAMESPACE/pods/NAME/…."""
    words = url.partition("?")[0].split("/")
    try:
        return f"{words[words.index('namespaces') + 1]}/{words[words.index('pods') + 1]}"
    except (ValueError, IndexError):
        return ""
