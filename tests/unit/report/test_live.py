"""The live page's state and the metrics of watched starts."""

import json
import urllib.request
from itertools import pairwise
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.support.watched_start import MS, start

from firstlight.errors import Failed
from firstlight.report.live import board as boards
from firstlight.report.live import metrics as counting
from firstlight.report.live import server
from firstlight.report.live.board import Board
from firstlight.report.live.metrics import Metrics
from firstlight.report.live.watched_start import Stretch, _joined


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def state(board: Board) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(board.state())
    return decoded


def test_live_lists_latest_and_keeps_slowest() -> None:
    board = Board("here", Clock())
    for index in range(100):
        board.add(start(index, (1000 if index == 3 else 10 + index % 7) * MS))
    seen = state(board)
    assert seen["starts"] == 100
    assert [each["id"] for each in seen["latest"]] == [f"c{99 - n}" for n in range(boards.LATEST)]
    assert seen["slowest"][0]["id"] == "c3"
    assert len(seen["slowest"]) == boards.SLOWEST
    assert all(each["stretches"] for each in (*seen["latest"], *seen["slowest"]))
    assert sum(bool(each.stretches) for _, each in board._hour) < 50


def test_an_hour_is_shown_by_the_minute_and_then_forgotten() -> None:
    clock = Clock()
    board = Board("here", clock)
    board.add(start(0))
    board.add(start(1, None))
    clock.now += 60
    board.add(start(2, 90 * MS))
    board.add(start(3, 90 * MS, phases={}, causes={}, stretches=()))
    seen = state(board)
    assert [each["starts"] for each in seen["minutes"]] == [1, 1]
    assert seen["minutes"][1]["phases"] == {"mount": 30 * MS, "security": 60 * MS}
    assert seen["minutes"][1]["causes"] == {"on CPU": 45 * MS, "RCU": 45 * MS}
    assert (seen["failed"], seen["median"]) == (1, 90 * MS)
    assert set(seen["colours"]) >= {"mount", "security", "RCU"}
    clock.now += 3650
    assert state(board)["starts"] == 0
    assert state(board)["minutes"] == []


def test_many_phases_are_shown_as_few_and_their_sums_stay() -> None:
    board = Board("here", Clock())
    phases = {f"phase-{index}": index + 1 for index in range(30)}
    board.add(start(0, sum(phases.values()), phases=phases))
    [minute] = state(board)["minutes"]
    assert sum(minute["phases"].values()) == sum(phases.values())
    assert len(minute["phases"]) == 10


def test_the_waterfall_has_few_stretches_and_no_gap() -> None:
    path = [Stretch(f"phase-{(at // 10) % 3}", "on CPU", at * 10, 10) for at in range(1000)] + [
        Stretch("exec", "lock: x", 10_000, 90_000)
    ]
    joined = _joined(path, 50)
    assert len(joined) <= 101
    assert sum(each.length for each in joined) == 100_000
    for before, after in pairwise(joined):
        assert before.at + before.length == after.at
    assert joined[-1].cause == "lock: x"


def families(metrics: Metrics) -> dict[str, Any]:
    text, _ = metrics.text("")
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def test_metrics_are_by_runtime_cni_and_namespace() -> None:
    metrics = Metrics()
    metrics.add(start(0))
    metrics.add(start(1, None))
    metrics.add(start(2, lost=5))
    result = families(metrics)
    [count] = [
        sample for sample in result["firstlight_start_seconds"].samples
        if sample.name.endswith("_count")
    ]  # fmt: skip
    assert count.labels == {"runtime": "runc", "cni": "bridge", "namespace": "web"}
    assert count.value == 2
    sums = {
        sample.labels["phase"]: sample.value
        for sample in result["firstlight_start_phase_seconds"].samples
        if sample.name.endswith("_sum")
    }
    assert sums == pytest.approx({"mount": 0.02, "security": 0.04})
    [failed] = result["firstlight_start_failures"].samples
    assert failed.value == 1
    [lost] = result["firstlight_lost_events"].samples
    assert lost.value == 5


def test_openmetrics_is_given_to_those_who_ask_for_it() -> None:
    metrics = Metrics()
    metrics.add(start())
    text, kind = metrics.text("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")


def test_the_number_of_series_is_bounded() -> None:
    metrics = Metrics()
    for index in range(200):
        point = {"runtime": "runc", "namespace": f"n{index}", "instances": 1}
        metrics.add(start(index, causes={f"lock: {index}": 30 * MS}, point=point))
    result = families(metrics)
    counts = [
        sample for sample in result["firstlight_start_seconds"].samples
        if sample.name.endswith("_count")
    ]  # fmt: skip
    assert len(counts) == counting.MOST_SERIES + 1
    assert sum(sample.value for sample in counts) == 200
    causes = {sample.labels["cause"] for sample in result["firstlight_start_cause_seconds"].samples}
    assert len(causes) == counting.MOST_CAUSES + 1
    assert counting.OTHER in causes


@pytest.mark.parametrize("address", ["x", "127.0.0.1:99999", "example.org:80", "203.0.113.7:80"])
def test_an_address_that_cannot_be_served_is_named(address: str) -> None:
    with (
        pytest.raises(Failed, match=f"cannot listen at {address}"),
        server.serving(address, []),
    ):
        pass


def test_an_open_page_is_let_go_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    board = Board("here")
    with server.serving("0", server.page(board), board.end) as url:
        stream = urllib.request.urlopen(f"{url}events", timeout=60)
        assert stream.readline().startswith(b"data: ")
    with stream:
        assert stream.read() == b"\n"
    assert caplog.messages == []
