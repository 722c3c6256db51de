"""Names the storms that starts meet: what makes them slow, what it costs, and the remedy.

A storm is recognised by time on the critical path: of some phases, for some causes. So its cost is
measured, and the gain of its remedy predicted: that time, less what the remedy takes.

- A wait for a CPU is charged to what its thread did before it: to the wait that ended by its
  wake-up, or to the work that it interrupted. A new thread's first wait is charged to the work that
  its creator did since it last waited for something else, in proportion: a kernel that does not
  interrupt long work lets the others catch up then.
- A wait for a lock is charged to what the lock's holder did, where that is known. So the waits of
  all starts that queue behind a storm go with it; and if a start queued in its storm for a holder
  that did something else, it will queue for that elsewhere.
- The tracer slows starts down. So the share of the time is that of traced starts, and the time
  that of untraced ones, if a point has both.

``firstlight run storms`` meets each storm, with and without its remedy.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from firstlight.analysis import Analysis, causes, counts, holders, stats
from firstlight.analysis.figures import PointFigures
from firstlight.model import Interval, Point, Sample

LEAST_SHARE = 0.05
"""A storm is named if its remedy gains at least this share of a start."""
LEAST_NS = 500_000
"""And at least so much: less is not worth a change."""
_LOOKED_AT = 3
_KNOWN_SHARE = 0.25
"""What a lock's holder does while it runs is divided as its waits are, if these are known for at
least this share of the time."""
_FOLLOWED = 10
"""At most so many starts of a point are followed piece by piece."""


@dataclass(frozen=True)
class Storm:
    """How to recognise a storm, and what to do.

    ``phases`` and ``causes`` match (whole) those of the pieces of the critical path that it takes.
    ``shade`` limits them to time within the phase's own calls, or around those. ``count`` matches
    a count that starts must have (analysis.counts), at least ``fewest`` of it in all. ``least`` is
    the shortest time, in ns, that it can take. ``rest`` is the time that the remedy takes, in ns.
    ``along`` matches phases whose CPU work grows with the storm: beyond ``along_rest`` ns, it is
    gained too. ``lock`` is held meanwhile, and ``held`` matches what its
    holder then waits for (analysis.holders). A ``fixed`` wait is for a clock: the tracer does not
    make it longer. A storm is not named beside the one ``instead``, which explains the same time.
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
    lock: str = ""
    held: str = ""
    fixed: bool = False
    instead: str = ""


