"""The sentences above the figures: the answer, and the warnings."""

from collections.abc import Iterable

from firstlight.analysis import Analysis, figures
from firstlight.analysis.figures import PointFigures, Queue, batches, latencies
from firstlight.analysis.stability import is_unstable
from firstlight.model import Ending, EndPoint
from firstlight.report import views
from firstlight.units import (
    cause,
    duration,
    duration_interval,
    percent,
    percent_interval,
    ratio_interval,
)

MOST_NAMES = 4
WORTH_SAYING = 0.2
"""A queue with at least this share of the starts' time is part of the answer."""
LEAST_SHOWN = 0.01
"""Activities of a lock's holder below this share of the queue are left out."""


def answer(analysis: Analysis) -> str:
    """One or two sentences: how long a start takes, where the time goes, and what changes with many
    at once.
    """
    if not analysis.lead:
        return "No start became ready, so there is no latency to explain."
    if own := views.of(analysis.header).answer(analysis):
        return own
    first, *rest = analysis.lead
    clauses = [_alone(analysis, first, explain=not rest), *(_many(last) for last in rest)]
    sentence = f"On this machine {'; '.join(clauses)}."
    queues = sorted(analysis.lead[-1].queues, key=lambda each: -each.share)
    if queues and queues[0].share >= WORTH_SAYING:
        name, share = queues[0].holders[0]
        sentence += f" While starts queue for {queues[0].lock}, its holder is {cause(name)}"
        sentence += f" {percent(share)} of the time."
    return sentence


def warnings(analysis: Analysis) -> list[str]:
    """Warnings for the reader, the most serious first."""
    footer = analysis.run.footer
    sentences = []
    if footer is None:
        sentences.append(
            "This run was killed before its end: it has no footer, and points may have few samples."
        )
    elif footer.interrupted:
        sentences.append("This run was interrupted before its end: points may have few samples.")
    sentences += footer.warnings if footer else ()
    sentences += _merged(
        (sentence, point.name) for point in analysis.points for sentence in _of_point(point)
    )
    return sentences


def queue(queued: Queue) -> str:
    """One sentence: what the holder of a lock did while others waited for it."""
    first, *others = queued.holders[:3]
    shown = [first, *(holder for holder in others if holder[1] >= LEAST_SHOWN)]
    did = "; ".join(f"{cause(name)} {percent(share)}" for name, share in shown)
    return (
        f"Queues for {queued.lock} take {percent(queued.share)} of the starts' time. "
        f"Meanwhile the lock's holder was {did}."
    )


def _alone(analysis: Analysis, point: PointFigures, *, explain: bool) -> str:
    took = _median(point, "median, 95 % interval ")
    if analysis.header.presentation.headline == "traced":
        assert point.latency
        took = f"{duration(point.latency.median.value)}, traced,"
    clause = f"{_subject(analysis, point)} takes {took}"
    if analysis.end_point != EndPoint.REQUEST_DONE:
        clause += f" to its {analysis.end_point}"
    if point.instances > 1:
        clause += f" with {point.instances} {_together(point)}"
    if point.parts:
        greatest = max(point.parts, key=lambda part: part.share.value)
        clause += f", {percent(greatest.share.value)} of it in {greatest.phase}"
    return clause + (_spent(point) if explain else "")


def _many(point: PointFigures) -> str:
    return f"with {point.instances} {_together(point)} it takes {_median(point)}{_spent(point)}"


def _spent(point: PointFigures) -> str:
    if not point.causes():
        return ""
    name, share = point.causes()[0]
    return f", {percent(share)} of it {cause(name)}"


def _together(point: PointFigures) -> str:
    return "at once" if point.parallel else "in sequence"


def _subject(analysis: Analysis, point: PointFigures) -> str:
    return analysis.header.presentation.name(
        series=point.series, experiment=analysis.header.experiment
    )


def _median(point: PointFigures, words: str = "") -> str:
    assert point.latency
    if point.latency.batches == 1:
        return f"{duration(point.latency.median.value)} (one batch, so no interval)"
    return duration_interval(point.latency.median).replace(" (", f" ({words}")


def _of_point(point: PointFigures) -> Iterable[str]:
    failed, hung = point.ended[Ending.FAILED], point.ended[Ending.HUNG]
    if failed + hung:
        yield f"{failed} starts failed and {hung} hung of {sum(point.ended.values())}: see below"
    if point.lost:
        yield f"the tracer lost events in {point.lost} of {point.traced} traced starts"
    if point.late is not None and point.late > figures.LATE:
        yield (
            f"the load generator was late by {percent(point.late)} of the median latency "
            "(its 95th percentile), which is counted in it"
        )
    if point.overhead and point.overhead.low > figures.COSTLY:
        yield f"tracing makes starts {ratio_interval(point.overhead)} as long: read shares only"
    for part in point.parts:
        if part.phase == "unattributed" and part.share.value > figures.UNEXPLAINED:
            yield f"{percent_interval(part.share)} of the time belongs to no phase"
    if samples := point.headline_samples:
        unstable = is_unstable(latencies(samples) / 1e6, batches(samples))
        if unstable:
            yield unstable.rstrip(".") + (" (ms)" if "near" in unstable else "")


def _merged(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Merge a sentence that applies to several points, with their names or their number."""
    points: dict[str, list[str]] = {}
    for sentence, point in pairs:
        points.setdefault(sentence, []).append(point)
    return [f"{_listed(names)}: {sentence}." for sentence, names in points.items()]


def _listed(names: list[str]) -> str:
    if len(names) <= MOST_NAMES:
        return ", ".join(names)
    return f"{len(names)} points ({names[0]} to {names[-1]})"
