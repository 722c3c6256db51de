"""The figures of a report, computed once from one run.

The terminal, the page, the pictures and ``--json`` all read these records, so they agree.
Headline latencies come from untraced samples, parts (the phases) from traced ones and from those
whose components reported spans.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from firstlight.analysis import boot as boots
from firstlight.analysis import phases, stats
from firstlight.analysis.causes import NOT_TRACED
from firstlight.analysis.spent import Spent
from firstlight.analysis.stats import Floats, Summary
from firstlight.model import Ending, Interval, Point, Sample
from firstlight.store import Run

LATE = 0.10
"""A point is marked if the load generator was later than this share of the median."""
UNEXPLAINED = 0.05
COSTLY = 1.10
"""A point is marked if tracing makes its median longer by more than this factor."""
LEAST_SEEN = 0.0005
LEAST_QUEUED = 0.01
RESAMPLES = 500
"""Resamples for the intervals of parts: 0.1 s per point, bounds good to two digits."""
_NUMBERS = {"background": "{} up", "rate": "{}/s"}


@dataclass(frozen=True)
class Part:
    """A phase at a point, over its traced samples.

    ``share`` is the share of the starts' wall time; the estimates of a point's parts sum to 1.
    ``wall`` and ``summed`` are medians per start, in ns; ``summed`` counts the time of every task
    of the instance, so it can exceed the latency. ``kernel`` is the share of the part's wall time
    within its own system calls. ``causes`` are shares of the part's wall time, the largest first.
    """

    phase: str
    share: Interval
    wall: Interval
    summed: Interval
    kernel: float
    causes: tuple[tuple[str, float], ...]

    @property
    def seen(self) -> bool:
        """Whether it deserves a row; unattributed time always does."""
        return self.share.value >= LEAST_SEEN or self.phase == phases.UNATTRIBUTED


@dataclass(frozen=True)
class Queue:
    """A lock that starts waited for, and what its holder did in that time.

    ``share`` is the waiting time, summed over threads, relative to the starts' latencies.
    ``holders`` are shares of the waiting time, the largest first, by what the holder waited for.
    """

    lock: str
    share: float
    holders: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Boot:
    """How a point's VMs booted, by untraced starts only: medians of each phase, in ns.

    ``clock`` is the guest's clock. ``uncertainty`` is the largest uncertainty of its spans on the
    host's clock, in ns; None if nothing ties the clocks.
    """

    clock: str
    uncertainty: int | None
    phases: tuple[tuple[str, Interval], ...]


@dataclass(frozen=True)
class PointFigures:
    """The figures of one point.

    ``latency`` and ``all_ready`` come from the headline's samples (model.Presentation), in ns:
    ``latency`` is a start's, from its intended arrival; ``all_ready`` lasts from a batch's first
    intended arrival until its last start is ready. ``late`` is the 95th percentile of the load
    generator's lateness, as a share of the median. ``overhead`` is the traced median over the
    untraced one, unless the headline is of both: which starts watch traces depends on the load.
    ``None`` means not measured.
    """

    point: Point
    series: str
    instances: int
    ended: dict[Ending, int]
    latency: Summary | None
    all_ready: Interval | None
    late: float | None
    overhead: Interval | None
    traced: int
    lost: int
    parts: tuple[Part, ...]
    queues: tuple[Queue, ...]
    boot: Boot | None
    headline_samples: tuple[Sample, ...] = field(repr=False)
    untraced_samples: tuple[Sample, ...] = field(repr=False)
    traced_samples: tuple[Sample, ...] = field(repr=False)

    @property
    def name(self) -> str:
        """The point's name: ``runc × 10``."""
        return f"{self.series} × {self.instances}"

    @property
    def parallel(self) -> bool:
        """Whether the starts of a batch were requested at once."""
        return self.point.get("order") != "sequential"

    def causes(self) -> list[tuple[str, float]]:
        """The share of each cause of the starts' wall time, over all phases, the largest first."""
        shares: dict[str, float] = {}
        for part in self.parts:
            for cause, share in part.causes:
                shares[cause] = shares.get(cause, 0.0) + share * part.share.value
        return sorted(shares.items(), key=lambda pair: -pair[1])


def points(run: Run, spent: Spent, queued: pl.DataFrame) -> tuple[PointFigures, ...]:
    """The figures of each point. The bootstrap takes about 0.1 s per point.

    ``spent`` is the run's breakdown, ``queued`` is ``holders.Locks.holders``.
    """
    samples: dict[tuple[object, ...], list[Sample]] = {}
    for sample in run.samples:
        samples.setdefault(_key(run, sample.point), []).append(sample)
    return tuple(
        _point(run, point, samples.get(_key(run, point), []), spent, queued)
        for point in run.header.points
    )


def series_axes(run: Run) -> list[str]:
    """The axes that distinguish series: those that vary, except instances; all if none varies."""
    axes = [axis for axis in run.header.axes if axis != "instances"]
    varying = [axis for axis in axes if len({point.get(axis) for point in run.header.points}) > 1]
    return varying or axes


