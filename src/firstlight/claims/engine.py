"""How claims are judged: what a claim is, what it is judged by, and the verdict.

A claim holds when the whole 95 % interval of its figure is on the claim's side of a bound, does
not hold when the whole interval is on the other, and is otherwise not measured well enough. The
bounds stand in the docstring of each claim's function. Only complete batches count (every start
of the burst ready), and a point needs ``REPETITIONS`` of them. Where several runtimes or methods
were measured, the paper's own (runc, ip) decides and the others' figures stand beside it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from firstlight.analysis import Analysis
from firstlight.model import Ending, EndPoint, Interval, Sample
from firstlight.store import Run
from firstlight.units import duration

Outcome = Literal["holds", "does not hold", "not measured"]
Judgement = tuple[Outcome, str]
"""An outcome, and the figures that decided, or why there are none."""

REPETITIONS = 3
"""Fewer complete batches of a point say nothing of their spread."""

MANY = 10
"""The smallest number at once that the paper calls many (Fig. 7)."""

SAME = (0.8, 1.25)
"""Two costs are the same when their ratio is in here: the margin of bioequivalence tests."""


@dataclass(frozen=True)
class Claim:
    """A sentence that a run can make true or false, and how.

    ``experiments`` are those whose runs are evidence, to the backends' own end point. ``judged``
    says what one run makes of it.
    """

    id: str
    claim: str
    paper: str
    experiments: tuple[str, ...]
    judged: Callable[[Analysis], Judgement]
    end_points: frozenset[EndPoint] = frozenset(EndPoint)

    def can_tell(self, run: Run) -> bool:
        """Whether a run is evidence."""
        header = run.header
        return header.experiment in self.experiments and header.end_point in self.end_points


@dataclass(frozen=True)
class Verdict:
    """What the runs say of one claim. ``figure`` has the numbers, or why there are none."""

    id: str
    claim: str
    paper: str
    verdict: Outcome
    figure: str


@dataclass(frozen=True)
class Finding:
    """``conditions``: for each condition of a claim True, False, or None where undecided."""

    conditions: list[bool | None]
    figure: str


def judge(claims: Iterable[Claim], runs: Sequence[Analysis]) -> list[Verdict]:
    """Each claim by the newest run that can tell."""
    return [Verdict(claim.id, claim.claim, claim.paper, *_outcome(claim, runs)) for claim in claims]


def verdict(findings: Iterable[Finding | str]) -> Judgement:
    """The first finding decides; the figures of all stand beside it.

    A string is why there is no finding.
    """
    each = list(findings)
    if not each:
        return "not measured", "none of the batches that it needs is complete"
    first = each[0]
    figure = "; ".join(part if isinstance(part, str) else part.figure for part in each)
    if isinstance(first, str):
        return "not measured", figure
    if False in first.conditions:
        return "does not hold", figure
    if None in first.conditions:
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


def compare_to_bound(
    interval: Interval, above: float = -np.inf, below: float = np.inf
) -> bool | None:
    """Is all of the interval between the bounds, or none of it? None where it crosses one."""
    if above < interval.low and interval.high < below:
        return True
    return False if interval.high <= above or interval.low >= below else None


def typical(times_ns: list[int] | list[float]) -> str:
    """The median of some times in ns, in words."""
    return duration(float(np.median(times_ns)))


def _outcome(claim: Claim, runs: Sequence[Analysis]) -> Judgement:
    name = claim.experiments[0]
    outcome: Judgement = "not measured", f"needs a run of {name}: firstlight run {name}"
    fitting = [run for run in runs if claim.can_tell(run.run)]
    for age, run in enumerate(sorted(fitting, key=lambda run: run.header.started, reverse=True)):
        judged = claim.judged(run)
        if judged[0] != "not measured":
            return judged
        outcome = judged if age == 0 else outcome
    return outcome
