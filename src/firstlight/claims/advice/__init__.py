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
  that of untraced ones, if a point has both, and watch did not choose which by the load.

``firstlight run storms`` meets each storm, with and without its remedy.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import polars as pl

from firstlight.analysis import Analysis, causes, counts, holders, stats
from firstlight.analysis.figures import PointFigures
from firstlight.analysis.segments import Flags
from firstlight.analysis.spent import Spent
from firstlight.analysis.words import Combinations, Words
from firstlight.model import Interval, Point

LEAST_SHARE = 0.05
"""A storm is named if its remedy gains at least this share of a start."""
LEAST_NS = 500_000
"""And at least so much: less is not worth a change."""
_KIND = ("phase", "shade", "cause")
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
class _Pieces:
    """Pieces of the critical path, by patterns that match their phase, shade and cause whole."""

    phases: str = ".*"
    shade: str = ".*"
    causes: str = ".*"

    @classmethod
    def waiting(cls, lock: str) -> "_Pieces":
        """The waits for a lock."""
        return cls(causes=f"lock: {re.escape(lock)} .*")

    def of(self, kinds: Sequence[tuple[str, ...]]) -> Flags:
        """Which of some phases, shades and causes they are."""
        patterns = (self.phases, self.shade, self.causes)
        return np.array([all(map(_matches, patterns, kind)) for kind in kinds], np.bool_)


