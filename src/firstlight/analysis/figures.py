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
    untraced one. ``None`` means not measured.
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


def points(run: Run, breakdown: pl.DataFrame, queued: pl.DataFrame) -> tuple[PointFigures, ...]:
    """The figures of each point. The bootstrap takes about 0.1 s per point.

    ``breakdown`` and ``queued`` are ``breakdown.breakdown`` and ``holders.holders`` of the run.
    """
    samples: dict[tuple[object, ...], list[Sample]] = {}
    for sample in run.samples:
        samples.setdefault(_key(run, sample.point), []).append(sample)
    return tuple(
        _point(run, point, samples.get(_key(run, point), []), breakdown, queued)
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
    breakdown: pl.DataFrame,
    queued: pl.DataFrame,
) -> PointFigures:
    ready = [sample for sample in samples if sample.latency is not None]
    untraced = [sample for sample in ready if not sample.traced]
    traced = [sample for sample in ready if sample.traced]
    explained = traced or [sample for sample in ready if sample.telemetry]
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
        overhead=_overhead(traced, untraced),
        traced=len(explained),
        lost=sum(sample.lost > 0 for sample in traced),
        parts=tuple(_parts(explained, breakdown)),
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


def _parts(samples: Sequence[Sample], breakdown: pl.DataFrame) -> Iterable[Part]:
    places = {sample.index: place for place, sample in enumerate(samples)}
    rows = breakdown.filter(pl.col("sample").is_in(list(places)))
    by_phase = {str(phase): part for (phase,), part in rows.group_by("phase")}
    groups = batches(samples)
    wall = {phase: _per_sample(places, part, "wall") for phase, part in by_phase.items()}
    total = np.sum(list(wall.values()), axis=0)
    for phase in in_order(by_phase):
        own = by_phase[phase]
        walls = own.get_column("wall").to_numpy()
        spent = max(int(walls.sum()), 1)
        kernel = int(walls[(own.get_column("shade") == "kernel").to_numpy()].sum())
        by_cause = own.group_by("cause").agg(pl.col("wall").sum()).sort("wall", descending=True)
        yield Part(
            phase=phase,
            share=share_interval(wall[phase], total, groups),
            wall=_median(wall[phase], groups),
            summed=_median(_per_sample(places, own, "summed"), groups),
            kernel=kernel / spent,
            causes=tuple(
                (cause, time / spent)
                for cause, time in by_cause.iter_rows()
                if time and cause != NOT_TRACED
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
    for (lock,), booted in rows.group_by("lock", maintain_order=True):
        waited = int(booted["waited"].sum())
        if waited < LEAST_QUEUED * total:
            continue
        by_holder = (
            booted.group_by("holder")
            .agg((pl.col("waited").sum() / waited).alias("share"))
            .sort("share", descending=True)
        )
        yield Queue(str(lock), waited / total, tuple(by_holder.iter_rows()))


def _median(values: Floats, groups: Floats) -> Interval:
    return stats.quantile_interval(values, 0.5, groups=groups, resamples=RESAMPLES)


def in_order(names: Iterable[str]) -> list[str]:
    """Phases in the order of reports; ``unattributed`` is last."""
    place = {phase: number for number, phase in enumerate(phases.ORDER)}
    return sorted(
        names, key=lambda name: (name == "unattributed", place.get(name, len(place)), name)
    )


def _per_sample(places: dict[int, int], rows: pl.DataFrame, column: str) -> Floats:
    """The sum of a column per sample, by position; shape (samples,)."""
    at = [places[sample] for sample in rows.get_column("sample").to_list()]
    sums = np.bincount(at, weights=rows.get_column(column).to_numpy(), minlength=len(places))
    return np.asarray(sums, np.float64)


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
    interval is then the range over its samples.
    """
    _, of = np.unique(groups, return_inverse=True)
    parts, totals = np.bincount(of, weights=part), np.bincount(of, weights=total)
    drawn = np.random.default_rng(0).multinomial(
        parts.size, np.full(parts.size, 1 / parts.size), RESAMPLES
    )
    value = float(part.sum() / max(total.sum(), 1.0))
    if parts.size == 1:
        ratios = part / np.maximum(total, 1.0)
        return Interval(value, float(ratios.min()), float(ratios.max()))
    draws = (drawn @ parts) / np.maximum(drawn @ totals, 1.0)
    return stats.interval(value, draws, batches=parts.size)


def median_sample(samples: Sequence[Sample]) -> Sample:
    """The sample whose latency is closest to the median; the earliest of equals."""
    middle = float(np.median(latencies(samples)))
    return min(samples, key=lambda sample: abs((sample.latency or 0) - middle))
