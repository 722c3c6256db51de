"""What a claim is judged by: complete batches, sides of a bound, and findings."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, Protocol

import numpy as np

from firstlight.model import Ending, Interval, Sample
from firstlight.store import Run
from firstlight.units import duration

Outcome = Literal["holds", "does not hold", "not measured"]

REPETITIONS = 3
"""Fewer complete batches of a point say nothing of their spread."""

MANY = 10
"""The smallest number at once that the paper calls many (Fig. 7)."""

SAME = (0.8, 1.25)
"""Two costs are the same when their ratio is in here: the margin of bioequivalence tests."""


@dataclass(frozen=True)
class Finding:
    """``sides``: for each condition of a claim True, False, or None where undecided."""

    sides: list[bool | None]
    figure: str


class Measured(Protocol):
    """A run that is evidence."""

    @property
    def run(self) -> Run: ...  # noqa: D102


def joined(findings: Iterable[Finding | str]) -> tuple[Outcome, str]:
    """The first finding decides; the figures of all stand beside it."""
    each = list(findings)
    if not each:
        return "not measured", "none of the batches that it needs is complete"
    first = each[0]
    figure = "; ".join(one if isinstance(one, str) else one.figure for one in each)
    if isinstance(first, str):
        return "not measured", figure
    if False in first.sides:
        return "does not hold", figure
    if None in first.sides:
        return "not measured", f"undecided, more repetitions are needed: {figure}"
    return "holds", figure


def complete_batches(run: Run, *, traced: bool) -> Iterator[tuple[int, list[Sample]]]:
    """The number at once and the samples of each batch that was ready as a whole."""
    fitting = sorted((s for s in run.samples if s.traced == traced), key=lambda s: s.batch)
    for _, group in groupby(fitting, key=lambda sample: sample.batch):
        batch = list(group)
        size = int(batch[0].point["instances"])
        whole = all(each.ending is Ending.READY and each.lost == 0 for each in batch)
        if whole and len(batch) == size:
            yield size, batch


def side(found: Interval, *, above: float = -np.inf, below: float = np.inf) -> bool | None:
    """Is all of the interval between the bounds, or none of it? None where it crosses one."""
    if above < found.low and found.high < below:
        return True
    return False if found.high <= above or found.low >= below else None


def typical(times_ns: list[int] | list[float]) -> str:
    """The median of some times in ns, in words."""
    return duration(float(np.median(times_ns)))
