"""What each prepared part gains, from runs that leave it out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from firstlight.analysis import Analysis, stats
from firstlight.analysis.figures import batches, latencies
from firstlight.analysis.stats import Floats
from firstlight.model import EndPoint, Interval, Sample
from firstlight.report.points import batch_count, find

BASES = {"sandboxes": "nothing", "everything": "nothing"}
"""The start with which those without these parts are compared."""
_PACKET = "packet"


@dataclass(frozen=True)
class Worth:
    """What a prepared part gains for a start of ``instances`` at once.

    ``longer`` is the median without it over the median with it, ``extra`` the difference in ns, and
    ``batches`` the number of the side that has fewer. ``end`` is the run's end point, or the first
    packet's answer.
    """

    part: str
    instances: int
    end: str
    median: Interval
    longer: Interval
    extra: float
    batches: int

    @property
    def is_certain(self) -> bool:
        """Whether starts without it certainly take longer."""
        return self.batches >= stats.FEWEST_BATCHES and self.longer.low > 1


def worth(analysis: Analysis) -> list[Worth]:
    """What each part left out by an ablation gains, by end, instances and position.

    To the run's end point with each number of instances, and to the first packet with the fewest.
    Sandboxes and everything are compared with a start that lacks nothing; the other parts with one
    that only lacks sandboxes, because a sandbox contains them all.
    """
    gains = []
    fewest = min((point.instances for point in analysis.points), default=1)
    for point in analysis.points:
        part = str(point.point["without"])
        base = find(analysis, without=BASES.get(part, "sandboxes"), instances=point.instances)
        if part == "nothing" or point.latency is None or base is None:
            continue
        ends = [(str(analysis.end_point), latencies), (str(EndPoint.FIRST_PACKET), _to_packet)]
        both = point.instances == fewest and analysis.end_point is not EndPoint.FIRST_PACKET
        for end, times in ends if both else ends[:1]:
            without, having = times(point.untraced_samples), times(base.untraced_samples)
            if not (without.size == len(point.untraced_samples) and having.size):
                continue
            groups = batches(point.untraced_samples), batches(base.untraced_samples)
            median = stats.quantile_interval(without, 0.5, groups=groups[0])
            longer = stats.ratio_interval(without, having, groups_a=groups[0], groups_b=groups[1])
            count = batch_count(point, base)
            gains.append(
                Worth(
                    part, point.instances, end,
                    stats.without_range(median, count),
                    stats.without_range(longer, count),
                    float(np.median(without) - np.median(having)),
                    count,
                )
            )  # fmt: skip
    return sorted(gains, key=lambda gain: (gain.end != str(analysis.end_point), gain.instances))


def _to_packet(samples: Sequence[Sample]) -> Floats:
    """From the intended arrival to the first packet's answer in ns, for samples that have one."""
    ends = [
        step.end - sample.stamps.intended
        for sample in samples
        for step in sample.steps
        if step.name == _PACKET
    ]
    return np.array(ends, dtype=np.float64)
