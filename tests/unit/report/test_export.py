import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from firstlight.analysis import Analysis
from firstlight.errors import FirstlightError
from firstlight.report import export


def trace(run: Analysis, file: Path) -> list[dict[str, Any]]:
    export.perfetto(run, file)
    events: list[dict[str, Any]] = json.loads(file.read_text())["traceEvents"]
    return events


def slices(events: list[dict[str, Any]]) -> list[tuple[int, int, int, str, float, float]]:
    """Process, thread, depth, name, start and end of every slice; asserts that they nest."""
    open_slices: dict[tuple[int, int], list[tuple[str, float]]] = defaultdict(list)
    result = []
    for event in events:
        track = open_slices[event["pid"], event["tid"]]
        if event["ph"] == "B":
            assert not track or event["ts"] >= track[-1][1]
            track.append((event["name"], event["ts"]))
        elif event["ph"] == "E":
            name, start = track.pop()
            assert event["ts"] >= start
            result.append((event["pid"], event["tid"], len(track), name, start, event["ts"]))
    assert not any(open_slices.values())
    return result


def named(events: list[dict[str, Any]], kind: str) -> dict[tuple[int, int], str]:
    return {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in events
        if event["ph"] == "M" and event["name"] == kind
    }


def test_export_fills_each_instance_with_phases(container: Analysis, tmp_path: Path) -> None:
    events = trace(container, tmp_path / "trace.json")
    processes = named(events, "process_name")
    assert len(processes) == 2 * (1 + 10 + 50)
    assert "runtime runc, instances 50: instance 7" in " ".join(processes.values())
    result = slices(events)
    starts = {
        pid: (start, end) for pid, _, _, name, start, end in result if name == "first instruction"
    }
    broken = {event["pid"] for event in events if event["ph"] == "i"}
    assert {pid for pid, _ in processes} == starts.keys() | broken
    for process, (start, end) in starts.items():
        phases = sum(
            last - first
            for pid, _, depth, name, first, last in result
            if pid == process and depth == 0 and name != "first instruction"
        )
        assert phases == pytest.approx(end - start, abs=0.1)


def test_export_nests_causes_and_threads(container: Analysis, tmp_path: Path) -> None:
    events = trace(container, tmp_path / "trace.json")
    threads = {(event["pid"], event["tid"]) for event in events}
    assert len({thread for _, thread in threads}) == len(threads)
    assert any(
        name == "lock: pernet_ops_rwsem (copy_net_ns)" and depth == 1
        for _, _, depth, name, _, _ in slices(events)
    )


def test_steps_lie_within_their_start(network: Analysis, tmp_path: Path) -> None:
    events = trace(network, tmp_path / "trace.json")
    assert any(name == "move" and depth == 1 for _, _, depth, name, _, _ in slices(events))


def test_tables_hold_every_sample_span_and_row(container: Analysis, tmp_path: Path) -> None:
    export.parquet(container, tmp_path / "p")
    export.csv(container, tmp_path / "c")
    spans = sum(len(batch) for _, batch in container.run.span_batches())
    for read, ending, directory in ((pl.read_parquet, "parquet", "p"), (pl.read_csv, "csv", "c")):
        samples = read(tmp_path / directory / f"samples.{ending}")
        assert samples["latency"].to_list() == container.run.frame["latency"].to_list()
        assert (samples["ready"] - samples["intended"]).to_list() == samples["latency"].to_list()
        assert len(read(tmp_path / directory / f"spans.{ending}")) == spans
        breakdown = read(tmp_path / directory / f"breakdown.{ending}")
        assert breakdown["wall"].sum() == container.breakdown["wall"].sum()


def test_a_run_is_never_written_into(container: Analysis) -> None:
    with pytest.raises(FirstlightError, match="is a run"):
        export.csv(container, container.run.path)
