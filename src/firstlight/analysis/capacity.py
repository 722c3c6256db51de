"""What limits the rate of starts, and how many CPUs a host could use.

A start uses CPU time and holds locks that the whole kernel shares. With ``c`` CPUs a host makes at
most ``c / CPU time`` starts a second, and at most ``1 / held time`` for each lock (the bottleneck
bounds of Denning and Buzen, "The Operational Analysis of Queueing Network Models", Computing
Surveys 10(3), 1978, section 5).

While a thread waits for a lock, another one holds it. So the time of a batch in which any thread
waited, divided by its starts, is a lower bound of a start's holding time. With many at once, nearly
all of the holding time is such time.

Only whole batches count: starts that failed waited for locks too. With fewer starts at once than
CPUs, most of the holding time is unseen and CPUs are idle, so no rate is predicted. None is
predicted from fewer traced batches than ranks need (``stats.FEWEST_BATCHES``) either, and no lock
is said to limit a host that is larger than this one by more than ``FARTHEST``.

Assumed: as ASSUMED says. The CPU time is that of traced starts, so without the tracer a host may
make more starts than ``c / CPU time``.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from firstlight.analysis import causes, figures, stats
from firstlight.analysis.figures import PointFigures
from firstlight.model import Interval

ASSUMED = (
    "other CPUs are as fast, starts hold the same locks for as long, a lock that readers share is "
    "held by one at a time, and neither memory, disks, the kernel's own workers nor a CPU quota "
    "limit first"
)
FEWEST_INSTANCES = 4
"""Fewer starts at once leave too much of the held time unseen."""
FARTHEST = 64
"""A lock that limits only hosts of more than so many times this one's CPUs is not told from none.

Its waits are rare then, and too much is assumed of such hosts.
"""


@dataclass(frozen=True)
class Section:
    """A lock, and the least time that a start holds it, in ns."""

    lock: str
    held: Interval


@dataclass(frozen=True)
class Capacity:
    """The CPU time and locks that a start takes, at a point of many at once.

    ``cpu`` is its threads' CPU time in ns, traced in so many ``batches``. ``sections`` are longest
    first. ``measured`` is the rate of the untraced batches, in starts a second, on ``cores`` CPUs.
    """

    point: PointFigures
    cores: int
    batches: int
    cpu: Interval
    sections: tuple[Section, ...]
    measured: Interval | None

    @property
    def is_saturated(self) -> bool:
        """Whether there were enough starts at once to use every CPU: else no rate is predicted."""
        return self.point.instances >= self.cores

    @property
    def is_repeated(self) -> bool:
        """Whether enough batches were traced to predict a rate."""
        return self.batches >= stats.FEWEST_BATCHES

    @property
    def is_predicted(self) -> bool:
        """Whether rates are predicted."""
        return self.is_saturated and self.is_repeated

    @property
    def is_exceeded(self) -> bool:
        """Whether untraced starts were faster than the bound, which tracing makes lower."""
        return self.measured is not None and self.measured.low > self.rate(self.cores)

    def rate(self, cores: int) -> float:
        """The highest rate with this many CPUs, in starts a second."""
        return 1e9 / max(self.cpu.value / cores, self._longest)

    @property
    def per_core(self) -> float:
        """The starts a second for which one CPU has the time."""
        return 1e9 / self.cpu.value

    @property
    def unlimited_cores(self) -> float:
        """The number of CPUs below which no lock is the limit, as far as intervals tell.

        ``FARTHEST`` times this host's at most.
        """
        most = float(FARTHEST * self.cores)
        return min([most, *(self.cpu.low / each.held.high for each in self.sections)])

    @property
    def saturating_cores(self) -> Interval | None:
        """The number of CPUs from which the longest section is the limit.

        None without one, and where its interval reaches beyond ``FARTHEST`` times this host's
        CPUs. The interval is that of the CPU time over that of the section: rather too wide.
        """
        if not self.sections:
            return None
        held = self.sections[0].held
        if self.cpu.high > FARTHEST * self.cores * held.low:
            return None
        return Interval(
            self.cpu.value / held.value, self.cpu.low / held.high, self.cpu.high / held.low
        )

    @property
    def longest(self) -> tuple[str, ...]:
        """The locks that are held longest, as far as their intervals tell."""
        least = max((each.held.low for each in self.sections), default=0.0)
        return tuple(each.lock for each in self.sections if each.held.high >= least)

    @property
    def most(self) -> Interval | None:
        """The highest rate with any number of CPUs, in starts a second.

        None where ``saturating_cores`` is.
        """
        return _inverse(self.sections[0].held, 1e9) if self.saturating_cores else None

    @property
    def _longest(self) -> float:
        return self.sections[0].held.value if self.sections else 0.0


def capacities(
    points: Sequence[PointFigures], breakdown: pl.DataFrame, held: pl.DataFrame, cores: int
) -> Iterator[Capacity]:
    """Of each series the point of most starts at once, if its starts were traced.

    ``breakdown`` is ``breakdown.breakdown`` of the run, ``held`` is ``holders.Locks.held``.
    """
    largest: dict[str, PointFigures] = {}
    for point in points:
        known = largest.get(point.series)
        if point.parallel and point.causes() and point.instances >= FEWEST_INSTANCES:
            largest[point.series] = max(known or point, point, key=lambda each: each.instances)
    busy = breakdown.filter(pl.col("cause") == causes.ON_CPU)
    times = dict(busy.group_by("sample").agg(pl.col("summed").sum()).iter_rows())
    for point in largest.values():
        size = Counter(sample.batch for sample in point.traced_samples)
        samples = [each for each in point.traced_samples if size[each.batch] == point.instances]
        if not samples:
            continue
        groups = figures.batches(samples)
        spent = np.array([times.get(sample.index, 0) for sample in samples], np.float64)
        cpu = figures.share_interval(spent, np.ones_like(spent), groups)
        if not cpu.value:
            continue
        ready = point.all_ready
        yield Capacity(
            point=point,
            cores=cores,
            batches=np.unique(groups).size,
            cpu=cpu,
            sections=tuple(sorted(_sections(held, groups), key=lambda each: -each.held.value)),
            measured=ready and _inverse(ready, point.instances * 1e9),
        )


def _sections(held: pl.DataFrame, groups: np.ndarray) -> Iterator[Section]:
    """``groups`` has the batch of each start."""
    batches, starts = np.unique(groups, return_counts=True)
    for (lock,), rows in held.filter(pl.col("batch").is_in(batches.tolist())).group_by("lock"):
        by_batch = dict(rows.select("batch", "held").iter_rows())
        times = np.array([by_batch.get(int(batch), 0) for batch in batches], np.float64)
        if times.any():
            yield Section(
                str(lock), figures.share_interval(times, starts.astype(np.float64), batches)
            )


def _inverse(interval: Interval, scale: float) -> Interval:
    return Interval(scale / interval.value, scale / interval.high, scale / interval.low)
