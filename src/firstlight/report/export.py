"""Exports runs for other tools: Perfetto's trace viewer, CSV and Parquet."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import polars as pl

from firstlight.analysis import Analysis
from firstlight.analysis.figures import median_sample
from firstlight.errors import FirstlightError
from firstlight.model import Sample
from firstlight.store import SPAN_SCHEMA

Event = dict[str, Any]


def perfetto(analysis: Analysis, file: Path) -> None:
    """Write a trace for ui.perfetto.dev, in the Chrome trace-event format.

    Each point is represented by the traced batch with its median start (or the first untraced one):
    an instance is a process, its own processes are threads. Phases are slices, and causes are
    slices within them. Times are of CLOCK_MONOTONIC.
    """
    numbers = count(1)
    events = [
        event for sample in _chosen(analysis) for event in _of_sample(analysis, sample, numbers)
    ]
    trace = {
        "displayTimeUnit": "ms",
        "otherData": {"run": analysis.header.run, "experiment": analysis.header.experiment},
        "traceEvents": events,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(trace, separators=(",", ":")), encoding="utf-8")


def csv(analysis: Analysis, directory: Path) -> None:
    """Write samples.csv, spans.csv and breakdown.csv."""
    for name, frame in _tables(analysis):
        frame.write_csv(_file(directory, f"{name}.csv"))


def parquet(analysis: Analysis, directory: Path) -> None:
    """Write samples.parquet, spans.parquet and breakdown.parquet."""
    for name, frame in _tables(analysis):
        frame.write_parquet(_file(directory, f"{name}.parquet"))


def _tables(analysis: Analysis) -> Iterator[tuple[str, pl.DataFrame]]:
    yield (
        "samples",
        analysis.run.frame.with_columns(
            pl.Series("error", [sample.error for sample in analysis.run.samples], dtype=pl.String),
            pl.Series(
                "intended",
                [sample.stamps.intended for sample in analysis.run.samples],
                dtype=pl.Int64,
            ),
            pl.Series(
                "spawned",
                [sample.stamps.spawned for sample in analysis.run.samples],
                dtype=pl.Int64,
            ),
            pl.Series(
                "ready", [sample.stamps.ready for sample in analysis.run.samples], dtype=pl.Int64
            ),
        ),
    )
    batches = [spans for _, spans in analysis.run.span_batches()]
    yield "spans", pl.concat(batches) if batches else pl.DataFrame(schema=SPAN_SCHEMA)
    yield "breakdown", analysis.breakdown


def _file(directory: Path, name: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / "header.json").exists():
        raise FirstlightError(f"{directory} is a run", "choose another directory with --out")
    return directory / name


def _chosen(analysis: Analysis) -> Iterator[Sample]:
    for point in analysis.header.points:
        at_point = [sample for sample in analysis.run.samples if sample.point == point]
        ready = [sample for sample in at_point if sample.latency is not None]
        shown = [sample for sample in ready if sample.traced] or ready
        if shown:
            batch = median_sample(shown).batch
            yield from (sample for sample in at_point if sample.batch == batch)


def _of_sample(analysis: Analysis, sample: Sample, numbers: Iterator[int]) -> Iterator[Event]:
    process = next(numbers)
    setting = ", ".join(f"{axis} {value}" for axis, value in sample.point.items())
    name = f"{setting}: instance {sample.instance} of batch {sample.batch}"
    yield _named("process_name", process, process, {"name": name})
    yield _named("process_sort_index", process, process, {"sort_index": process})
    yield _named("thread_name", process, process, {"name": "start"})
    start = _Track(process, process)
    if sample.stamps.ready is None:
        words = f"{sample.ending}: {sample.error}"
        yield start.event("i", sample.stamps.spawned, name=words, cat="start", s="p")
        return
    yield start.event("B", sample.stamps.intended, name=str(analysis.header.end_point), cat="start",
                      args={"latency ns": sample.latency, "traced": sample.traced})  # fmt: skip
    for step in sample.steps:
        yield start.event("B", step.start, name=step.name, cat="step")
        yield start.event("E", step.end)
    yield start.event("E", sample.stamps.ready)
    if sample.traced:
        yield from _of_timeline(analysis, sample, process, numbers)


def _of_timeline(
    analysis: Analysis, sample: Sample, process: int, numbers: Iterator[int]
) -> Iterator[Event]:
    names = analysis.programs(sample)
    tracks: dict[int, _Track] = {}
    rows = analysis.timeline(sample).sort("start", "end").iter_rows(named=True)
    for phase in _runs(rows, "pid", "phase"):
        pid, last = phase[0]["pid"], phase[-1]
        if pid not in tracks:
            tracks[pid] = _Track(process, next(numbers))
            name = {"name": f"{names.get(pid, 'process')} {pid}"}
            yield _named("thread_name", process, tracks[pid].thread, name)
        track = tracks[pid]
        yield track.event("B", phase[0]["start"], name=phase[0]["phase"], cat="phase")
        for cause in _runs(phase, "cause", "shade"):
            where = {"kernel": "in system calls", "around": "around system calls"}
            shade = {"shade": where[cause[0]["shade"]]}
            yield track.event(
                "B", cause[0]["start"], name=cause[0]["cause"], cat="cause", args=shade
            )
            yield track.event("E", cause[-1]["end"])
        yield track.event("E", last["end"])


def _runs(rows: Iterable[dict[str, Any]], *keys: str) -> Iterator[list[dict[str, Any]]]:
    """Groups of consecutive rows with equal ``keys`` and without gaps."""
    alike: list[dict[str, Any]] = []
    for row in rows:
        if alike and not (
            row["start"] == alike[-1]["end"] and all(row[key] == alike[-1][key] for key in keys)
        ):
            yield alike
            alike = []
        alike.append(row)
    if alike:
        yield alike


def _named(kind: str, process: int, thread: int, arguments: dict[str, Any]) -> Event:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": arguments}


@dataclass(frozen=True)
class _Track:
    """A row of the viewer. Slices are begin and end events, so equal stamps stay equal."""

    process: int
    thread: int

    def event(self, kind: str, stamp: int, **fields: Any) -> Event:  # noqa: ANN401
        """An event at ``stamp`` ns; the format's unit is the microsecond."""
        return {
            "ph": kind, "ts": stamp / 1e3, "pid": self.process, "tid": self.thread, **fields
        }  # fmt: skip
