"""Traces of requests, sent to a collector by OTLP over HTTP.

A request's span continues the trace of its ``traceparent``. Its children are the start, with a span
for each step of a cold one, and the handler. The function gets the context of the request's span:
over HTTP as ``traceparent``, with an event as X-Ray's header. Names are those of OpenTelemetry's
semantic conventions for functions as a service.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import context, propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Status, StatusCode
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from firstlight.agile.config import Telemetry
from firstlight.agile.serving import Invocation, Serving

_UNTRACED = ("/metrics",)


class Tracing:
    """Traces requests over HTTP."""

    def __init__(self, config: Telemetry, serving: Serving) -> None:
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": config.service}),
            sampler=ParentBased(TraceIdRatioBased(config.share)),
        )
        exporter = OTLPSpanExporter(endpoint=f"{config.otlp.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("firstlight")
        serving.observers.append(self._add_spans)

    def close(self) -> None:
        """Send the remaining spans; waits for the collector."""
        self._provider.shutdown()

    def traced(self, application: ASGIApp) -> ASGIApp:
        """The application, with a span for each request."""

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] in _UNTRACED:
                await application(scope, receive, send)
                return
            with self._span(scope) as span:

                async def noted(message: Message) -> None:
                    if message["type"] == "http.response.start":
                        span.set_attribute("http.response.status_code", message["status"])
                        if message["status"] >= 500:
                            span.set_status(Status(StatusCode.ERROR))
                    await send(message)

                await application(scope, receive, noted)

        return serve

    @contextmanager
    def _span(self, scope: Scope) -> Iterator[trace.Span]:
        headers = {name.decode("latin-1"): value.decode("latin-1")
                   for name, value in scope["headers"]}  # fmt: skip
        span = self._tracer.start_span(
            scope["method"], propagate.extract(headers), SpanKind.SERVER,
            {"http.request.method": scope["method"], "url.path": scope["path"]},
        )  # fmt: skip
        current = trace.set_span_in_context(span)
        token = context.attach(current)
        carrier: dict[str, str] = {}
        propagate.inject(carrier, current)
        own = {name.encode(): value.encode() for name, value in carrier.items()}
        rest = [(name, value) for name, value in scope["headers"] if name not in own]
        scope["headers"] = [*rest, *own.items()]
        try:
            yield span
        finally:
            context.detach(token)
            span.end()

    def _add_spans(self, outcome: Invocation) -> None:
        """Add the spans of a completed request, as children of the current span."""
        version = outcome.version
        attributes: dict[str, Any] = {
            "faas.name": version.name, "faas.version": version.version, "faas.trigger": "http",
            "faas.coldstart": outcome.cold, "faas.max_memory": version.memory,
            "faas.invocation_id": outcome.request_id, "cloud.resource_id": version.arn,
        }  # fmt: skip
        start, whole = outcome.start_ns or 0, (outcome.start_ns or 0) + outcome.duration_ns
        if outcome.cold:
            attributes["faas.init_duration"] = start / 1e9
        span = self._tracer.start_span(
            f"invoke {version.name}", attributes=attributes, start_time=outcome.arrived
        )
        if outcome.cause:
            span.set_attribute("error.type", outcome.cause)
            span.set_status(Status(StatusCode.ERROR, outcome.cause))
        below = trace.set_span_in_context(span)
        if outcome.start_ns is not None:
            begun = self._tracer.start_span(
                "cold start" if outcome.cold else "dispatch", below, start_time=outcome.arrived
            )
            clock = time.time_ns() - time.monotonic_ns()
            steps = trace.set_span_in_context(begun)
            for step in outcome.steps:
                child = self._tracer.start_span(step.name, steps, start_time=step.began + clock)
                child.end(step.ended + clock)
            begun.end(outcome.arrived + start)
            handler = self._tracer.start_span("handler", below, start_time=outcome.arrived + start)
            handler.end(outcome.arrived + whole)
        span.end(outcome.arrived + whole)
