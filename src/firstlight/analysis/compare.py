"""Compares two runs, point by point: is B slower than A?

Only untraced starts are compared; of a run that has none, such as watch's, the traced ones. A point
is a regression when its median is significantly slower (a permutation test of whole batches, Holm's
correction over all points), and the whole 95 % interval of the change lies above the noise
threshold: neither a significant change of 1 % nor a large change by chance matters. Firecracker's
``tools/ab_test.py`` requires both with the same defaults, but for the estimate alone. A point is
also a regression when significantly more of its starts fail, by the same test of whole batches:
what makes one start of a burst fail often fails the others. So it is when no start became ready in
four batches or more, where no batch failed as a whole before.

Two runs are not interleaved, so a drift between them looks like a difference. Two runs of the same
thing, one after the other on a busy machine, differed by 8 % (3 to 18) with p = 0.006: hence the
interval.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from firstlight.analysis import sides
from firstlight.analysis.stability import is_unstable
from firstlight.analysis.stats import (
    FEWEST_BATCHES,
    least_p,
    permutation_test,
    quantile_interval,
    ratio_interval,
    without_range,
)
from firstlight.errors import FirstlightError
from firstlight.model import Ending, Header, Interval, Point, Sample, Setting
from firstlight.store import Run

SAME_MACHINE = ("machine", "cpu", "cores", "memory", "kernel", "virtualisation")
"""The facts of ``Header.environment`` that comparable runs share."""


@dataclass(frozen=True)
class Side:
    """A run at a point: starts, failed starts, median latency in ns."""

    starts: int
    failed: int
    batches: int
    median: Interval | None


@dataclass(frozen=True)
class Difference:
    """A point of both runs.

    ``ratio`` is median B over median A: 1.10 is 10 % slower. ``p`` is after Holm's correction.
    Both are None if a side has no ready start.
    """

    point: Point
    a: Side
    b: Side
    ratio: Interval | None
    p: float | None
    slower: bool
    fails_more: bool
    faster: bool
    regression: bool
    """B is slower, or fails more often."""
    improvement: bool
    """B is faster, and does not fail more often."""

    @property
    def word(self) -> str:
        """What is certain of B: slower, fails more, faster, or no difference seen."""
        words = [
            *(["slower"] if self.slower else ["faster"] if self.faster else []),
            *(["fails more"] if self.fails_more else []),
        ]
        return ", ".join(words) or "no difference seen"


@dataclass(frozen=True)
class Comparison:
    """All differences, and warnings about them."""

    differences: list[Difference]
    warnings: list[str]

    @property
    def regression(self) -> bool:
        """Whether any point is a regression."""
        return any(difference.regression for difference in self.differences)


def compare(
    a: Run,
    b: Run,
    *,
    threshold: float = 0.05,
    alpha: float = 0.01,
    across: bool = False,
    seed: int = 0,
) -> Comparison:
    """Compare run ``b`` with its baseline ``a``.

    ``threshold`` is the smallest relative change of the median that counts; ``alpha`` is the
    chance, over all points, of calling equal runs different. Axes with a single but different
    setting in each are left out (sides.of_runs). Raises FirstlightError if the runs are
    of different experiments or machines and ``across`` is not set, or share no point.
    """
    unlike = apart(a.header, b.header)
    if unlike and not across:
        raise FirstlightError(
            f"{a.path} and {b.path} cannot be compared: {'; '.join(unlike)}",
            "compare them anyway with --allow-different-hosts"
            if a.header.experiment == b.header.experiment
            else "give two runs of one experiment",
        )
    settings_a, settings_b = sides.settings(a), sides.settings(b)
    a, b = sides.of_runs(a, b)
    starts_a, starts_b = _by_point(a), _by_point(b)
    pairs = [_alike(starts_a[point], starts_b[point]) for point in starts_a if point in starts_b]
    if not pairs:
        raise FirstlightError(
            f"{a.path} and {b.path} have no point in common",
            f"measure the same axes: {', '.join(a.header.axes)}",
        )
    slower = _holm([_p_slower(*pair, seed) for pair in pairs])
    failing = _holm([_p_failing(*pair, seed) for pair in pairs])
    differences = [
        _difference(pair, p, p_failing, threshold, alpha, seed)
        for pair, p, p_failing in zip(pairs, slower, failing, strict=True)
    ]
    warnings = [f"The runs differ: {fact}." for fact in unlike]
    warnings += [
        f"A has {axis} {settings_a[axis][0]}, and B {settings_b[axis][0]}."
        for axis in settings_a
        if axis not in a.header.axes
    ]
    for name, here, there in (("A", starts_a, starts_b), ("B", starts_b, starts_a)):
        alone = [starts[0].point for point, starts in here.items() if point not in there]
        warnings += [f"Only {name} has {_words(point)}." for point in alone]
    for pair in pairs:
        warnings += _warnings(pair, len(pairs), alpha)
    return Comparison(differences, warnings)


def apart(a: Header, b: Header) -> list[str]:
    """The reasons why two runs are not comparable; empty if they are."""
    sides = [
        ("experiment", a.experiment, b.experiment),
        ("end point", a.end_point, b.end_point),
        ("cold", a.cold, b.cold),
        *((fact, a.environment.get(fact), b.environment.get(fact)) for fact in SAME_MACHINE),
    ]
    return [f"{name} {left} and {right}" for name, left, right in sides if left != right]


def _by_point(run: Run) -> dict[frozenset[tuple[str, Setting]], list[Sample]]:
    """Each point's starts for the headline."""
    headline = run.header.presentation.headline
    starts: dict[frozenset[tuple[str, Setting]], list[Sample]] = {}
    for sample in run.samples:
        if headline == "all" or sample.traced == (headline == "traced"):
            starts.setdefault(frozenset(sample.point.items()), []).append(sample)
    return starts


