"""Requests as an OTLP collector sees them, by a receiver that reads what the exporter sends."""

from pathlib import Path
from typing import Any

import httpx
import msgspec
from tests.support.agile_host import on_host
from tests.support.lambda_host import ENDPOINT, configuration, functions, zipped
from tests.support.otlp_receiver import PARENT, TRACE, receiver

from firstlight.agile.config import Telemetry
from firstlight.agile.functions.records import Settings, ZipSource

HANDLER = """
import os
def main(event, context):
    return os.environ["_X_AMZN_TRACE_ID"]
"""


def test_a_cold_start_is_a_trace_with_its_steps(tmp_path: Path) -> None:
    async def main() -> None:
        with receiver() as (address, spans):
            config = msgspec.structs.replace(
                configuration(tmp_path), telemetry=Telemetry(otlp=address)
            )
            async with functions(config) as catalogue:
                await catalogue.add(
                    "seen", ZipSource(data=zipped(app=HANDLER)),
                    Settings(handler="app.main", kind="python", timeout=30.0),
                )  # fmt: skip
                async with httpx.AsyncClient(base_url=ENDPOINT, timeout=60) as client:
                    for _ in range(2):
                        answer = await client.post(
                            "/2015-03-31/functions/seen/invocations", content=b"{}",
                            headers={"traceparent": f"00-{TRACE}-{PARENT}-01"},
                        )  # fmt: skip
            check(spans, answer.json())

    on_host(main)


def check(spans: list[Any], seen: str) -> None:
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    requests = [span for span in spans if span.name == "POST"]
    assert [span.parent_span_id.hex() for span in requests] == [PARENT, PARENT]
    cold, warm = [span for span in spans if span.name == "invoke seen"]
    attributes = {attribute.key: attribute.value for attribute in cold.attributes}
    assert attributes["faas.coldstart"].bool_value
    assert attributes["faas.init_duration"].double_value > 0
    assert attributes["faas.name"].string_value == "seen"
    assert cold.parent_span_id == requests[0].span_id
    [start] = [span for span in spans if span.name == "cold start"]
    steps = [span for span in spans if span.parent_span_id == start.span_id]
    assert steps[-1].name == "initialize"
    assert len(steps) >= 2
    for step in steps:
        assert step.start_time_unix_nano <= step.end_time_unix_nano
    assert {span.name for span in spans if span.parent_span_id == warm.span_id} == {
        "dispatch", "handler",
    }  # fmt: skip
    assert seen == f"Root=1-{TRACE[:8]}-{TRACE[8:]};Parent={requests[1].span_id.hex()};Sampled=1"
