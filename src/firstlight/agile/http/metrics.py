"""``/metrics`` for Prometheus: what a node has started and answered, and what it has ready.

Only the label for functions would be unbounded: after ``FUNCTIONS_MAX`` names, further ones become
``other``, until a scrape finds that functions were removed. Metrics by function are written here,
because prometheus-client takes 0.2 s for 1,000 of them; the library writes the rest.
"""

import asyncio
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from firstlight.agile.function import Counts
from firstlight.agile.http import access
from firstlight.agile.runtime import Runtime
from firstlight.agile.serving import Invocation, Serving

FUNCTIONS_MAX = 1000
OTHER = "other"
SECONDS = (50e-6, 100e-6, 250e-6, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0)
_PART = 100
_STARTS = "firstlight_function_start_seconds"
_HELP = (
    f"# HELP {_STARTS} Time until a handler has its request, with the start of its instance where "
    f"it is cold.\n# TYPE {_STARTS} histogram\n"
)


class _Histogram:
    """A series' counts by bucket, and the beginnings of its lines."""

    def __init__(self, labels: str) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        self.sum = 0.0
        bounds = [*(f"{bound:g}" if bound < 1 else f"{bound:.1f}" for bound in SECONDS), "+Inf"]
        self._heads = [f'{_STARTS}_bucket{{{labels},le="{bound}"}} ' for bound in bounds]
        self._heads += [f"{_STARTS}_count{{{labels}}} ", f"{_STARTS}_sum{{{labels}}} "]
        self._text = ""

    def add(self, seconds: float) -> None:
        """Count a value."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.sum += seconds
        self._text = ""

    @property
    def text(self) -> str:
        """Its lines, cached until the next value."""
        if not self._text:
            totals = list(accumulate(self.counts))
            values = [*totals, totals[-1], self.sum]
            lines = zip(self._heads, values, strict=True)
            self._text = "".join([f"{head}{value}\n" for head, value in lines])
        return self._text


class Metrics:
    """Counts a runtime's starts and its functions' answers. ``names`` are those registered."""

    def __init__(self, serving: Serving, names: Callable[[], Iterable[str]]) -> None:
        self._serving, self._names = serving, names
        self._starts: dict[tuple[str, str, str], _Histogram] = {}
        self._functions: set[str] = set()
        self.requests: Counter[str] = Counter()
        self.busy_seconds: defaultdict[str, float] = defaultdict(float)
        self.failures: Counter[tuple[str, str]] = Counter()
        self.node_starts = {warm: _Histogram("") for warm in (False, True)}
        self._registry = CollectorRegistry()
        self._registry.register(_Node(serving, self))
        ProcessCollector(namespace="firstlight", registry=self._registry)
        serving.observers.append(self.answered)
        serving.runtime.observers.append(self.started)

    def function(self, name: str) -> str:
        """A function's label."""
        if name not in self._functions:
            if len(self._functions) >= FUNCTIONS_MAX:
                return OTHER
            self._functions.add(name)
        return name

    def answered(self, outcome: Invocation) -> None:
        """Count a request."""
        name = self.function(outcome.version.name)
        self.requests[name] += 1
        if outcome.cause:
            self.failures[name, outcome.cause] += 1
        if outcome.start_ns is not None:
            warmth = "cold" if outcome.cold else "warm"
            key = name, outcome.version.kind, warmth
            histogram = self._starts.get(key)
            if histogram is None:
                labels = f'function="{name}",kind="{outcome.version.kind}",warmth="{warmth}"'
                histogram = self._starts[key] = _Histogram(labels)
            histogram.add(outcome.start_ns / 1e9)
            self.busy_seconds[name] += outcome.duration_ns / 1e9

    def started(self, warm: bool, nanoseconds: int) -> None:
        """Count an instance's start."""
        self.node_starts[warm].add(nanoseconds / 1e9)

    async def text(self, accept: str) -> tuple[bytes, str]:
        """All metrics, and their content type."""
        if len(self._functions) >= FUNCTIONS_MAX:
            self._forget(self._functions.difference(self._names()))
        encode, content_type = choose_encoder(accept)
        rest: bytes = encode(self._registry)
        parts = [rest.removesuffix(b"# EOF\n")]
        if self._starts:
            parts.append(_HELP.encode())
        histograms = list(self._starts.values())
        for at in range(0, len(histograms), _PART):
            parts.append(
                "".join([histogram.text for histogram in histograms[at : at + _PART]]).encode()
            )
            await asyncio.sleep(0)  # requests go on meanwhile
        is_open = rest.endswith(b"# EOF\n")
        kept, waiting = self._loads()
        parts += [
            text.encode() for text in (
                _gauge("instances", "Instances that answer or are kept.", kept),
                _gauge("waiting", "Requests that wait for an instance.", waiting),
                _counter("requests", "Requests, failed ones too.", self.requests, is_open),
                _counter("busy_seconds", "Time in handlers.", self.busy_seconds, is_open),
                _counter("failures", "Requests that failed.", self.failures, is_open),
            )
        ]  # fmt: skip
        if is_open:
            parts.append(b"# EOF\n")
        return b"".join(parts), content_type

    def _forget(self, names: set[str]) -> None:
        """Drop the series of functions that were removed, so that others have theirs."""
        self._functions -= names
        for name in names:
            self.requests.pop(name, None)
            self.busy_seconds.pop(name, None)
        self.failures = Counter({k: v for k, v in self.failures.items() if k[0] not in names})
        self._starts = {k: v for k, v in self._starts.items() if k[0] not in names}

    def _loads(self) -> tuple[Mapping[tuple[str, str], int], Mapping[str, int]]:
        """Each function's instances by state, and its requests that wait for one."""
        kept: Counter[tuple[str, str]] = Counter()
        waiting: Counter[str] = Counter()
        for load in self._serving.loads():
            name = self.function(load.name)
            kept[name, "idle"] += load.idle
            kept[name, "busy"] += load.busy
            waiting[name] += load.waiting
        return kept, waiting


