"""Decides the order of a run's batches, and when to stop.

Without a budget a run has a fixed number of repetitions. With one it ends when the time is used up:
first every point is measured once, those with few instances first, then once traced; after
``LEAST`` repetitions of each, every further one goes to the point whose median is known least well,
by its relative 95 % interval.

A run whose first repetition of every point has no ready start ends there: more would fail alike.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from statistics import fmean

from firstlight.analysis.stats import FEWEST_BATCHES, quantile_interval
from firstlight.lab.experiments import Case
from firstlight.model import Point, Sample

LEAST = FEWEST_BATCHES
"""Points with fewer repetitions are not compared."""
_SAMPLES_MIN = 3  # per repetition, for points with few instances
_RESAMPLES = 300  # of an interval that only ranks points


@dataclass(frozen=True)
class Batch:
    """An entry of the schedule."""

    case: Case
    repetition: int
    traced: bool

    @property
    def point(self) -> Point:
        """The settings of its case."""
        return self.case.point


@dataclass
class Schedule:
    """The batches of a run, in the order of measurement.

    ``repetitions`` is the number for each point; with a ``budget``, in seconds, it is None or the
    most. ``traced(case)`` says whether a case is traced as well. ``earlier`` are the samples of an
    interrupted run that this one continues. ``ended`` is called with the samples of each batch.
    Points that differ in the axis ``beside`` alone are measured one right after the other; so are
    the batches of each round and point, if ``together``. ``is_given_up`` once no start of a whole
    round became ready. A budget is counted from ``begun``, by the clock; 0 is now.
    """

    cases: Sequence[Case]
    seed: int
    traced: Callable[[Case], bool]
    repetitions: int | None
    budget: float | None = None
    earlier: Sequence[Sample] = ()
    beside: str = ""
    together: bool = False
    clock: Callable[[], float] = time.monotonic
    is_given_up: bool = False
    begun: float = 0.0
    _took: dict[int, float] = field(default_factory=dict)
    _rest: Counter[tuple[int, bool]] = field(default_factory=Counter)
    _times: dict[tuple[int, bool], list[float]] = field(default_factory=dict)
    _known: dict[int, tuple[list[int], list[int]]] = field(default_factory=dict)
    _rounds: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        """Start the clock."""
        self.begun = self.begun or self.clock()
        self._order = random.Random(self.seed)  # noqa: S311 - a schedule, not a secret
        self._done = _done(self.earlier)
        self._has_ready = any(sample.latency is not None for sample in self.earlier)
        for sample in self.earlier:
            self._learn(self._number(sample.point), sample)

    def batches(self) -> Iterator[Batch]:
        """The batches. With a budget, each depends on the samples given to ``ended`` before."""
        least, every = self.repetitions or LEAST, range(len(self.cases))
        rounds: Iterable[Iterable[Batch]]
        if self.budget is None:
            planned = [self._round(every) for _ in range(least)]
            self._rest.update(
                (self._number(batch.point), batch.traced) for each in planned for batch in each
            )
            rounds = planned
        else:
            for number in every:
                for batch in self._of(self.cases[number], 0):
                    self._rest[number, batch.traced] += self.repetitions or 0
            self._rest.subtract(
                (self._number(each.point), each.traced)
                for each in {each.batch: each for each in self.earlier}.values()
            )
            rounds = (self._timely(self._round(every)) for _ in range(min(least, LEAST)))
        for number, batches in enumerate(rounds):
            if number and len(self._took) == len(self.cases) and not self._has_ready:
                self.is_given_up = True
                return
            yield from batches
        while self.budget is not None and (open_ := self._open()):
            yield from self._timely(self._round(self._like(max(open_, key=self._width))))

    def ended(self, batch: Batch, samples: Sequence[Sample], seconds: float) -> None:
        """Record how long a batch took."""
        number = self._number(batch.point)
        self._took[number] = seconds
        self._rest[number, batch.traced] -= 1
        self._times.setdefault((number, batch.traced), []).append(seconds)
        self._has_ready |= any(sample.latency is not None for sample in samples)
        for sample in samples:
            self._learn(number, sample)

    def done(self, spent: float) -> float:
        """The share of the time that is behind, after ``spent`` seconds.

        A batch to come takes as long as those of its case did, traced or not; of a case that was
        not measured yet, as long as others did for as much work. A budget ends them.
        """
        measured = sum(map(sum, self._times.values()))
        if not measured:
            return 0.0
        whole = inf if self.budget and not self.repetitions else spent + self._left(measured)
        if self.budget is not None:
            whole = min(whole, self.budget - (self.clock() - self.begun - spent))
        return min(spent / whole, 1.0) if whole > 0 else 1.0

    def _left(self, measured: float) -> float:
        """How long the batches to come take, where those before took ``measured`` seconds."""
        known = sum(len(took) * work(self.cases[n]) for (n, _), took in self._times.items())
        return sum(
            count * (fmean(took) if (took := self._times.get((number, traced)))
                     else work(self.cases[number]) * measured / known)
            for (number, traced), count in self._rest.items()
        )  # fmt: skip

    def short(self) -> int:
        """How many points have fewer repetitions than ``LEAST``, or than asked for."""
        least = min(LEAST, self.repetitions or LEAST)
        return sum(
            len(set(self._known.get(number, ((), ()))[1])) < least
            for number in range(len(self.cases))
        )

    def _round(self, numbers: Sequence[int]) -> list[Batch]:
        """One more repetition of some cases, in random order, so that a drift of the machine
        affects all.
        """
        blocks: dict[object, list[Batch]] = {}
        for number in numbers:
            for place, batch in enumerate(self._of(self.cases[number], self._rounds[number])):
                key: object = number, 0 if self.together else place
                if self.beside:
                    key = self._others(number), place // (1 + self.traced(batch.case))
                blocks.setdefault(key, []).append(batch)
            self._rounds[number] += 1
        order = list(blocks.values())
        self._order.shuffle(order)
        for block in order:
            self._order.shuffle(block)
        batches = [batch for block in order for batch in block]
        if self.budget is not None and not self._took:
            batches = _once_each_first(batches)
        return [batch for batch in batches if not self._is_done(batch)]

    def _others(self, number: int) -> frozenset[tuple[str, object]]:
        """A case's settings but for ``beside``."""
        point = self.cases[number].point
        return frozenset((axis, value) for axis, value in point.items() if axis != self.beside)

    def _like(self, number: int) -> list[int]:
        """The case, and those that are measured beside it."""
        if not self.beside:
            return [number]
        alike = self._others(number)
        return [each for each in range(len(self.cases)) if self._others(each) == alike]

    def _of(self, case: Case, repetition: int) -> Iterator[Batch]:
        """Points with few instances get more batches, for as many samples."""
        for _ in range(max(1, _SAMPLES_MIN // case.instances)):
            yield Batch(case, repetition, traced=False)
            if self.traced(case):
                yield Batch(case, repetition, traced=True)

    def _timely(self, batches: Sequence[Batch]) -> Iterator[Batch]:
        """Those that end in time, and the very first."""
        for batch in batches:
            if self.budget is not None and self._took:
                spent = self.clock() - self.begun
                if spent + self._expected(batch) > self.budget:
                    continue
            yield batch

    def _expected(self, batch: Batch) -> float:
        """How long a batch takes: as the latest that was traced like it, or the latest of its case,
        or in proportion to the slowest.
        """
        number = self._number(batch.point)
        if alike := self._times.get((number, batch.traced)):
            return alike[-1]
        if number in self._took:
            return self._took[number]
        paces = (took / work(self.cases[n]) for n, took in self._took.items())
        return max(paces, default=0.0) * work(batch.case)

    def _open(self) -> list[int]:
        """The cases that may have one more repetition, and for which there is time."""
        assert self.budget is not None
        left = self.budget - (self.clock() - self.begun)
        return [
            number
            for number in range(len(self.cases))
            if (self.repetitions is None or self._rounds[number] < self.repetitions)
            and 0 < self._took.get(number, left) < left
        ]

    def _width(self, number: int) -> float:
        """The relative width of a median's interval; a point with no ready start has none."""
        latencies, batches = self._known.get(number, ([], []))
        if not latencies:
            return 0.0
        interval = quantile_interval(latencies, 0.5, groups=batches, resamples=_RESAMPLES)
        return (interval.high - interval.low) / max(interval.value, 1)

    def _learn(self, number: int, sample: Sample) -> None:
        if sample.latency is not None and not sample.traced:
            latencies, batches = self._known.setdefault(number, ([], []))
            latencies.append(sample.latency)
            batches.append(sample.batch)

    def _number(self, point: Point) -> int:
        return next(number for number, case in enumerate(self.cases) if case.point == point)

    def _is_done(self, batch: Batch) -> bool:
        """Whether the earlier run has measured it. Cases that cannot be traced are measured without
        tracing.
        """
        for traced in (batch.traced, False):
            key = (frozenset(batch.point.items()), batch.repetition, traced)
            if self._done[key]:
                self._done[key] -= 1
                return True
        return False


def _once_each_first(batches: Sequence[Batch]) -> list[Batch]:
    """Each case once, then once traced, then again: those that take little before others."""
    count: Counter[tuple[int, bool]] = Counter()
    places: list[tuple[int, bool, int, int]] = []
    for batch in batches:
        key = (id(batch.case), batch.traced)
        places.append((count[key], batch.traced, work(batch.case), len(places)))
        count[key] += 1
    return [batches[place[-1]] for place in sorted(places)]


Done = Counter[tuple[frozenset[tuple[str, object]], int, bool]]


def _done(samples: Sequence[Sample]) -> Done:
    """How often each batch was measured, by point, repetition and whether it was traced."""
    batches = {
        sample.batch: (frozenset(sample.point.items()), sample.repetition, sample.traced)
        for sample in samples
    }
    return Counter(batches.values())


def work(case: Case) -> int:
    """The relative duration of one of its batches, roughly: those in the background start too."""
    background = case.point.get("background", 0)
    return case.instances + (background if isinstance(background, int) else 0) + 4