def _alike(a: list[Sample], b: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """The starts of both that are traced, or those that are not: whichever has more. A run that
    watch kept has both, and tracing makes a start longer. All, where neither is in both.
    """
    kinds = [
        tuple([each for each in side if each.traced == is_traced] for side in (a, b))
        for is_traced in (False, True)
    ]
    alike = max(kinds, key=lambda pair: min(map(len, pair)))
    return (alike[0], alike[1]) if all(alike) else (a, b)


def _ready(starts: Sequence[Sample]) -> tuple[list[int], list[int]]:
    """The latencies of the ready starts in ns, 1 at least, and the batch of each."""
    ready = [each for each in starts if each.ending is Ending.READY]
    return [max(each.latency or 0, 1) for each in ready], [each.batch for each in ready]


def _p_slower(a: list[Sample], b: list[Sample], seed: int) -> float | None:
    (ns_a, batches_a), (ns_b, batches_b) = _ready(a), _ready(b)
    if not ns_a or not ns_b:
        return None
    return permutation_test(ns_a, ns_b, groups_a=batches_a, groups_b=batches_b, seed=seed)


def _p_failing(a: list[Sample], b: list[Sample], seed: int) -> float:
    """The probability that batches of B fail this much more by chance; 1 if they do not."""
    failed_a, failed_b = _failures(a), _failures(b)
    if np.mean(failed_b) <= np.mean(failed_a):
        return 1.0
    return permutation_test(failed_a, failed_b, seed=seed)


def _failures(starts: list[Sample]) -> list[float]:
    """The share of each batch's starts that failed."""
    batches: dict[int, list[bool]] = {}
    for each in starts:
        batches.setdefault(each.batch, []).append(each.ending is not Ending.READY)
    return [float(np.mean(failed)) for failed in batches.values()]


def _holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction (1979); None values are skipped."""
    tested = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    reached = 0.0
    for rank, (p, place) in enumerate(tested):
        reached = max(reached, min(1.0, p * (len(tested) - rank)))
        corrected[place] = reached
    return corrected


def _difference(
    pair: tuple[list[Sample], list[Sample]],
    p: float | None,
    p_failing: float | None,
    threshold: float,
    alpha: float,
    seed: int,
) -> Difference:
    (ns_a, batches_a), (ns_b, batches_b) = map(_ready, pair)
    ratio, slower, faster = None, False, False
    if p is not None:
        ratio = ratio_interval(ns_b, ns_a, groups_a=batches_b, groups_b=batches_a, seed=seed)
        slower = p < alpha and ratio.low > 1 + threshold
        faster = p < alpha and ratio.high < 1 - threshold
    # Where no batch failed as a whole, four that do are no chance, whatever the correction says.
    failed_a, failed_b = map(_failures, pair)
    all_fail = max(failed_a) < min(failed_b) == 1 and len(failed_b) >= FEWEST_BATCHES
    fails_more = all_fail or (p_failing is not None and p_failing < alpha)
    return Difference(
        pair[0][0].point,
        _side(pair[0], seed),
        _side(pair[1], seed),
        ratio and without_range(ratio, min(len(set(each)) for each in (batches_a, batches_b))),
        p,
        slower=slower,
        fails_more=fails_more,
        faster=faster,
        regression=slower or fails_more,
        improvement=faster and not fails_more,
    )


def _side(starts: list[Sample], seed: int) -> Side:
    ns, batches = _ready(starts)
    count = len(set(batches))
    return Side(
        len(starts),
        len(starts) - len(ns),
        count,
        without_range(quantile_interval(ns, 0.5, groups=batches, seed=seed), count) if ns else None,
    )


def _warnings(pair: tuple[list[Sample], list[Sample]], points: int, alpha: float) -> Iterator[str]:
    words = _words(pair[0][0].point)
    if pair[0][0].traced != pair[1][0].traced:
        yield f"{words}: only one run has traced starts, and tracing makes a start longer."
    ready = [_ready(starts) for starts in pair]
    batches = [len(set(order)) for _, order in ready]
    if least_p(*batches) * points >= alpha:
        yield (
            f"{words}: {batches[0]} and {batches[1]} repetitions are too few for any change to be"
            f" significant among {points} points."
        )
        return
    for (ns, order), name in zip(ready, "AB", strict=True):
        trouble = is_unstable(np.array(ns) / 1e6, order)
        if trouble:
            yield f"{words}, {name}: {trouble.rstrip('.')}{' (ms).' if 'near' in trouble else '.'}"


def _words(point: Point) -> str:
    return ", ".join(f"{axis} {setting}" for axis, setting in point.items())