class _Node(Collector):
    """Collects values that are read at scrape time."""

    def __init__(self, serving: Serving, metrics: Metrics) -> None:
        self._runtime, self._metrics = serving.runtime, metrics

    def collect(self) -> Iterable[Metric]:
        """Each family with a sample for each of its label values."""
        yield from _of_pools(self._runtime.pools())
        yield self._of_starts()
        running = GaugeMetricFamily("firstlight_instances", "Instances of the node that run.")
        running.add_metric([], len(self._runtime.running()))
        yield running
        memory = GaugeMetricFamily("firstlight_memory_bytes", "Memory of all instances.")
        if (used := _memory(self._runtime)) is not None:
            memory.add_metric([], used)
        yield memory

    def _of_starts(self) -> Metric:
        family = HistogramMetricFamily(
            "firstlight_node_start_seconds", "From a request to execve, of any instance.",
            labels=["warmth"],
        )  # fmt: skip
        for warm, starts in self._metrics.node_starts.items():
            bounds = [*(str(bound) for bound in SECONDS), "+Inf"]
            buckets = list(zip(bounds, map(float, accumulate(starts.counts)), strict=True))
            family.add_metric(["warm" if warm else "cold"], buckets, starts.sum)
        return family


def routes(metrics: Metrics) -> list[BaseRoute]:
    """The route of ``/metrics``."""

    async def show(request: Request) -> Response:
        try:
            access.check(request.scope, "read", "GetMetrics", "*")
        except access.Refused as error:
            return Response(str(error), 403)
        text, content_type = await metrics.text(request.headers.get("accept", ""))
        return Response(text, media_type=content_type)

    return [Route("/metrics", show, methods=["GET"])]


def _counter(what: str, text: str, values: Mapping[Any, float], is_open: bool) -> str:
    """A counter by function, or by function and cause; OpenMetrics names its family differently."""
    name = f"firstlight_function_{what}"
    head = _head(name if is_open else f"{name}_total", text, "counter")
    return head + _samples(f"{name}_total", "cause", values)


def _gauge(what: str, text: str, values: Mapping[Any, float]) -> str:
    """A gauge by function, or by function and state."""
    name = f"firstlight_function_{what}"
    return _head(name, text, "gauge") + _samples(name, "state", values)


def _head(family: str, text: str, kind: str) -> str:
    return f"# HELP {family} {text}\n# TYPE {family} {kind}\n"


def _samples(name: str, label: str, values: Mapping[Any, float]) -> str:
    """A line for each value. prometheus_client takes several times as long."""
    lines = []
    for key, value in values.items():
        function, other = key if isinstance(key, tuple) else (key, "")
        also = f',{label}="{other}"' if other else ""
        lines.append(f'{name}{{function="{function}"{also}}} {value}\n')
    return "".join(lines)


def _of_pools(pools: list[Counts]) -> Iterator[Metric]:
    gauges = {
        "ready": "Parts that are ready.", "low": "The mark below which it is filled.",
        "high": "The mark to which it is filled.",
    }  # fmt: skip
    counters = {
        "hits": "Requests that found one ready.", "misses": "Requests that did not.",
        "made": "Parts made.", "returned": "Used parts that are as new.",
        "failed": "Parts that could not be made.", "fill_seconds": "Time spent filling.",
    }  # fmt: skip
    merged: dict[str, list[Counts]] = {}
    for counts in pools:  # a zygote's pools are named after its handler
        name = counts.name.split(" of ")[0] if " of " in counts.name else counts.name
        merged.setdefault("fork" if name.startswith("fork ") else name, []).append(counts)
    for kind, families in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
        for field, text in families.items():
            family = kind(f"firstlight_pool_{field}", text, labels=["pool"])
            for name, group in merged.items():
                family.add_metric([name], sum(getattr(counts, field) for counts in group))
            yield family


def _memory(runtime: Runtime) -> int | None:
    """The memory charged to the runtime's instances, by the memory controller."""
    for top in runtime.cgroups:
        for name in ("memory.current", "memory.usage_in_bytes"):
            with suppress(OSError):
                return int((top / name).read_text())
    return None
