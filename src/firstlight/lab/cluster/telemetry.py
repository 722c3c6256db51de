"""Receives the components' telemetry by OTLP, and reads what was received.

    python -m firstlight.lab.cluster.telemetry FILE ADDRESS

A line of FILE is one span, as Span. Format: https://opentelemetry.io/docs/specs/otlp/.
"""

import sys
import threading
from concurrent import futures
from pathlib import Path
from typing import Any

import msgspec


class Span(msgspec.Struct, frozen=True):
    """One span of a component; ``start``, ``end`` and the times of its ``events`` in ns of
    CLOCK_REALTIME, ids in hex."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    start: int
    end: int
    attributes: dict[str, Any] = {}
    events: dict[str, int] = {}


class Reader:
    """Reads the spans of a growing file, each once."""

    def __init__(self, file: Path) -> None:
        self._file, self._offset = file, 0
        self._decoder = msgspec.json.Decoder(Span)

    def new(self) -> list[Span]:
        """The spans since the last call."""
        if not self._file.exists():
            return []
        with self._file.open("rb") as spans:
            spans.seek(self._offset)
            whole = spans.read()
        whole = whole[: whole.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [self._decoder.decode(line) for line in whole.splitlines()]


def receive(file: Path, address: str) -> None:
    """Receive on ``address`` (host:port) and write to the file, until the process ends."""
    import grpc
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as services

    out, lock = file.open("ab", buffering=0), threading.Lock()
    encode = msgspec.json.Encoder().encode

    class Receiver(services.TraceServiceServicer):
        def Export(self, request: Any, context: object) -> Any:  # noqa: ANN401, N802
            del context
            lines = b"".join(encode(span) + b"\n" for span in _spans(request))
            with lock:
                out.write(lines)
            return messages.ExportTraceServiceResponse()

    server = grpc.server(futures.ThreadPoolExecutor(2))
    services.add_TraceServiceServicer_to_server(Receiver(), server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(address)
    server.start()
    server.wait_for_termination()


def _spans(request: Any) -> list[Span]:  # noqa: ANN401 - generated
    return [
        Span(
            service=str(_attributes(resource.resource).get("service.name", "")),
            name=span.name,
            trace=span.trace_id.hex(),
            id=span.span_id.hex(),
            parent=span.parent_span_id.hex(),
            start=span.start_time_unix_nano,
            end=span.end_time_unix_nano,
            attributes=_attributes(span),
            events={event.name: event.time_unix_nano for event in span.events},
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _attributes(of: Any) -> dict[str, Any]:  # noqa: ANN401 - generated
    return {each.key: _value(each.value) for each in of.attributes}


def _value(value: Any) -> Any:  # noqa: ANN401 - generated
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind) if kind in ("string_value", "bool_value", "int_value",
                                            "double_value") else None  # fmt: skip


if __name__ == "__main__":
    receive(Path(sys.argv[1]), sys.argv[2])
