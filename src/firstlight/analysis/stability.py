"""Whether a figure's repetitions are steady enough for it: their spread, their drift, two modes."""

from math import sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from firstlight.analysis.stats import Floats, ranks_of, students_within

_LEAST_DRIFT = 0.05
_MOST_STRETCHES = 1000
_NORMAL_MAD = 0.6744897501960817
"""The median absolute deviation of a normal distribution whose standard deviation is 1."""


def is_unstable(values: ArrayLike, order: ArrayLike) -> str | None:
    """Sentences on why a figure over ``values`` would mislead, or None; both of shape (n,).

    ``order`` says when each was measured (the number of its batch); values of equal order count
    as one, their median. The checks:

    - spread: the standard deviation, estimated from the median absolute deviation so that single
      outliers do not decide, is 10 % of the median or more. The 10 % is pyperf's ("the standard
      deviation is 10 % of the mean", ``pyperf check``).
    - drift: Spearman's rank correlation with time has p < 0.01, and the Theil-Sen line moves by
      5 % of the median or more from first to last. The first is Firecracker's significance, the
      second its noise threshold (``tools/ab_test.py``).
    - two modes: Silverman's test, p < 0.05 ("Using kernel density estimates to investigate
      multimodality", 1981), where each mode holds more than a tenth of the values.

    Fewer than ten values are called too few: the number that the paper and Firecracker repeat.
    """
    series = _medians_in_order(np.asarray(values, np.float64), np.asarray(order))
    if series.size < 10:
        some = "one repetition" if series.size == 1 else f"{series.size} repetitions"
        return f"Only {some}: too few to tell whether the figure is stable."
    centre = float(np.median(series))
    sentences = []
    spread = float(np.median(np.abs(series - centre))) / _NORMAL_MAD / abs(centre)
    if spread >= 0.10:
        sentences.append(f"Repetitions spread by {spread:.0%} of the median.")
    moved = _drift(series) / abs(centre)
    if moved:
        sentences.append(f"Repetitions drift by {moved:+.0%} of the median from first to last.")
    modes = _two_modes(series)
    if modes:
        sentences.append(
            f"Repetitions fall into two groups, near {_short(modes[0])} and {_short(modes[1])}."
        )
    return " ".join(sentences) or None


def _medians_in_order(values: Floats, order: NDArray[np.generic]) -> Floats:
    names, place = np.unique(order, return_inverse=True)
    return np.array([np.median(values[place == name]) for name in range(names.size)])


def _drift(series: Floats) -> float:
    """How far a significant trend moves over the series, in the unit of the values; else 0.

    Pairs of very many values would take gigabytes: the medians of stretches stand for them.
    """
    if np.ptp(series) == 0:
        return 0.0
    if series.size > _MOST_STRETCHES:
        series = np.array([np.median(part) for part in np.array_split(series, _MOST_STRETCHES)])
    time = np.arange(series.size)
    later, sooner = np.tril_indices(series.size, -1)
    moved = float(np.median((series[later] - series[sooner]) / (later - sooner)))
    moved *= series.size - 1
    if abs(moved) < _LEAST_DRIFT * abs(float(np.median(series))):
        return 0.0
    return 0.0 if _spearmans_p(time, series) >= 0.01 else moved


def _spearmans_p(time: NDArray[np.signedinteger], series: Floats) -> float:
    """The two-sided p of Spearman's rank correlation, by Student's t."""
    correlation = float(np.corrcoef(time, ranks_of(series))[0, 1])
    freedom, rest = series.size - 2, (1 - correlation) * (1 + correlation)
    return (
        1 - students_within(abs(correlation) * sqrt(freedom / rest), freedom) if rest > 0 else 0.0
    )


def _two_modes(series: Floats) -> tuple[float, float] | None:
    """The medians of the two groups that the values fall into, if they do."""
    if np.ptp(series) == 0:
        return None
    scaled = (series - series.mean()) / series.std()
    grid = np.linspace(scaled.min() - 0.5, scaled.max() + 0.5, 128)
    low, high = 0.01, 4.0
    while high - low > 0.01:
        width = (low + high) / 2
        low, high = (width, high) if _modes(scaled, grid, width) > 1 else (low, width)
    rng = np.random.default_rng(0)
    drawn = rng.choice(scaled, (200, scaled.size)) + high * rng.standard_normal((200, scaled.size))
    drawn /= sqrt(1 + high**2)
    if np.mean([_modes(row, grid, high) > 1 for row in drawn]) >= 0.05:
        return None
    density = _density(scaled, grid, low)
    tops = np.flatnonzero((density[1:-1] > density[:-2]) & (density[1:-1] >= density[2:])) + 1
    valley = grid[tops[0] + np.argmin(density[tops[0] : tops[-1] + 1])]
    below, above = series[scaled <= valley], series[scaled > valley]
    if min(below.size, above.size) <= 0.1 * series.size:
        return None
    return float(np.median(below)), float(np.median(above))


def _density(values: Floats, grid: Floats, width: float) -> Floats:
    return np.asarray(np.exp(-0.5 * ((grid[:, None] - values[..., None, :]) / width) ** 2).sum(-1))


def _modes(values: Floats, grid: Floats, width: float) -> NDArray[np.intp]:
    rises = np.diff(_density(values, grid, width), axis=-1) > 0
    tops: NDArray[np.intp] = np.sum(rises[..., :-1] & ~rises[..., 1:], axis=-1, dtype=np.intp)
    return tops


def _short(value: float) -> str:
    """Three digits, and no exponent: 4.12, 2260."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
