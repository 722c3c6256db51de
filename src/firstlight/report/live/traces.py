"""Watched starts as traces: a span for each start, and below it one for each stretch of its path.

A start whose programs or bundle carry a ``traceparent`` continues that trace, below its requester's
span. Names are those of OpenTelemetry's semantic conventions.
"""

import time

from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Status, StatusCode

from firstlight.report.live.watched_start import WatchedStart

_ATTRIBUTES = {
    "pod": "k8s.pod.name",
    "namespace": "k8s.namespace.name",
    "container": "k8s.container.name",
    "image": "container.image.name",
    "runtime": "container.runtime.name",
    "engine": "firstlight.engine",
    "cni": "firstlight.cni",
}


def provider(collector: str) -> TracerProvider:
    """Sends spans in batches by OTLP to ``collector``, such as "http://HOST:4318".

    ``shutdown`` sends the rest.
    """
    made = TracerProvider(resource=Resource.create({"service.name": "firstlight-watch"}))
    exporter = OTLPSpanExporter(endpoint=f"{collector.rstrip('/')}/v1/traces")
    made.add_span_processor(BatchSpanProcessor(exporter))
    return made


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
