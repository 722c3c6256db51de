"""How long a function takes to start on each platform."""

from firstlight.analysis import Analysis
from firstlight.report.records import View
from firstlight.report.views.boots import fewest, middle
from firstlight.units import duration


def _answer(analysis: Analysis) -> str | None:
    """How long a function takes to start on each platform, the fastest first."""
    ranked = sorted(fewest(analysis), key=middle)
    if not ranked:
        return None
    took = ", ".join(f"{duration(middle(point))} by {point.series}" for point in ranked)
    return f"On this machine a function starts in {took} (medians)."


VIEW = View(answer=_answer)
