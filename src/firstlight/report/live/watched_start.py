"""A watched start, computed once for the table, the page and the metrics."""

import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import polars as pl
from msgspec import Struct

from firstlight.analysis import breakdown
from firstlight.model import EndPoint, Point, Sample

_FINEST = 200
"""A stretch of the waterfall is at least this fraction of the start; shorter ones join."""
_NAMES = ("namespace", "pod", "container")


class Stretch(Struct, frozen=True):
    """A part of the critical path: ``at`` and ``length`` in ns from the start's beginning."""

    phase: str
    cause: str
    at: int
    length: int


class WatchedStart(Struct, frozen=True):
    """A watched start, which ``began`` at these ns of CLOCK_MONOTONIC, at ``time`` of the calendar.

    ``phases`` and ``causes`` are ns of the critical path, and sum to ``latency``; they are empty if
    the start failed, or was not traced.
    """

    id: str
    time: str
    name: str
    labels: dict[str, str]
    point: Point
    began: int
    latency: int | None
    lost: int
    error: str | None
    phases: dict[str, int] = {}
    causes: dict[str, int] = {}
    stretches: tuple[Stretch, ...] = ()


def watched_start(sample: Sample, spans: pl.DataFrame) -> WatchedStart:
    """The start of a sample, whose spans these are."""
    labels = sample.labels
    name = "/".join(labels[key] for key in _NAMES if labels.get(key)) or labels["id"][:40]
    path: list[Stretch] = []
    if sample.latency and sample.traced:
        rows = breakdown.timelines_of(spans, [sample], EndPoint.FIRST_INSTRUCTION)[sample.index]
        began = sample.stamps.intended
        path = [
            Stretch(phase, cause, start - began, end - start)
            for start, end, phase, cause in rows.select("start", "end", "phase", "cause").rows()
            if end > start
        ]
    ago = timedelta(microseconds=(time.monotonic_ns() - sample.stamps.intended) / 1000)
    return WatchedStart(
        id=labels["id"],
        time=(datetime.now(UTC) - ago).isoformat(timespec="seconds"),
        name=name,
        labels=labels,
        point=sample.point,
        began=sample.stamps.intended,
        latency=sample.latency,
        lost=sample.lost,
        error=sample.error,
        phases=_sums((each.phase, each.length) for each in path),
        causes=_sums((each.cause, each.length) for each in path),
        stretches=tuple(_joined(path, (sample.latency or 0) // _FINEST)),
    )


def _sums(parts: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The sum of each name's parts, the largest first."""
    sums: dict[str, int] = {}
    for name, length in parts:
        sums[name] = sums.get(name, 0) + length
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def _joined(path: Iterable[Stretch], shortest: int) -> list[Stretch]:
    """The path with stretches of one phase joined, and those shorter than a pixel in their
    predecessor. Each has the cause of its longest part.
    """
    joined: list[Stretch] = []
    longest = 0
    for each in path:
        last = joined[-1] if joined else None
        if last and (each.phase == last.phase or each.length < shortest):
            cause = each.cause if each.length > longest else last.cause
            joined[-1] = Stretch(last.phase, cause, last.at, last.length + each.length)
            longest = max(longest, each.length)
        else:
            joined.append(each)
            longest = each.length
    return joined