@dataclass(frozen=True)
class Advice:
    """A storm that the starts of a point meet. ``gain`` is the gain of its remedy per start, in ns,
    and ``share`` its share of the latency. ``evidence`` are the largest pieces, with their ns:
    phase and cause.
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

    def spent(self, pieces: pl.Expr) -> np.ndarray:
        """The ns of these pieces in each start."""
        sums = self.pieces.filter(pieces).group_by("sample").agg(pl.col("wall").sum())
        by_sample = dict(sums.iter_rows())
        samples = self.point.traced_samples
        return np.array([by_sample.get(sample.index, 0) for sample in samples], np.float64)

    @cached_property
    def paths(self) -> pl.DataFrame:
        """The critical paths of some starts. A ``chain`` is a piece with the waits for a CPU of its
        thread that follow it at once; a ``turn`` is a thread's work and waits for a CPU from one
        other wait to the next. A new thread's wait for its first turn ``is_first``."""
        samples = self.point.traced_samples
        return pl.concat(map(self._path, samples[:: -(-len(samples) // _FOLLOWED)]))

    def _path(self, sample: Sample) -> pl.DataFrame:
        spans = self.analysis.run.spans_of(sample)
        forks = spans.filter(pl.col("kind") == "fork").select("start", tid="peer", by="tid")
        is_queued = pl.col("cause") == causes.QUEUED
        is_work = is_queued | (pl.col("cause") == causes.ON_CPU)
        is_next = (pl.col("start") == pl.col("end").shift()).fill_null(value=False)
        is_same = is_next & (pl.col("tid") == pl.col("tid").shift())
        is_new = (pl.col("by") == pl.col("tid").shift()).fill_null(value=False)
        path = self.analysis.timeline(sample)
        return path.join(forks, on=["start", "tid"], how="left", maintain_order="left").select(
            "phase", "shade", "cause",
            length=pl.col("end") - pl.col("start"),
            sample=pl.lit(sample.index),
            chain=(~(is_queued & is_same)).cum_sum(),
            turn=(~(is_work & is_same)).cum_sum(),
            is_first=is_queued & is_new,
        )  # fmt: skip

    def with_queueing(self, pieces: pl.Expr) -> float:
        """How much longer the pieces are with the waits for a CPU that they lead to, a factor."""
        work = pl.col("length") * (pl.col("cause") == causes.ON_CPU)
        of_turn = (work * pl.col("of")).sum() / work.sum()
        alone, together = (
            self.paths.with_columns(of=pieces.cast(pl.Float64))
            .with_columns(of_turn=of_turn.over("sample", "turn"))
            .with_columns(share=pl.when("is_first").then(pl.col("of_turn").shift()).otherwise("of"))
            .with_columns(charged=pl.col("share").fill_nan(0).cum_max().over("sample", "chain"))
            .select((pl.col(each) * pl.col("length")).sum() for each in ("of", "charged"))
            .row(0)
        )
        return together / alone if alone else 1.0

    def queued(self, storm: Storm, pieces: pl.Expr) -> np.ndarray:
        """The ns of each start's waits for a lock that the storm holds: those outside its
        ``pieces`` add to it; those inside, for a holder that does something else, are negative."""
        waits = _waits(storm.lock)
        inside, outside = self.spent(waits & pieces), self.spent(waits & ~pieces)
        held = self.analysis.holders.filter(pl.col("lock") == storm.lock)
        known = held.filter(pl.col("holder") != holders.RUNNING)
        is_storm = pl.col("holder").str.contains(f"^(?:{storm.held})$")
        every, by_storm, by_others = (
            dict(some.group_by("sample").agg(pl.col("waited").sum()).iter_rows())
            for some in (held, known.filter(is_storm), known.filter(~is_storm))
        )
        queued = []
        samples = (sample.index for sample in self.point.traced_samples)
        for sample, more, less in zip(samples, outside, inside, strict=True):
            its, others = by_storm.get(sample, 0), by_others.get(sample, 0)
            is_enough = its + others >= _KNOWN_SHARE * every.get(sample, 0)
            whole = max(its + others if is_enough else every[sample], 1)
            queued.append((its * more - others * less) / whole)
        return np.array(queued)

    @property
    def untraced(self) -> float:
        """The median of the untraced starts over that of the traced ones; 1 without either."""
        without = [sample.latency or 0 for sample in self.point.untraced_samples]
        traced = [sample.latency or 0 for sample in self.point.traced_samples]
        return float(np.median(without) / np.median(traced)) if without else 1.0

    @cached_property
    def counted(self) -> dict[str, int]:
        """The count that one of the first few starts has most of."""
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
            named = {storm: advised for storm in storms if (advised := _met(storm, starts))}
            names = {storm.name for storm in named}
            kept = [advised for storm, advised in named.items() if storm.instead not in names]
            advice += sorted(kept, key=lambda each: -each.gain.value)
    return advice


def _met(storm: Storm, starts: _Starts) -> Advice | None:
    pieces = _matched("phase", storm.phases) & _matched("cause", storm.causes)
    pieces &= _matched("shade", storm.shade)
    spent = starts.spent(pieces)
    queued = starts.queued(storm, pieces) if storm.lock else np.zeros(len(spent))
    if np.median(spent + queued) < storm.least or not _has(storm, starts):
        return None
    gains = np.maximum(spent * starts.with_queueing(pieces) + queued - storm.rest, 0)
    if storm.along:
        more = _matched("phase", storm.along) & (pl.col("cause") == causes.ON_CPU)
        gains += np.maximum(starts.spent(more) - storm.along_rest, 0) * starts.with_queueing(more)
        pieces |= more
    charged = 0.0  # the share of the other waits for the lock
    if storm.lock and (waits := starts.spent(_waits(storm.lock) & ~pieces).sum()):
        charged = min(1.0, max(0.0, float(queued.sum() / waits)))
    samples = starts.point.traced_samples
    gains = np.minimum(gains, [sample.latency or 0 for sample in samples])
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
        gain.value / latency, tuple(_largest(starts, storm, pieces, charged)),
    )  # fmt: skip


def _matched(column: str, pattern: str) -> pl.Expr:
    return pl.col(column).str.contains(f"^(?:{pattern})$")


def _waits(lock: str) -> pl.Expr:
    return pl.col("cause").str.starts_with(f"lock: {lock} ")


def _has(storm: Storm, starts: _Starts) -> bool:
    if not storm.count:
        return True
    own = [value for name, value in starts.counted.items() if re.fullmatch(storm.count, name)]
    return sum(own) >= storm.fewest


def _largest(
    starts: _Starts, storm: Storm, pieces: pl.Expr, charged: float
) -> Iterator[tuple[str, str, float]]:
    """``charged`` is the storm's share of the waits for its lock that are not its ``pieces``."""
    weight = pl.when(pieces).then(1.0).when(_waits(storm.lock)).then(charged).otherwise(0.0)
    cost = (pl.col("wall") * weight).sum() / len(starts.point.traced_samples)
    sums = starts.pieces.group_by("phase", "cause").agg(cost.alias("cost"))
    costly = sums.filter(pl.col("cost") > 0).sort("cost", descending=True)
    rows: Iterable[tuple[str, str, float]] = costly.head(3).iter_rows()
    yield from rows
