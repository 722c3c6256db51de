"""Watched starts as traces: a span for each start, and below it one for each stretch of its path.

A start whose programs or bundle carry a ``traceparent`` continues that trace, below its requester's
span. Names are those of OpenTelemetry's semantic conventions.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import Status, StatusCode

from firstlight.report.live.watched_start import WatchedStart

_LIBRARY = "opentelemetry.exporter.otlp.proto.http"
_LONGEST = 200  # of a reason, in characters

_ATTRIBUTES = {
    "pod": "k8s.pod.name",
    "namespace": "k8s.namespace.name",
    "container": "k8s.container.name",
    "image": "container.image.name",
    "runtime": "container.runtime.name",
    "engine": "firstlight.engine",
    "cni": "firstlight.cni",
}


def provider(collector: str, say: Callable[[str], None]) -> TracerProvider:
    """Sends spans in batches by OTLP to ``collector``, such as "http://HOST:4318".

    ``shutdown`` sends the rest. It says when the collector takes none, and when it does again.
    """
    made = TracerProvider(resource=Resource.create({"service.name": "firstlight-watch"}))
    made.add_span_processor(BatchSpanProcessor(_Exporter(collector, say)))
    return made


class _Exporter(OTLPSpanExporter):
    """Says once that a collector takes no spans: the library does, at length, at each try."""

    def __init__(self, collector: str, say: Callable[[str], None]) -> None:
        self._collector, self._say, self._lost = collector.rstrip("/"), say, 0
        super().__init__(endpoint=f"{self._collector}/v1/traces")
        self._words = _FirstWords()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans."""
        with self._words.of(logging.getLogger(_LIBRARY)):
            result = super().export(spans)
        if result is SpanExportResult.FAILURE:
            if not self._lost:
                self._say(
                    f"{self._collector} takes no traces, so they are lost: {self._words.text}"
                )
            self._lost += len(spans)
        elif self._lost:
            self._say(f"{self._collector} takes traces again: {self._lost} spans were lost")
            self._lost = 0
        return result


class _FirstWords(logging.Handler):
    """Takes what a logger says, and keeps the beginning of the first message."""

    text = ""

    @contextmanager
    def of(self, logger: logging.Logger) -> Iterator[None]:
        """Take what this logger says meanwhile, and pass none of it on."""
        self.text, logger.propagate = "", False
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)
            logger.propagate = True

    def emit(self, record: logging.LogRecord) -> None:
        """Take a message."""
        self.text = self.text or record.getMessage()[:_LONGEST]


class Traces:
    """Makes the spans of starts."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("firstlight")

    def add(self, start: WatchedStart) -> None:
        """Send a start that has ended."""
        clock = time.time_ns() - time.monotonic_ns()
        began = start.began + clock
        attributes: dict[str, str | int] = {
            name: start.labels[label]
            for label, name in _ATTRIBUTES.items()
            if label in start.labels
        }
        attributes["container.id"] = start.id
        if start.lost:
            attributes["firstlight.lost_events"] = start.lost
        parent = propagate.extract({"traceparent": start.labels.get("traceparent", "")})
        span = self._tracer.start_span(
            f"start {start.name}", parent, attributes=attributes, start_time=began
        )
        below = trace.set_span_in_context(span)
        for stretch in start.stretches:
            part = self._tracer.start_span(
                stretch.phase, below, attributes={"firstlight.cause": stretch.cause},
                start_time=began + stretch.at,
            )  # fmt: skip
            part.end(began + stretch.at + stretch.length)
        if start.error:
            span.set_status(Status(StatusCode.ERROR, start.error))
        span.end(began + start.latency if start.latency is not None else time.time_ns())
