"""Watched starts as spans: their tree, their times, and the trace that they continue."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.support.otlp_receiver import PARENT, TRACE
from tests.support.watched_start import MS, start

from firstlight.report.live.traces import Traces, provider
from firstlight.report.live.watched_start import Stretch, WatchedStart


def spans_of(*starts: WatchedStart) -> list[Any]:
    provider, sent = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(sent))
    traces = Traces(provider)
    for each in starts:
        traces.add(each)
    return sorted(
        sent.get_finished_spans(), key=lambda span: (span.name[:6] != "start ", span.start_time)
    )


def test_the_stretches_of_a_start_are_below_it_and_fill_it() -> None:
    stretches = (Stretch("mount", "on CPU", 0, 10 * MS), Stretch("exec", "I/O", 10 * MS, 20 * MS))
    labels = {"id": "c0", "runtime": "runc", "pod": "shop-1", "image": "tiny:1"}
    whole, first, second = spans_of(start(stretches=stretches, labels=labels))
    assert whole.parent is None
    assert [part.parent.span_id for part in (first, second)] == [whole.context.span_id] * 2
    assert (first.name, first.attributes["firstlight.cause"]) == ("mount", "on CPU")
    assert (first.start_time, second.end_time) == (whole.start_time, whole.end_time)
    assert first.end_time == second.start_time
    assert whole.end_time - whole.start_time == 30 * MS
    assert whole.attributes["k8s.pod.name"] == "shop-1"
    assert whole.attributes["container.image.name"] == "tiny:1"
    assert whole.attributes["container.id"] == "c0"


def test_a_start_continues_the_trace_that_it_carries() -> None:
    labels = {"id": "c0", "runtime": "runc", "traceparent": f"00-{TRACE}-{PARENT}-01"}
    whole = spans_of(start(labels=labels))[0]
    assert f"{whole.context.trace_id:032x}" == TRACE
    assert f"{whole.parent.span_id:016x}" == PARENT


def test_nonsense_for_a_trace_begins_one_of_its_own() -> None:
    labels = {"id": "c0", "runtime": "runc", "traceparent": "00-\u20ac-"}
    assert spans_of(start(labels=labels))[0].parent is None


def test_a_failed_start_is_an_error() -> None:
    [span] = spans_of(start(latency=None))
    assert not span.status.is_ok
    assert span.status.description == "not executed"


def test_a_collector_that_takes_nothing_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    statuses = iter((404, 404, 200, 200))

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(next(statuses))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    said: list[str] = []
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        made = provider(f"{url}/", said.append)
        traces = Traces(made)
        for _ in range(4):
            traces.add(start())
            made.force_flush()
        made.shutdown()
        server.shutdown()
    first, again = said
    assert first.startswith(f"{url} takes no traces, so they are lost: ")
    assert "404" in first
    assert again == f"{url} takes traces again: 4 spans were lost"
    assert not caplog.records
