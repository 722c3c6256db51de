"""Figures by which views compare points.

A sentence ranks two points only if ``apart`` is true.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from firstlight.analysis import Analysis, figures, stats
from firstlight.analysis.figures import PointFigures, batches, latencies
from firstlight.analysis.stats import Floats
from firstlight.model import Interval
from firstlight.units import duration_interval

LEVEL = 0.95


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
        latencies(slow.untraced_samples),
        latencies(fast.untraced_samples),
        q=q,
        level=level,
        groups_a=batches(slow.untraced_samples),
        groups_b=batches(fast.untraced_samples),
    )


def apart(slow: PointFigures, fast: PointFigures, comparisons: int = 1) -> bool:
    """Whether the median of ``slow`` is certainly greater.

    The whole interval of their ratio is above 1, at 95 % over all ``comparisons`` (Bonferroni).
    """
    return over(slow, fast, level=1 - (1 - LEVEL) / max(comparisons, 1)).low > 1


def in_groups(points: Sequence[PointFigures]) -> list[list[PointFigures]]:
    """Points by median, the fastest first; a group holds those not told apart from its first."""
    groups: list[list[PointFigures]] = []
    for point in sorted(points, key=middle):
        if groups and not apart(point, groups[-1][0], len(points) - 1):
            groups[-1].append(point)
        else:
            groups.append([point])
    return groups


def last_over(slow: PointFigures, fast: PointFigures) -> Interval:
    """The ratio of the times until the last start of a batch is ready."""
    return stats.ratio_interval(makespans(slow), makespans(fast))


def makespans(point: PointFigures) -> Floats:
    """The duration of each complete batch, in ns."""
    size = Counter(sample.batch for sample in point.untraced_samples)
    return figures.makespans(s for s in point.untraced_samples if size[s.batch] == point.instances)


def median(point: PointFigures) -> str:
    """The median latency with its interval, formatted."""
    assert point.latency
    return duration_interval(point.latency.median)
