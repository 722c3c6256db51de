"""Whether starts take longer on a full host."""

from firstlight.analysis import Analysis
from firstlight.report.points import as_long, median
from firstlight.report.records import View
from firstlight.units import digits


def _answer(analysis: Analysis) -> str | None:
    points = sorted(
        (point for point in analysis.points if point.latency),
        key=lambda point: int(point.point["background"]),
    )
    if len(points) < 2:
        return None
    few, many = points[0], points[-1]
    return (
        f"On this machine an agile start takes {median(few)} to its {analysis.end_point} with "
        f"{few.point['background']} instances running, and {median(many)} with "
        f"{digits(int(many.point['background']), 0)}: {as_long(many, few)}."
    )


VIEW = View(answer=_answer)