def settings(run: Run, point: Point) -> list[str]:
    """The words of a series' name."""
    return [_word(axis, point) for axis in series_axes(run)]


def _word(axis: str, point: Point) -> str:
    """A setting in a series' name; a number gets its axis."""
    return _NUMBERS.get(axis, "{}").format(point.get(axis))


def _key(run: Run, point: Point) -> tuple[object, ...]:
    return tuple(point.get(axis) for axis in run.header.axes)


def _point(
    run: Run,
    point: Point,
    samples: Sequence[Sample],
    spent: Spent,
    queued: pl.DataFrame,
) -> PointFigures:
    ready = [sample for sample in samples if sample.latency is not None]
    untraced = [sample for sample in ready if not sample.traced]
    traced = [sample for sample in ready if sample.traced]
    explained = [
        sample
        for sample in traced or [sample for sample in ready if sample.telemetry]
        if sample.telemetry is None or sample.telemetry.spans
    ]
    headline = {"traced": traced, "untraced": untraced, "all": ready}[
        run.header.presentation.headline
    ]
    latency = _summary(headline)
    return PointFigures(
        point=point,
        series=" · ".join(settings(run, point)) or "all",
        instances=int(point.get("instances", 1)),
        ended={ending: sum(sample.ending is ending for sample in samples) for ending in Ending},
        latency=latency,
        all_ready=_all_ready([sample for sample in samples if not sample.traced]),
        late=_late(headline, latency),
        overhead=None if headline is ready else _overhead(traced, untraced),
        traced=len(explained),
        lost=sum(sample.lost > 0 for sample in traced),
        parts=tuple(_parts(explained, spent)),
        queues=tuple(_queues(traced, queued)),
        boot=_boot(untraced),
        headline_samples=tuple(headline),
        untraced_samples=tuple(untraced),
        traced_samples=tuple(explained),
    )


def latencies(samples: Iterable[Sample]) -> Floats:
    """The latencies of ready samples, in ns: 1 at least, so that they can be divided."""
    return np.maximum(np.array([sample.latency for sample in samples], dtype=np.float64), 1)


def batches(samples: Iterable[Sample]) -> Floats:
    """The batch of each sample, which the bootstrap resamples."""
    return np.array([sample.batch for sample in samples])


def _summary(samples: Sequence[Sample]) -> Summary | None:
    return stats.summary(latencies(samples), groups=batches(samples)) if samples else None


def makespans(samples: Iterable[Sample]) -> Floats:
    """From a batch's first intended arrival until its last start is ready, in ns.

    For complete batches only; 1 at least, so that they can be divided.
    """
    by_batch: dict[int, list[Sample]] = {}
    for sample in samples:
        by_batch.setdefault(sample.batch, []).append(sample)
    spans = [
        max(ends) - min(sample.stamps.intended for sample in batch)
        for batch in by_batch.values()
        if len(ends := [s.stamps.ready for s in batch if s.stamps.ready is not None]) == len(batch)
    ]
    return np.maximum(np.array(spans, dtype=np.float64), 1)


def _all_ready(samples: Sequence[Sample]) -> Interval | None:
    spans = makespans(samples)
    return stats.quantile_interval(spans, 0.5) if spans.size else None


def _late(samples: Sequence[Sample], latency: Summary | None) -> float | None:
    if latency is None or not latency.median.value:
        return None
    return float(np.quantile([s.lateness for s in samples], 0.95)) / latency.median.value


def _overhead(traced: Sequence[Sample], untraced: Sequence[Sample]) -> Interval | None:
    if min(np.unique(batches(side)).size for side in (traced, untraced)) < stats.FEWEST_BATCHES:
        return None
    return stats.ratio_interval(
        latencies(traced),
        latencies(untraced),
        groups_a=batches(traced),
        groups_b=batches(untraced),
    )


