"""How long a function takes to start on each platform."""

from firstlight.analysis import Analysis
from firstlight.analysis.figures import PointFigures
from firstlight.report.points import apart, in_groups, middle, unseen
from firstlight.report.records import View
from firstlight.report.views.boots import fewest
from firstlight.units import duration, several


def _answer(analysis: Analysis) -> str | None:
    """How long a function takes to start on each platform, the fastest first."""
    groups = in_groups(fewest(analysis))
    if not groups:
        return None
    comparisons = sum(map(len, groups)) - 1
    took = "; ".join(_group(group, comparisons) for group in groups)
    return f"On this machine a function starts in {took} (medians)."


def _group(points: list[PointFigures], comparisons: int) -> str:
    words = several([f"{duration(middle(point))} by {point.series}" for point in points])
    if len(points) == 1:
        return words
    if apart(points[-1], points[0], len(points) - 1):
        return f"{words} (no difference seen from one to the next)"
    return f"{words} ({unseen(*points, comparisons=comparisons)})"


VIEW = View(answer=_answer)
