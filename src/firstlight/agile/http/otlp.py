"""Spans for a collector, by OTLP over HTTP: https://opentelemetry.io/docs/specs/otlp/."""

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased


def provider(collector: str, service: str, share: float = 1.0) -> TracerProvider:
    """A maker of spans of ``service``, sent in batches to ``collector``: "http://HOST:4318".

    Of traces that begin here, ``share`` are sent. ``shutdown`` sends what is left.
    """
    made = TracerProvider(
        resource=Resource.create({"service.name": service}),
        sampler=ParentBased(TraceIdRatioBased(share)),
    )
    exporter = OTLPSpanExporter(endpoint=f"{collector.rstrip('/')}/v1/traces")
    made.add_span_processor(BatchSpanProcessor(exporter))
    return made