def _parts(samples: Sequence[Sample], spent: Spent) -> Iterable[Part]:
    own = spent.of(samples)
    by_kind = np.bincount(own.kind, weights=own.wall, minlength=len(own.kinds)).tolist()
    by_cause: dict[str, dict[str, int]] = {}
    kernel: dict[str, int] = {}
    for kind in np.unique(own.kind).tolist():
        phase, shade, cause = own.kinds[kind]
        time, of = int(by_kind[kind]), by_cause.setdefault(phase, {})
        of[cause] = of.get(cause, 0) + time
        kernel[phase] = kernel.get(phase, 0) + time * (shade == "kernel")
    names = in_order(by_cause)
    if not names:
        return
    number = {phase: place for place, phase in enumerate(names)}
    phase_of = np.array([number.get(phase, -1) for phase, _, _ in own.kinds], np.int64)
    at = phase_of[own.kind] * len(samples) + own.sample
    walls, sums = (
        np.bincount(at, weights=each, minlength=len(names) * len(samples))
        .astype(np.float64)
        .reshape(len(names), -1)
        for each in (own.wall, own.summed)
    )
    groups = batches(samples)
    shares = share_intervals(walls, walls.sum(axis=0), groups)
    medians = stats.quantile_intervals(
        np.concatenate([walls, sums]).T, 0.5, groups=groups, resamples=RESAMPLES
    )
    count = np.unique(groups).size
    for place, phase in enumerate(names):
        time = max(sum(by_cause[phase].values()), 1)
        yield Part(
            phase=phase,
            share=shares[place],
            wall=stats.without_range(medians[place], count),
            summed=stats.without_range(medians[len(names) + place], count),
            kernel=kernel[phase] / time,
            causes=tuple(
                (cause, length / time)
                for cause, length in sorted(by_cause[phase].items(), key=lambda each: -each[1])
                if length and cause != NOT_TRACED
            ),
        )


def _boot(samples: Sequence[Sample]) -> Boot | None:
    """None if the instances are not VMs."""
    booted = [(sample, account) for sample in samples if (account := boots.account(sample))]
    if not booted:
        return None
    groups = batches([sample for sample, _ in booted])
    logs = [sample.guest for sample, _ in booted if sample.guest]
    bounds = [log.uncertainty for log in logs if log.uncertainty is not None]
    return Boot(
        clock=logs[0].clock,
        uncertainty=max(bounds) if bounds else None,
        phases=tuple(
            (
                name,
                _median(np.array([account.get(name, 0) for _, account in booted], float), groups),
            )
            for name in in_order({name for _, account in booted for name in account})
        ),
    )


def _queues(samples: Sequence[Sample], queued: pl.DataFrame) -> Iterable[Queue]:
    total = float(latencies(samples).sum())
    rows = queued.filter(pl.col("sample").is_in([sample.index for sample in samples]))
    by_lock: dict[str, dict[str, int]] = {}
    for lock, holder, waited in (
        rows.group_by("lock", "holder", maintain_order=True).agg(pl.col("waited").sum()).iter_rows()
    ):
        by_lock.setdefault(lock, {})[holder] = waited
    for lock, by_holder in by_lock.items():
        waited = sum(by_holder.values())
        if waited >= LEAST_QUEUED * total:
            longest = sorted(by_holder.items(), key=lambda each: -each[1])
            shares = tuple((holder, time / waited) for holder, time in longest)
            yield Queue(lock, waited / total, shares)


def _median(values: Floats, groups: Floats) -> Interval:
    median = stats.quantile_interval(values, 0.5, groups=groups, resamples=RESAMPLES)
    return stats.without_range(median, np.unique(groups).size)


def in_order(names: Iterable[str]) -> list[str]:
    """Phases in the order of reports; ``unattributed`` is last."""
    place = {phase: number for number, phase in enumerate(phases.ORDER)}
    return sorted(
        names, key=lambda name: (name == "unattributed", place.get(name, len(place)), name)
    )


def steps(point: PointFigures) -> list[tuple[str, Interval]]:
    """The median duration of each backend step over a point's untraced samples, in ns."""
    spent: dict[str, list[tuple[int, int]]] = {}
    for sample in point.untraced_samples:
        for step in sample.steps:
            spent.setdefault(step.name, []).append((step.end - step.start, sample.batch))
    return [
        (name, _median(*(np.array(column, dtype=np.float64) for column in zip(*took, strict=True))))
        for name, took in spent.items()
    ]


def share_interval(part: Floats, total: Floats, groups: Floats) -> Interval:
    """``sum(part) / sum(total)``, shapes (n,), with its bootstrap interval over batches.

    As a ratio of sums, the shares of all parts sum to 1. One batch cannot be resampled: the
    interval then has no width.
    """
    return share_intervals(part[None], total, groups)[0]


def share_intervals(parts: Floats, total: Floats, groups: Floats) -> list[Interval]:
    """As ``share_interval``, of each row of ``parts``, shape (k, n)."""
    names, of = np.unique(groups, return_inverse=True)
    values = parts.sum(axis=1) / max(total.sum(), 1.0)
    if names.size == 1:
        return [Interval(value, value, value) for value in values.tolist()]
    count = names.size
    at = np.arange(len(parts))[:, None] * count + of
    sums = np.bincount(at.ravel(), weights=parts.ravel(), minlength=len(parts) * count)
    totals = np.bincount(of, weights=total)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    draws = (drawn @ sums.reshape(-1, count).T) / np.maximum(drawn @ totals, 1.0)[:, None]
    return stats.intervals(values, draws, batches=count)


def median_sample(samples: Sequence[Sample]) -> Sample:
    """The sample whose latency is closest to the median; the earliest of equals."""
    middle = float(np.median(latencies(samples)))
    return min(samples, key=lambda sample: abs((sample.latency or 0) - middle))
