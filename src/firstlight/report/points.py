"""Figures by which views compare points.

A sentence ranks two points only if ``apart`` is true, and words come from ``faster`` and
``as_long``, which say so where no difference is seen.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from firstlight.analysis import Analysis, figures, stats
from firstlight.analysis.figures import PointFigures, batches, latencies
from firstlight.analysis.stats import FEWEST_BATCHES, Floats, least_p
from firstlight.model import Interval
from firstlight.units import duration_interval, ratio_interval

LEVEL = 0.95
UNSEEN = "no difference seen"
TOO_FEW = "too few repetitions to compare"


def counts(point: PointFigures) -> dict[str, float]:
    """The backend's counts: medians over the point's untraced batches."""
    each = [sample.counts for sample in point.untraced_samples if sample.counts]
    names = (each or [{}])[0]
    return {n: float(np.median([batch[n] for batch in each if n in batch])) for n in names}


def find(analysis: Analysis, **setting: object) -> PointFigures | None:
    """The measured point with these settings, or None."""
    for point in analysis.points:
        if point.latency and setting.items() <= point.point.items():
            return point
    return None


def middle(point: PointFigures) -> float:
    """The median latency, in ns."""
    assert point.latency
    return point.latency.median.value


def over(
    slow: PointFigures, fast: PointFigures, q: float = 0.5, *, level: float = LEVEL
) -> Interval:
    """The ratio of a quantile of two points."""
    return stats.ratio_interval(
        latencies(slow.headline_samples),
        latencies(fast.headline_samples),
        q=q,
        level=level,
        groups_a=batches(slow.headline_samples),
        groups_b=batches(fast.headline_samples),
    )


def apart(slow: PointFigures, fast: PointFigures, comparisons: int = 1) -> bool:
    """Whether the median of ``slow`` is certainly greater.

    The whole interval of their ratio is above 1, at 95 % over all ``comparisons`` (Bonferroni).
    """
    level = 1 - (1 - LEVEL) / max(comparisons, 1)
    return over(slow, fast, level=level).low > 1


def unseen(*points: PointFigures, comparisons: int = 1) -> str:
    """Why these points are not ranked."""
    count = batch_count(*points)
    return UNSEEN if least_p(count, count) * max(comparisons, 1) <= 1 - LEVEL else TOO_FEW


def batch_count(*points: PointFigures) -> int:
    """The number of the headline's batches with a ready start, of the point that has the fewest."""
    return min(np.unique(batches(point.headline_samples)).size for point in points)


def faster(slow: PointFigures, fast: PointFigures, than: str = "") -> str:
    """``20.0× (19.6–20.4) faster``, or slower, or that no difference is seen.

    ``than`` names the slow point.
    """
    return _faster(over(slow, fast), batch_count(slow, fast), than)


def last_faster(slow: PointFigures, fast: PointFigures) -> str:
    """As ``faster``, by the times until the last start of a batch is ready."""
    sides = makespans(slow), makespans(fast)
    return _faster(stats.ratio_interval(*sides), min(side.size for side in sides))


def as_long(slow: PointFigures, fast: PointFigures) -> str:
    """``1.50× (1.45–1.55) as long``, or that no difference is seen."""
    return long(over(slow, fast), batch_count(slow, fast))


def long(ratio: Interval, count: int) -> str:
    """A ratio of times in words; ``count`` batches has the side with fewer."""
    if count < FEWEST_BATCHES:
        return TOO_FEW
    seen = ratio.low > 1 or ratio.high < 1
    return f"{ratio_interval(ratio)} as long" if seen else UNSEEN


def _faster(ratio: Interval, count: int, than: str = "") -> str:
    if count < FEWEST_BATCHES:
        return f"{TOO_FEW} with {than}" if than else TOO_FEW
    than = f" than {than}" if than else ""
    if ratio.low > 1:
        return f"{ratio_interval(ratio)} faster{than}"
    if ratio.high < 1:
        inverse = Interval(1 / ratio.value, 1 / ratio.high, 1 / ratio.low)
        return f"{ratio_interval(inverse)} slower{than}"
    return f"{UNSEEN}{than.replace(' than ', ' from ', 1)}"


def in_groups(points: Sequence[PointFigures]) -> list[list[PointFigures]]:
    """Points by median, the fastest first; every point is slower than all of earlier groups.

    Within a group each point is not told apart from one before it.
    """
    groups: list[list[PointFigures]] = []
    for point in sorted(points, key=middle):
        if groups and like(point, groups[-1], len(points) - 1):
            groups[-1].append(point)
        else:
            groups.append([point])
    return groups


def like(
    point: PointFigures, others: Sequence[PointFigures], comparisons: int
) -> list[PointFigures]:
    """Those of the others that are not told apart from the point."""
    return [
        other
        for other in others
        if not (apart(point, other, comparisons) or apart(other, point, comparisons))
    ]


def makespans(point: PointFigures) -> Floats:
    """The duration of each complete batch, in ns."""
    size = Counter(sample.batch for sample in point.untraced_samples)
    return figures.makespans(s for s in point.untraced_samples if size[s.batch] == point.instances)


def median(point: PointFigures) -> str:
    """The median latency with its interval, formatted."""
    assert point.latency
    return duration_interval(point.latency.median)
