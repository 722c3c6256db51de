"""Known storms: the one named from the trace, and the remedy's gain, predicted and measured."""

from collections.abc import Iterator

from firstlight.analysis import Analysis, stats
from firstlight.analysis.figures import PointFigures, batches, latencies
from firstlight.claims.advice import Advice, advise
from firstlight.claims.advice.storms import STORMS
from firstlight.model import Interval
from firstlight.report.points import find
from firstlight.report.records import Table, View
from firstlight.units import duration_interval, ratio_interval

_HEADINGS = ("storm", "named from the trace", "gain, predicted", "gain, measured",
             "predicted ÷ measured")  # fmt: skip


def _gain(met: PointFigures, mended: PointFigures) -> Interval:
    """The difference of the medians without tracing, in ns, with its bootstrap interval."""
    return stats.difference_interval(
        latencies(met.untraced_samples),
        latencies(mended.untraced_samples),
        groups_a=batches(met.untraced_samples),
        groups_b=batches(mended.untraced_samples),
    )


def _pairs(analysis: Analysis) -> Iterator[tuple[PointFigures, PointFigures, Advice | None]]:
    """The points of each storm with and without it, and what is named first where it is met."""
    advice = advise(analysis, STORMS)
    for met in analysis.points:
        mended = find(analysis, storm=met.point["storm"], state="mended", instances=met.instances)
        if met.point["state"] == "met" and met.latency and mended and mended.latency:
            yield met, mended, next((each for each in advice if each.point == met.point), None)


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
