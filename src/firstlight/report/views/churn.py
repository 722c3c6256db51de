"""Sustained starts and stops, and the cost of refilling the pool."""

from collections.abc import Iterator

import numpy as np

from firstlight.analysis import Analysis
from firstlight.analysis.figures import PointFigures
from firstlight.analysis.stats import without_range
from firstlight.report.points import batch_count, counts, find, makespans, median, over
from firstlight.report.records import Table, View
from firstlight.units import percent, ratio_interval

KEEPS_UP = 0.95
"""A pool keeps up if it has a part for this share of the requests."""


def _rates(analysis: Analysis) -> list[tuple[float, PointFigures, PointFigures | None]]:
    """Each rate with its refilling and its full point."""
    pairs = []
    for point in analysis.points:
        rate, size = point.point["rate"], point.instances
        if point.latency and point.point["pools"] == "refilling":
            pairs.append(
                (float(rate), point, find(analysis, pools="full", rate=rate, instances=size))
            )
    return pairs


def _answer(analysis: Analysis) -> str | None:
    pairs = [(rate, refilling, full) for rate, refilling, full in _rates(analysis) if full]
    if not pairs:
        return None
    kept = [pair for pair in pairs if _hit_share(pair[1]) >= KEEPS_UP]
    rate, refilling, full = (kept or pairs)[-1]
    tail = _tail(refilling, full)
    sentence = (
        f"On this machine, at {rate:.0f} starts and stops a second, a start takes "
        f"{median(refilling)} to its {analysis.end_point} while the pool refills"
        f"{f', and its P99 is {tail} that of a pool that need not' if tail else ''}. "
        f"The pool is filled with {counts(full).get('fill', 0):.0f} sandboxes a second before, and "
        f"refilled with {counts(refilling).get('refill', 0):.0f} a second meanwhile"
    )
    dry = next((pair for pair in pairs if pair not in kept), None)
    if kept and dry:
        share = percent(_hit_share(dry[1]))
        sentence += f"; at {dry[0]:.0f} per second it runs empty: {share} find a waiting sandbox"
    return sentence + "."


def _tail(point: PointFigures, full: PointFigures | None) -> str:
    """A P99 relative to that of full pools, formatted; "" if too few starts bound either."""
    if full is None or full is point:
        return ""
    known = [each.latency and each.latency.p99 for each in (point, full)]
    if not all(known):
        return ""
    return ratio_interval(without_range(over(point, full, 0.99), batch_count(point, full)))


def _hit_share(point: PointFigures) -> float:
    counted = counts(point)
    starts = counted.get("hits", 0) + counted.get("misses", 0)
    return counted.get("hits", 0) / starts if starts else 0.0


def _tables(analysis: Analysis) -> Iterator[Table]:
    rows = []
    for point in analysis.points:
        if not point.latency:
            continue
        pools, rate = str(point.point["pools"]), point.point["rate"]
        full = find(analysis, pools="full", rate=rate, instances=point.instances)
        counted = counts(point)
        rows.append(
            (
                f"{pools} · {rate}/s",
                f"{np.median(_achieved(point)):.0f}",
                percent(_hit_share(point)),
                f"{counted['fill']:.0f}" if counted.get("fill") else "–",
                f"{counted['refill']:.0f}" if counted.get("refill") else "–",
                _tail(point, full) or "–",
            )
        )
    headings = ("pools · starts asked", "started a second", "found a sandbox",
                "filled a second", "refilled a second", "P99 over that of full pools")  # fmt: skip
    if rows:
        yield Table("starts and stops, and the pool", headings, tuple(rows))


def _achieved(point: PointFigures) -> list[float]:
    """Starts per second of each complete batch, from its first arrival to its last start."""
    return [point.instances / span * 1e9 for span in makespans(point)] or [0.0]


VIEW = View(answer=_answer, tables=_tables)
