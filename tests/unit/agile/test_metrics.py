"""What /metrics says, read by the library that defines the format."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from firstlight.agile.function import Counts
from firstlight.agile.functions.version import FunctionVersion
from firstlight.agile.http import metrics
from firstlight.agile.serving import Invocation, Load

OPEN = "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def made() -> metrics.Metrics:
    pool = Counts(name="network outbound", ready=3, low=1, high=4, hits=5, misses=1, made=6,
                  returned=0, failed=0, fill_rate=2.0, fill_seconds=0.5)  # fmt: skip
    runtime: Any = SimpleNamespace(
        observers=[], pools=lambda: [pool], running=lambda: [1, 2], cgroups=()
    )
    serving: Any = SimpleNamespace(
        observers=[], runtime=runtime, loads=lambda: [Load("f", 2, 1, 4), Load("f", 1, 0, 0)]
    )
    return metrics.Metrics(serving, list)


def outcome(name: str = "f", **more: Any) -> Invocation:
    return Invocation(
        version=FunctionVersion(name=name, kind="python"), request_id="r", arrived=0, **more
    )


def samples(made: metrics.Metrics, accept: str) -> dict[tuple[str, *tuple[str, ...]], float]:
    text, kind = asyncio.run(made.text(accept))
    read = read_openmetrics if "openmetrics" in kind else read_text
    families: Any = read(text.decode())
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.parametrize("accept", ["", OPEN])
def test_a_start_is_in_the_bucket_of_its_time(made: metrics.Metrics, accept: str) -> None:
    made.answered(outcome(cold=True, start_ns=3_000_000, duration_ns=2_000_000_000))
    made.answered(outcome(start_ns=50_000))
    made.answered(outcome(start_ns=60_000_000_000))
    made.answered(outcome(cause="throttled"))
    made.started(True, 700_000)
    result = samples(made, accept)
    start = "firstlight_function_start_seconds"
    assert result[f"{start}_bucket", "0.0025", "cold", "f", "python"] == 0
    assert result[f"{start}_bucket", "0.005", "cold", "f", "python"] == 1
    assert result[f"{start}_sum", "cold", "f", "python"] == pytest.approx(0.003)
    assert result[f"{start}_bucket", "5e-05", "f", "python", "warm"] == 1
    assert result[f"{start}_bucket", "10.0", "f", "python", "warm"] == 1
    assert result[f"{start}_count", "f", "python", "warm"] == 2
    assert result["firstlight_function_requests_total", "f"] == 4
    assert result["firstlight_function_busy_seconds_total", "f"] == 2
    assert result["firstlight_function_failures_total", "f", "throttled"] == 1
    assert result["firstlight_function_instances", "f", "idle"] == 3
    assert result["firstlight_function_waiting", "f"] == 4
    assert result["firstlight_pool_ready", "network outbound"] == 3
    assert result["firstlight_pool_hits_total", "network outbound"] == 5
    assert result["firstlight_node_start_seconds_bucket", "0.001", "warm"] == 1
    assert result[("firstlight_instances",)] == 2


def test_functions_beyond_the_most_are_counted_together(
    made: metrics.Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"f{number}" for number in range(metrics.FUNCTIONS_MAX + 5)]
    monkeypatch.setattr(made, "_names", lambda: names)
    for name in names:
        made.answered(outcome(name, start_ns=1, cause="exit"))
    result = samples(made, "")
    assert result["firstlight_function_requests_total", "other"] == 5
    assert len([1 for name, *_ in result if name == "firstlight_function_requests_total"]) == 1001
    del names[:-5]  # the rest are removed
    samples(made, "")
    made.answered(outcome(names[0], start_ns=1))
    result = samples(made, "")
    assert result["firstlight_function_requests_total", names[0]] == 1
    assert not [labels for _, *labels in result if "f0" in labels]
