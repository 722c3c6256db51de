"""Quantiles with intervals, and tests between samples: pure functions on numpy arrays.

Instances of one burst are not independent: they share the machine, its caches and its locks,
and one slow moment slows all of them. Every function that takes ``groups`` (the batch of each
value, shape ``(n,)``) therefore resamples or permutes whole batches, never single values: the
cluster bootstrap of Davison and Hinkley, "Bootstrap Methods and their Application" (1997),
section 3.8. Without groups each value is a batch of its own. The unit of every result is the
unit of the values.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, islice
from math import atan, ceil, comb, cos, log, pi, sin, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from firstlight.model import Interval

Floats = NDArray[np.float64]
Counts = NDArray[np.int32]

FEWEST_BATCHES = 4
"""With fewer batches on each side no difference has p < 0.05, so nothing is ranked by them."""

_BLOCK = 4_000_000
"""Number of resampled values in memory at once: tens of megabytes."""


@dataclass(frozen=True)
class Summary:
    """The quantiles of ``count`` values out of ``batches`` batches.

    A tail is None if there are too few values to bound it; see ``samples_needed``. Of one batch the
    intervals have no width.
    """

    count: int
    batches: int
    median: Interval
    p95: Interval | None
    p99: Interval | None


def samples_needed(q: float, level: float = 0.95) -> int:
    """The smallest number of independent values whose range contains the q-quantile at this level.

    The largest of n values lies above the q-quantile with probability 1 - q**n, and the interval
    may miss on each side with probability (1 - level) / 2: 6 values for a median, 72 for P95,
    368 for P99 (Conover, "Practical Nonparametric Statistics", 3rd edition, section 3.2).
    """
    side = (1 - level) / 2
    return ceil(log(side) / log(max(q, 1 - q)))


def resampled_quantiles(
    values: ArrayLike,
    q: float | tuple[float, ...],
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> Floats:
    """The q-quantiles of bootstrap resamples of whole batches.

    ``values`` has shape (n,) or (n, k); the k columns of one row are resampled together, so that
    a figure made of several of them keeps their dependence. Returns shape (resamples, k) for one
    q, (resamples, len(q)) for several of one column. Quantiles interpolate linearly (Hyndman and
    Fan's type 7, numpy's default). Raises ValueError if there are no values.
    """
    table = np.asarray(values, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    batch, batches = _batches(table.shape[0], groups)
    levels = q if isinstance(q, tuple) else (q,)
    order = np.argsort(table, axis=0, kind="stable")
    rng = np.random.default_rng(seed)
    blocks = []
    for rows in _blocks(resamples, max(table.shape[0], batches)):
        draws = rng.integers(0, batches, size=(rows, batches))
        draws += np.arange(rows)[:, None] * batches
        drawn = np.bincount(draws.ravel(), minlength=rows * batches).reshape(rows, batches)
        counts = drawn.astype(np.int32)
        blocks.append(
            np.column_stack(
                [
                    quantiles
                    for column in range(table.shape[1])
                    for quantiles in _counted_quantiles(
                        table[order[:, column], column], counts[:, batch[order[:, column]]], levels
                    )
                ]
            )
        )
    return np.concatenate(blocks)


def interval(value: float, draws: Floats, *, batches: int, level: float = 0.95) -> Interval:
    """The expanded percentile interval of bootstrap ``draws``, widened to include the estimate.

    Draws from n ``batches`` vary too little, by the square root of (n - 1) / n, and as if their
    spread were known; so quantiles further out are taken, those of Student's t: Hesterberg, "What
    Teachers Should Know about the Bootstrap" (2015), section 4.3. With fewer than six batches that
    is the whole range of the draws.
    """
    return intervals(np.array([value]), draws.reshape(-1, 1), batches=batches, level=level)[0]


def intervals(
    values: Floats, draws: Floats, *, batches: int, level: float = 0.95
) -> list[Interval]:
    """As ``interval``, of each of ``values``, shape (k,), by a column of ``draws``."""
    side = 0.0
    if batches > 1:
        reach = sqrt(batches / (batches - 1)) * students_quantile(level, batches - 1)
        side = NormalDist().cdf(-reach)
    low, high = np.quantile(draws, (side, 1 - side), axis=0)
    edges = np.array([values, np.minimum(low, values), np.maximum(high, values)])
    return [Interval(*column) for column in edges.T.tolist()]


def quantile_interval(
    values: ArrayLike,
    q: float,
    *,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
    groups: ArrayLike | None = None,
) -> Interval:
    """The q-quantile of ``values``, shape (n,), with its bootstrap interval (``interval``).

    One batch cannot be resampled: the interval is then the whole range of the values. With fewer
    than ``samples_needed(q)`` values the interval is too narrow. Raises ValueError if there are no
    values.
    """
    table = np.asarray(values, dtype=np.float64)[:, None]
    return quantile_intervals(table, q, level=level, seed=seed, resamples=resamples, groups=groups)[
        0
    ]


def quantile_intervals(
    table: Floats,
    q: float,
    *,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
    groups: ArrayLike | None = None,
) -> list[Interval]:
    """As ``quantile_interval``, of each column of ``table``, shape (n, k); batches are resampled
    once for all of them.
    """
    batches = _batches(len(table), groups)[1]
    values = np.quantile(table, q, axis=0)
    if batches == 1:
        edges = np.array([values, table.min(axis=0), table.max(axis=0)])
        return [Interval(*column) for column in edges.T.tolist()]
    draws = resampled_quantiles(table, q, groups=groups, seed=seed, resamples=resamples)
    return intervals(values, draws, batches=batches, level=level)


def summary(values: ArrayLike, *, groups: ArrayLike | None = None, seed: int = 0) -> Summary:
    """Median, P95 and P99 of ``values``, shape (n,), with 95 % intervals.

    Raises ValueError if there are no values.
    """
    flat = np.asarray(values, dtype=np.float64)
    levels = (0.5, 0.95, 0.99)
    draws = resampled_quantiles(flat, levels, groups=groups, seed=seed)
    batches = _batches(flat.size, groups)[1]
    median, p95, p99 = (
        without_range(_bounded(flat, q, draws[:, column], groups, 0.95), batches)
        for column, q in enumerate(levels)
    )
    return Summary(
        flat.size,
        batches,
        median,
        p95 if flat.size >= samples_needed(0.95) else None,
        p99 if flat.size >= samples_needed(0.99) else None,
    )


def without_range(interval: Interval, batches: int) -> Interval:
    """The interval; of one batch, whose range is none, its value alone."""
    value = interval.value
    return Interval(value, value, value) if batches == 1 else interval


def ratio_interval(
    a: ArrayLike,
    b: ArrayLike,
    *,
    q: float = 0.5,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
    groups_a: ArrayLike | None = None,
    groups_b: ArrayLike | None = None,
) -> Interval:
    """The q-quantile of ``a`` over that of ``b`` (how many times faster b is), with its interval.

    The two sides are resampled independently. Values must be positive. One batch cannot be
    resampled: if a side has only one, the bounds are those of the sides' own intervals over each
    other (``quantile_interval``). The interval contains 1 unless ``permutation_test`` tells the
    sides apart at this level: of few batches the bootstrap alone is too sure. Raises ValueError if
    a side has no values.
    """
    above = resampled_quantiles(a, q, groups=groups_a, seed=seed, resamples=resamples)[:, 0]
    below = resampled_quantiles(b, q, groups=groups_b, seed=seed + 1, resamples=resamples)[:, 0]
    ratio = _quantile(a, q) / _quantile(b, q)
    batches = min(_batches(np.size(side), of)[1] for side, of in ((a, groups_a), (b, groups_b)))
    if batches == 1:
        top = _bounded(np.asarray(a, np.float64), q, above, groups_a, level)
        bottom = _bounded(np.asarray(b, np.float64), q, below, groups_b, level)
        bounds = Interval(ratio, top.low / bottom.high, top.high / bottom.low)
    else:
        bounds = interval(ratio, above / below, batches=batches, level=level)
    return _judged(
        bounds, 1, level,
        lambda: permutation_test(a, b, q=q, groups_a=groups_a, groups_b=groups_b, seed=seed),
    )  # fmt: skip


def difference_interval(
    a: ArrayLike,
    b: ArrayLike,
    *,
    groups_a: ArrayLike | None = None,
    groups_b: ArrayLike | None = None,
    seed: int = 0,
) -> Interval:
    """The median of ``a`` less the median of ``b``, with its bootstrap interval.

    It contains 0 unless ``permutation_test`` tells the sides apart.
    """
    draws = [
        resampled_quantiles(np.asarray(side, np.float64), 0.5, groups=groups, seed=seed + place)[
            :, 0
        ]
        for place, (side, groups) in enumerate(((a, groups_a), (b, groups_b)))
    ]
    bounds = interval(
        _quantile(a, 0.5) - _quantile(b, 0.5),
        draws[0] - draws[1],
        batches=min(_batches(np.size(side), of)[1] for side, of in ((a, groups_a), (b, groups_b))),
    )
    return _judged(
        bounds, 0, 0.95,
        lambda: permutation_test(a, b, groups_a=groups_a, groups_b=groups_b, seed=seed),
    )  # fmt: skip


def permutation_test(
    a: ArrayLike,
    b: ArrayLike,
    *,
    q: float = 0.5,
    groups_a: ArrayLike | None = None,
    groups_b: ArrayLike | None = None,
    seed: int = 0,
    resamples: int = 10_000,
) -> float:
    """The two-sided p of a difference this large, if both sides are alike.

    Each batch has a rank by its q-quantile, and the statistic is the sum of one side's ranks
    (Wilcoxon 1945), so that no single batch decides. Whole batches change sides. All assignments
    are tried when they are at most ``resamples``; otherwise p is (1 + as extreme) / (1 +
    resamples), so that it is never zero (Phipson and Smyth, "Permutation P-values should never be
    zero", 2010). Raises ValueError if a side has no values.
    """
    sides = _batch_quantiles(a, q, groups_a), _batch_quantiles(b, q, groups_b)
    count_a, count_b = (side.size for side in sides)
    ranks = ranks_of(np.concatenate(sides))
    middle = count_a * (count_a + count_b + 1) / 2
    observed = abs(ranks[:count_a].sum() - middle)
    exact = comb(count_a + count_b, count_a) <= resamples
    as_extreme = tried = 0
    for on_side_a in _assignments(count_a, count_b, None if exact else resamples, seed):
        as_extreme += int(np.count_nonzero(np.abs(on_side_a @ ranks - middle) >= observed - 1e-6))
        tried += len(on_side_a)
    return as_extreme / tried if exact else (1 + as_extreme) / (1 + tried)


def least_p(batches_a: int, batches_b: int, *, resamples: int = 10_000) -> float:
    """The smallest p that ``permutation_test`` can give for these numbers of batches."""
    assignments = comb(batches_a + batches_b, batches_a)
    return min(2, assignments) / assignments if assignments <= resamples else 1 / (1 + resamples)


def growth_exponent(
    sizes: ArrayLike, values: ArrayLike, *, seed: int = 0, resamples: int = 2000
) -> Interval:
    """The exponent e of values ~ sizes**e: 1 is linear, 0 is constant; shapes (n,), all positive.

    The slope of log(values) on log(sizes) by least squares; its interval resamples the values of
    each size apart. Raises ValueError unless there are two sizes.
    """
    x, y = np.log(np.asarray(sizes, np.float64)), np.log(np.asarray(values, np.float64))
    levels = np.unique(x)
    if levels.size < 2:
        raise ValueError("growth needs two sizes")
    rng = np.random.default_rng(seed)
    rows = [np.flatnonzero(x == level) for level in levels]
    drawn = np.concatenate([rng.choice(row, (resamples, row.size)) for row in rows], axis=1)
    fewest = min(row.size for row in rows)
    return interval(float(_slope(x, y)), _slope(x[drawn], y[drawn]), batches=fewest)


def _slope(x: Floats, y: Floats) -> Floats:
    apart = x - x.mean(axis=-1, keepdims=True)
    return np.asarray((apart * y).sum(axis=-1) / (apart**2).sum(axis=-1))


def ranks_of(values: Floats) -> Floats:
    """The ranks of values, from 1; equal values share the middle one."""
    _, place, times = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(times) - (times - 1) / 2)[place])


def _quantile(values: ArrayLike, q: float) -> float:
    return float(np.quantile(np.asarray(values, np.float64), q))


def _batches(size: int, groups: ArrayLike | None) -> tuple[NDArray[np.intp], int]:
    if size == 0:
        raise ValueError("no values")
    if groups is None:
        return np.arange(size), size
    names, batch = np.unique(np.asarray(groups), return_inverse=True)
    if batch.shape != (size,):
        raise ValueError(f"{size} values have {batch.size} groups")
    return batch, names.size


def _blocks(resamples: int, width: int) -> Iterator[int]:
    rows = max(1, _BLOCK // width)
    for start in range(0, resamples, rows):
        yield min(rows, resamples - start)


def _counted_quantiles(values: Floats, counts: Counts, qs: tuple[float, ...]) -> Iterator[Floats]:
    """Quantiles of rows that hold values[i] counts[row, i] times; values ascend."""
    reached = np.cumsum(counts, axis=1, dtype=np.int32)
    total = reached[:, -1:]
    for q in qs:
        place = q * (total - 1)
        floor = np.floor(place)
        low, high = (
            values[np.argmax(reached > end.astype(np.int32), axis=1)]
            for end in (floor, np.ceil(place))
        )
        yield low + (high - low) * (place - floor)[:, 0]


def _bounded(
    values: Floats, q: float, draws: Floats, groups: ArrayLike | None, level: float
) -> Interval:
    value = _quantile(values, q)
    batches = _batches(values.size, groups)[1]
    if batches == 1:
        return Interval(value, float(values.min()), float(values.max()))
    return interval(value, draws, batches=batches, level=level)


def _judged(bounds: Interval, equal: float, level: float, test: Callable[[], float]) -> Interval:
    """The bounds; with ``equal`` inside, unless the test tells the sides apart."""
    if bounds.low <= equal <= bounds.high or test() <= 1 - level:
        return bounds
    return Interval(bounds.value, min(bounds.low, equal), max(bounds.high, equal))


def _batch_quantiles(values: ArrayLike, q: float, groups: ArrayLike | None) -> Floats:
    """The q-quantile of each batch."""
    flat = np.asarray(values, np.float64)
    batch, count = _batches(flat.size, groups)
    if count == flat.size:
        return flat
    ordered = flat[np.argsort(batch, kind="stable")]
    ends = np.cumsum(np.bincount(batch))[:-1]
    return np.array([np.quantile(part, q) for part in np.split(ordered, ends)])


def _assignments(
    count_a: int, count_b: int, resamples: int | None, seed: int
) -> Iterator[NDArray[np.bool_]]:
    """Blocks of rows that say which batches are on side a: all ways, or this many random ones."""
    batches = count_a + count_b
    if resamples is None:
        ways = combinations(range(batches), count_a)
        while chosen := list(islice(ways, max(1, _BLOCK // batches))):
            sides = np.zeros((len(chosen), batches), np.bool_)
            np.put_along_axis(sides, np.array(chosen), True, axis=1)
            yield sides
        return
    rng = np.random.default_rng(seed)
    for rows in _blocks(resamples, batches):
        yield rng.permuted(np.tile(np.arange(batches) < count_a, (rows, 1)), axis=1)


def students_within(t: float, freedom: int) -> float:
    """The probability that Student's t, of so many degrees of freedom, lies between -t and t.

    Abramowitz and Stegun, "Handbook of Mathematical Functions" (1964), 26.7.3 and 26.7.4. scipy has
    it too, but would be a tenth of a report's CPU time, to import.
    """
    angle = atan(t / sqrt(freedom))
    terms = np.arange(1 + freedom % 2, freedom - 1, 2)
    ratios = terms / (terms + 1) * cos(angle) ** 2
    series = 1 + float(np.cumprod(ratios).sum())
    if freedom % 2 == 0:
        return sin(angle) * series
    return (angle + (sin(angle) * cos(angle) * series if freedom > 1 else 0.0)) * 2 / pi


@cache
def students_quantile(level: float, freedom: int) -> float:
    """The t between whose negative and itself Student's t lies with probability ``level``."""
    low, high = 0.0, 1.0
    while students_within(high, freedom) < level:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if students_within(middle, freedom) < level else (low, middle)
    return middle
