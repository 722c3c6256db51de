"""Divides a VM's start: first the hypervisor, then the guest by its own log.

A guest's spans are on its own clock; ``GuestLog.offset`` places them on the host's. The innermost
span owns an instant: the one that began last.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise

from firstlight.analysis import phases
from firstlight.model import ComponentSpan, Header, Point, Sample, Step

INIT = "hypervisor.init"
"""The step that ends at the guest's first instruction."""


@dataclass(frozen=True)
class Stretch:
    """A stretch of a start in one phase, from ``start`` to ``end`` in ns of CLOCK_MONOTONIC."""

    start: int
    end: int
    phase: str


def entered(sample: Sample) -> int | None:
    """When the guest's first instruction ran, in ns of CLOCK_MONOTONIC; None if there is no VM."""
    return next((step.end for step in sample.steps if step.name == INIT), None)


def placed(sample: Sample) -> list[Step]:
    """The guest's spans on the host's clock, with its names; empty if the offset is unknown."""
    log = sample.guest
    if log is None or log.offset is None:
        return []
    return [Step(span.name, span.start + log.offset, span.end + log.offset) for span in log.spans]


def stretches(sample: Sample) -> list[Stretch]:
    """The guest's time, from its first instruction to the end point, divided without gaps.

    Before its first span the guest is in ``firmware``; time that no span covers later is
    ``guest.other``, as is everything if the guest logged nothing.
    """
    begin, end = entered(sample), sample.stamps.ready
    if begin is None or end is None or end <= begin:
        return []
    spans = placed(sample)
    first = min((span.start for span in spans), default=begin)
    if first > begin:
        spans.append(Step("firmware", begin, first))
    return partition(spans, begin, end)


def kind(header: Header, point: Point) -> str:
    """The kind of a point's guest: OSv with different roots is one guest."""
    name = str(point.get("guest", ""))
    return str(header.environment.get(f"guest {name}", name))


def account(sample: Sample) -> dict[str, int]:
    """The time of each phase of a VM's start, in ns; empty for other starts.

    On the host's clock they sum to the latency. If nothing ties the guest's clock to it they are
    the guest's own, from its first span to the end of its last.
    """
    log, begin = sample.guest, entered(sample)
    if begin is None or log is None or sample.stamps.ready is None:
        return {}
    spent: dict[str, int] = {}
    if log.offset is None and log.spans:
        first, last = min(s.start for s in log.spans), max(s.end for s in log.spans)
        parts = partition(log.spans, first, last)
    else:
        spent[INIT] = min(begin, sample.stamps.ready) - sample.stamps.intended
        parts = stretches(sample)
    for part in parts:
        spent[part.phase] = spent.get(part.phase, 0) + part.end - part.start
    return spent


def partition(
    spans: Iterable[Step | ComponentSpan],
    begin: int,
    end: int,
    phase_of: Callable[[str], str] = phases.of_guest,
    otherwise: str = "guest.other",
) -> list[Stretch]:
    """Divide ``begin`` to ``end`` by the innermost span at each instant."""
    ahead = sorted(
        (
            Step(span.name, max(span.start, begin), min(span.end, end))
            for span in spans
            if span.start < end and span.end > begin
        ),
        key=lambda span: span.start,
        reverse=True,
    )
    edges = sorted({begin, end, *(edge for span in ahead for edge in (span.start, span.end))})
    under: list[tuple[int, int, str]] = []
    parts: list[Stretch] = []
    for start, stop in pairwise(edges):
        while ahead and ahead[-1].start <= start:
            span = ahead.pop()
            heappush(under, (-span.start, span.end, phase_of(span.name)))
        while under and under[0][1] <= start:
            heappop(under)
        phase = under[0][2] if under else otherwise
        if parts and parts[-1].phase == phase:
            parts[-1] = Stretch(parts[-1].start, stop, phase)
        else:
            parts.append(Stretch(start, stop, phase))
    return parts