@dataclass(frozen=True)
class _Starts:
    """The traced starts of a point."""

    analysis: Analysis
    point: PointFigures

    @cached_property
    def pieces(self) -> Spent:
        """Their pieces of the critical path."""
        return self.analysis.spent.of(self.point.traced_samples)

    def spent(self, chosen: Flags) -> np.ndarray:
        """The ns of the pieces of these kinds in each start."""
        own, count = chosen[self.pieces.kind], len(self.point.traced_samples)
        return np.bincount(
            self.pieces.sample[own], weights=self.pieces.wall[own], minlength=count
        ).astype(np.float64)

    @cached_property
    def paths(self) -> tuple[pl.DataFrame, Combinations]:
        """The critical paths of some starts, and the kinds of their pieces. A ``chain`` is a piece
        with the waits for a CPU of its thread that follow it at once; a ``turn`` is a thread's work
        and waits for a CPU from one other wait to the next. A new thread's wait for its first turn
        ``is_first``."""
        every = self.point.traced_samples
        samples = every[:: -(-len(every) // _FOLLOWED)]
        timelines = self.analysis.timelines(samples)
        number = np.repeat([sample.index for sample in samples], [len(path) for path in timelines])
        forks = (
            self.analysis.run.spans_of(*samples)
            .lazy()
            .filter(pl.col("kind") == "fork")
            .select("start", sample=pl.col("sample").cast(pl.Int64),
                    tid=pl.col("peer").cast(pl.Int64), by=pl.col("tid").cast(pl.Int64))
        )  # fmt: skip
        before = pl.col("sample", "end", "tid").shift().name.prefix("last_")
        is_queued = pl.col("cause") == causes.QUEUED
        is_work = is_queued | (pl.col("cause") == causes.ON_CPU)
        is_next = pl.col("start") == pl.col("last_end")
        is_same = pl.col("in_sample") & is_next & (pl.col("tid") == pl.col("last_tid"))
        is_new = pl.col("in_sample") & (pl.col("by") == pl.col("last_tid"))
        paths = (
            pl.concat(timelines)
            .lazy()
            .with_columns(sample=pl.Series(number, dtype=pl.Int64))
            .join(forks, on=["sample", "start", "tid"], how="left", maintain_order="left")
            .with_columns(before)
            .with_columns(in_sample=pl.col("sample") == pl.col("last_sample"))
            .select(
                "sample", *_KIND,
                length=pl.col("end") - pl.col("start"),
                chain=(~(is_queued & is_same)).fill_null(value=True).cum_sum(),
                turn=(~(is_work & is_same)).fill_null(value=True).cum_sum(),
                is_first=(is_queued & is_new).fill_null(value=False),
            )
            .collect()
        )  # fmt: skip
        kinds = Words(paths, *_KIND).combinations(np.arange(len(paths)), *_KIND)
        return paths, kinds

    def with_queueing(self, pieces: _Pieces) -> float:
        """How much longer the pieces are with the waits for a CPU that they lead to, a factor."""
        paths, kinds = self.paths
        chosen = pieces.of(kinds.words)[kinds.place].astype(np.float64)
        work = pl.col("length") * (pl.col("cause") == causes.ON_CPU)
        of_turn = (work * pl.col("of")).sum() / work.sum()
        alone, together = (
            paths.lazy()
            .with_columns(of=pl.Series(chosen))
            .with_columns(of_turn=of_turn.over("sample", "turn"))
            .with_columns(share=pl.when("is_first").then(pl.col("of_turn").shift()).otherwise("of"))
            .with_columns(charged=pl.col("share").fill_nan(0).cum_max().over("sample", "chain"))
            .select((pl.col(each) * pl.col("length")).sum() for each in ("of", "charged"))
            .collect()
            .row(0)
        )
        return together / alone if alone else 1.0

    def queued(self, storm: Storm, chosen: Flags) -> np.ndarray:
        """The ns of each start's waits for a lock that the storm holds: those outside its
        ``chosen`` kinds add to it; those inside, for a holder that does something else, are
        negative."""
        waits = _Pieces.waiting(storm.lock).of(self.pieces.kinds)
        inside, outside = self.spent(waits & chosen), self.spent(waits & ~chosen)
        waited, is_known = pl.col("waited"), pl.col("holder") != holders.RUNNING
        is_storm = pl.col("holder").str.contains(f"^(?:{storm.held})$")
        held = (
            self.analysis.locks.holders.lazy()
            .filter(pl.col("lock") == storm.lock)
            .group_by("sample")
            .agg(
                every=waited.sum(),
                its=waited.filter(is_known & is_storm).sum(),
                others=waited.filter(is_known & ~is_storm).sum(),
            )
            .collect()
        )
        by_sample = {sample: times for sample, *times in held.iter_rows()}
        queued = []
        samples = (sample.index for sample in self.point.traced_samples)
        for sample, more, less in zip(samples, outside, inside, strict=True):
            every, its, others = by_sample.get(sample, (0, 0, 0))
            whole = max(its + others if its + others >= _KNOWN_SHARE * every else every, 1)
            queued.append((its * more - others * less) / whole)
        return np.array(queued)

    @property
    def untraced(self) -> float:
        """The median of the untraced starts over that of the traced ones; 1 without either.

        1 for what watch kept: it traces less when the node is busy.
        """
        if self.analysis.header.presentation.headline == "all":
            return 1.0
        without = [sample.latency or 0 for sample in self.point.untraced_samples]
        traced = [sample.latency or 0 for sample in self.point.traced_samples]
        return float(np.median(without) / np.median(traced)) if without else 1.0

    @cached_property
    def counted(self) -> dict[str, int]:
        """The count that one of the first few starts has most of."""
        samples = list(filter(counts.is_whole, self.point.traced_samples))[:_LOOKED_AT]
        most: dict[str, int] = {}
        if samples:
            done = counts.of_spans(self.analysis.run.spans_of(*samples), samples)
            for _, name, value in done.iter_rows():
                most[name] = max(value, most.get(name, 0))
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
    pieces, kinds = _Pieces(storm.phases, storm.shade, storm.causes), starts.pieces.kinds
    chosen = pieces.of(kinds)
    spent = starts.spent(chosen)
    queued = starts.queued(storm, chosen) if storm.lock else np.zeros(len(spent))
    if np.median(spent + queued) < storm.least or not _has(storm, starts):
        return None
    gains = np.maximum(spent * starts.with_queueing(pieces) + queued - storm.rest, 0)
    if storm.along:
        more = _Pieces(phases=storm.along, causes=causes.ON_CPU)
        along = more.of(kinds)
        gains += np.maximum(starts.spent(along) - storm.along_rest, 0) * starts.with_queueing(more)
        chosen |= along
    charged = 0.0  # the share of the other waits for the lock
    others = _Pieces.waiting(storm.lock).of(kinds) & ~chosen
    if storm.lock and (waits := starts.spent(others).sum()):
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
        gain.value / latency, tuple(_largest(starts, chosen + others * charged)[:3]),
    )  # fmt: skip


def _has(storm: Storm, starts: _Starts) -> bool:
    if not storm.count:
        return True
    own = [value for name, value in starts.counted.items() if re.fullmatch(storm.count, name)]
    return sum(own) >= storm.fewest


def _largest(starts: _Starts, weights: np.ndarray) -> list[tuple[str, str, float]]:
    """The phases and causes that take most of a start, by the weight of each kind of piece."""
    pieces, count = starts.pieces, len(starts.point.traced_samples)
    costs = weights * np.bincount(pieces.kind, weights=pieces.wall, minlength=len(weights))
    sums: dict[tuple[str, str], float] = {}
    for (phase, _, cause), cost in zip(pieces.kinds, costs.tolist(), strict=True):
        sums[phase, cause] = sums.get((phase, cause), 0.0) + cost
    costly = [(*kind, cost / count) for kind, cost in sums.items() if cost > 0]
    return sorted(costly, key=lambda each: -each[2])


@lru_cache(maxsize=1 << 16)
def _matches(pattern: str, word: str) -> bool:
    return re.fullmatch(pattern, word) is not None
