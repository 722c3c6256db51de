"""Known storms: the one named from the trace, and the remedy's gain, predicted and measured."""

from collections.abc import Iterator

import numpy as np

from firstlight.analysis import Analysis, stats
from firstlight.analysis.figures import PointFigures
from firstlight.claims.advice import Advice, advise
from firstlight.claims.advice.storms import STORMS
from firstlight.model import Interval
from firstlight.report.points import find
from firstlight.report.records import Table, View
from firstlight.units import duration_interval, ratio_interval

_HEADINGS = ("storm", "named from the trace", "gain, predicted", "gain, measured",
             "predicted ÷ measured")  # fmt: skip


def _gain(met: PointFigures, mended: PointFigures) -> Interval:
    """The median difference of pairs of starts without tracing, in ns, with its interval.

    The batches of a pair were measured one right after the other, so a drift of the machine, which
    is often larger than the gain, meets both.
    """
    sides = _by_repetition(met), _by_repetition(mended)
    differences = [
        slow - quick
        for repetition in sides[0]
        for slow, quick in zip(sides[0][repetition], sides[1].get(repetition, ()), strict=False)
    ]
    return stats.quantile_interval(differences, 0.5) if differences else Interval(0.0, 0.0, 0.0)


def _by_repetition(point: PointFigures) -> dict[int, list[float]]:
    """The median latency of each untraced batch, in ns, by repetition in the order of time."""
    batches: dict[tuple[int, int], list[int]] = {}
    for sample in point.untraced_samples:
        batches.setdefault((sample.repetition, sample.batch), []).append(sample.latency or 0)
    medians: dict[int, list[float]] = {}
    for (repetition, _), latencies in sorted(batches.items()):
        medians.setdefault(repetition, []).append(float(np.median(latencies)))
    return medians


def _pairs(analysis: Analysis) -> Iterator[tuple[PointFigures, PointFigures, Advice | None]]:
    """The points of each storm with and without it, and what is named first where it is met.

    What is named of both is no storm that the remedy ends: runc's starts wait for their cgroup with
    a compiled filter too.
    """
    advice = advise(analysis, STORMS)
    for met in analysis.points:
        mended = find(analysis, storm=met.point["storm"], state="mended", instances=met.instances)
        if met.point["state"] == "met" and met.latency and mended and mended.latency:
            both = {each.storm for each in advice if each.point == mended.point}
            named = (each for each in advice if each.point == met.point and each.storm not in both)
            yield met, mended, next(named, None)


def _answer(analysis: Analysis) -> str | None:
    pairs = list(_pairs(analysis))
    named = sum(bool(advice and advice.storm == met.point["storm"]) for met, _, advice in pairs)
    return f"Of {len(pairs)} storms, {named} are named from the trace." if pairs else None


def _tables(analysis: Analysis) -> Iterator[Table]:
    rows = []
    for met, mended, advice in _pairs(analysis):
        measured = _gain(met, mended)
        ratio = "–"
        if advice and measured.low > 0:
            bounds = advice.gain.value / measured.high, advice.gain.value / measured.low
            ratio = ratio_interval(Interval(advice.gain.value / measured.value, *bounds))
        rows.append(
            (
                str(met.point["storm"]),
                advice.storm if advice else "nothing",
                duration_interval(advice.gain) if advice else "–",
                duration_interval(measured),
                ratio,
            )
        )
    if rows:
        yield Table("what is named, and what its remedy gains for a start", _HEADINGS, tuple(rows))


VIEW = View(answer=_answer, tables=_tables)
