"""Names the storms that starts meet: what makes them slow, what it costs, and the remedy.

A storm is recognised by time on the critical path: of some phases, for some causes. So its cost is
measured, and what its remedy gains is predicted: that time, less what the remedy's own way takes.
The tracer makes starts slower, and waits for others' work longer. So a traced start gives the share
of the time, and the untraced ones the time, where a point has both.
``firstlight run storms`` meets each storm, with and without its remedy.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from firstlight.analysis import Analysis, causes, counts, stats
from firstlight.analysis.figures import PointFigures
from firstlight.model import Interval, Point

LEAST_SHARE = 0.05
"""A storm is named if its remedy gains at least this share of a start."""
LEAST_NS = 500_000
"""And at least so much: less is not worth a change."""
_LOOKED_AT = 3


@dataclass(frozen=True)
class Storm:
    """How to recognise a storm, and what to do.

    ``phases`` and ``causes`` match (whole) those of the pieces of the critical path that it takes.
    ``shade`` limits them to time within the phase's own calls, or around those. ``count`` matches
    a count that starts must have (analysis.counts), at least ``fewest`` of it in all. ``least`` is
    the shortest time, in ns, that it can take. ``rest`` is what the remedy's own way takes, in ns.
    ``along`` matches phases whose work of the CPU grows with the storm: what they take beyond
    ``along_rest`` ns is gained, too. ``work`` is for a storm that is work of the CPU: without it,
    the start waits less for a CPU, in the same proportion. A ``fixed`` wait is for a clock: the
    tracer does not make it longer.
    """

    name: str
    fact: str
    remedy: str
    phases: str = ".*"
    causes: str = ".*"
    shade: str = ".*"
    count: str = ""
    fewest: int = 1
    least: int = LEAST_NS
    rest: int = 0
    along: str = ""
    along_rest: int = 0
    work: bool = False
    fixed: bool = False


@dataclass(frozen=True)
class Advice:
    """A storm that the starts of a point meet. ``gain`` is what its remedy gains for a start, in
    ns, ``share`` the same of the start's latency. ``evidence`` are the largest pieces, with their
    ns: phase and cause.
    """

    storm: str
    point: Point
    name: str
    fact: str
    remedy: str
    gain: Interval
    share: float
    evidence: tuple[tuple[str, str, float], ...]


@dataclass(frozen=True)
class _Starts:
    """The traced starts of a point."""

    analysis: Analysis
    point: PointFigures

    @cached_property
    def pieces(self) -> pl.DataFrame:
        """Their pieces of the critical path."""
        samples = [sample.index for sample in self.point.traced_samples]
        return self.analysis.breakdown.filter(pl.col("sample").is_in(samples))

    @property
    def untraced(self) -> float:
        """The median of the untraced starts over that of the traced ones; 1 without either."""
        without = [sample.latency or 0 for sample in self.point.untraced_samples]
        traced = [sample.latency or 0 for sample in self.point.traced_samples]
        return float(np.median(without) / np.median(traced)) if without else 1.0

    @cached_property
    def counted(self) -> dict[str, int]:
        """What one of the first few of them did, by its name: the most."""
        samples = [sample for sample in self.point.traced_samples if counts.is_whole(sample)]
        most: dict[str, int] = {}
        for sample in samples[:_LOOKED_AT]:
            spans = self.analysis.run.spans_of(sample)
            done = counts.of_spans(spans, [sample]).select("count", "value")
            most |= {name: max(value, most.get(name, 0)) for name, value in done.iter_rows()}
        return most


def advise(analysis: Analysis, storms: Sequence[Storm]) -> list[Advice]:
    """The storms that each point of a run meets, with the largest gain first for each point."""
    advice = []
    for point in analysis.points:
        if point.traced_samples and point.latency:
            starts = _Starts(analysis, point)
            named = [advised for storm in storms if (advised := _met(storm, starts))]
            advice += sorted(named, key=lambda each: -each.gain.value)
    return advice


def _met(storm: Storm, starts: _Starts) -> Advice | None:
    pieces = starts.pieces.filter(
        pl.col("phase").str.contains(f"^(?:{storm.phases})$")
        & pl.col("cause").str.contains(f"^(?:{storm.causes})$")
    )
    pieces = pieces.filter(pl.col("shade").str.contains(f"^(?:{storm.shade})$"))
    if pieces.is_empty() or not _has(storm, starts):
        return None
    samples = starts.point.traced_samples
    by_sample = dict(pieces.group_by("sample").agg(pl.col("wall").sum()).iter_rows())
    spent = np.array([by_sample.get(sample.index, 0) for sample in samples], np.float64)
    if np.median(spent) < storm.least:
        return None
    gains = np.maximum(spent - storm.rest, 0)
    if storm.along:
        more = starts.pieces.filter(
            pl.col("phase").str.contains(f"^(?:{storm.along})$")
            & (pl.col("cause") == causes.ON_CPU)
        )
        extra = dict(more.group_by("sample").agg(pl.col("wall").sum()).iter_rows())
        longer = np.array([extra.get(sample.index, 0) for sample in samples], np.float64)
        gains += np.maximum(longer - storm.along_rest, 0)
        pieces = pl.concat([pieces, more])
    if storm.work:
        gains *= 1 + _queueing(starts.pieces)
    if not storm.fixed:
        gains *= starts.untraced
    batch = np.array([sample.batch for sample in samples])
    gain = stats.quantile_interval(gains, 0.5, groups=batch, resamples=500)
    latency = float(np.median([sample.latency or 0 for sample in samples]))
    if not storm.fixed:
        latency *= starts.untraced
    if gain.value < max(LEAST_NS, LEAST_SHARE * latency):
        return None
    return Advice(
        storm.name, starts.point.point, starts.point.name, storm.fact, storm.remedy, gain,
        gain.value / latency, tuple(_largest(pieces, len(samples))),
    )  # fmt: skip


def _has(storm: Storm, starts: _Starts) -> bool:
    if not storm.count:
        return True
    own = [value for name, value in starts.counted.items() if re.fullmatch(storm.count, name)]
    return sum(own) >= storm.fewest


def _queueing(pieces: pl.DataFrame) -> float:
    """How long starts wait for a CPU for each ns on one."""
    sums = dict(pieces.group_by("cause").agg(pl.col("wall").sum()).iter_rows())
    return float(sums.get(causes.QUEUED, 0) / max(sums.get(causes.ON_CPU, 0), 1))


def _largest(pieces: pl.DataFrame, starts: int) -> Iterator[tuple[str, str, float]]:
    sums = pieces.group_by("phase", "cause").agg(pl.col("wall").sum() / starts)
    rows: Iterable[tuple[str, str, float]] = sums.sort("wall", descending=True).head(3).iter_rows()
    yield from rows
