"""The metrics of watched starts, for Prometheus, as text or OpenMetrics.

A start is counted by runtime, CNI plugin and namespace. At most ``MOST_SERIES`` combinations and
``MOST_CAUSES`` causes are distinguished; later ones are counted as ``other``.
"""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

from firstlight.report.live.watched_start import WatchedStart

MOST_SERIES, MOST_CAUSES = 24, 40
OTHER = "other"
_LABELS = ("runtime", "cni", "namespace")
_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1, 2, 5, 10, 30)
_PART_SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)


class Metrics:
    """Histograms of the starts' time, whole, by phase and by cause."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each
        self._registry = CollectorRegistry()
        self._series: set[tuple[str, ...]] = set()
        self._causes: set[str] = set()
        self._seconds = Histogram(
            "firstlight_start_seconds", "Time from a start's first program to its own program.",
            _LABELS, buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._phases = Histogram(
            "firstlight_start_phase_seconds", "Time of a phase on a start's critical path.",
            (*_LABELS, "phase"), buckets=_PART_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._by_cause = Histogram(
            "firstlight_start_cause_seconds", "Time of a cause on a start's critical path.",
            (*_LABELS, "cause"), buckets=_PART_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._failed = Counter(
            "firstlight_start_failures", "Starts whose own program was never executed.",
            _LABELS, registry=self._registry,
        )  # fmt: skip
        self._lost = Counter(
            "firstlight_lost_events", "Events that the tracer lost.", registry=self._registry
        )

    def add(self, start: WatchedStart) -> None:
        """Count a start."""
        series = self._admit_series(
            start.labels["runtime"], start.labels.get("cni", ""), str(start.point["namespace"])
        )
        self._lost.inc(start.lost)
        if start.latency is None:
            self._failed.labels(*series).inc()
            return
        self._seconds.labels(*series).observe(start.latency / 1e9)
        for phase, length in start.phases.items():
            self._phases.labels(*series, phase).observe(length / 1e9)
        causes: dict[str, int] = {}
        for cause, length in start.causes.items():
            name = self._admit_cause(cause)
            causes[name] = causes.get(name, 0) + length
        for name, length in causes.items():
            self._by_cause.labels(*series, name).observe(length / 1e9)

    def text(self, accept: str) -> tuple[bytes, str]:
        """The metrics and their content type, in the format that ``accept`` asks for."""
        encode, kind = choose_encoder(accept)
        return encode(self._registry), kind

    def _admit_series(self, *series: str) -> tuple[str, ...]:
        if series not in self._series and len(self._series) >= MOST_SERIES:
            return (OTHER,) * len(series)
        self._series.add(series)
        return series

    def _admit_cause(self, cause: str) -> str:
        if cause not in self._causes and len(self._causes) >= MOST_CAUSES:
            return OTHER
        self._causes.add(cause)
        return cause
