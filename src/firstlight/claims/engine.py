"""Judges claims.

A claim holds when the whole 95 % interval of its figure is on the claim's side of a bound, does not
hold when the whole interval is on the other side, and is otherwise not measured well enough. The
bounds are in the docstring of each claim's function. Only complete batches count (every start
ready), and a point needs ``REPETITIONS`` of them. If several runtimes or methods were measured, the
paper's own (runc, ip) decides, and the figures of the others are shown as well.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from firstlight.analysis import Analysis
from firstlight.analysis.stats import FEWEST_BATCHES
from firstlight.model import Ending, EndPoint, Interval, Sample
from firstlight.store import Run
from firstlight.units import duration

Conclusion = Literal["holds", "does not hold", "not measured"]
Judgement = tuple[Conclusion, str]
"""A verdict, and the figures that decided it, or why there are none."""

REPETITIONS = FEWEST_BATCHES
"""How many complete batches a point must have to be judged."""

MANY = 10
"""The smallest number at once that the paper calls many (Fig. 7)."""

SAME = (0.8, 1.25)
"""Bounds of the ratio of equal costs: the margin of bioequivalence tests."""


@dataclass(frozen=True)
class Source:
    """Runs that are closer to what the paper measured: their name, their experiments, and how to
    judge a claim by one.
    """

    name: str
    experiments: tuple[str, ...]
    judged: Callable[[Analysis], Judgement]


@dataclass(frozen=True)
class Claim:
    """A sentence that a run can make true or false, and how to judge it.

    Runs of ``experiments``, to the backends' own end point, are evidence. ``judged`` judges the
    claim by one run. ``nearer`` runs decide if they can; the other verdict is shown too.
    """

    id: str
    claim: str
    paper: str
    experiments: tuple[str, ...]
    judged: Callable[[Analysis], Judgement]
    end_points: frozenset[EndPoint] = frozenset(EndPoint)
    nearer: Source | None = None

    @property
    def all_experiments(self) -> tuple[str, ...]:
        """The experiments whose runs can decide it."""
        return (*self.experiments, *(self.nearer.experiments if self.nearer else ()))

    def can_tell(self, run: Run) -> bool:
        """Whether a run is evidence."""
        header = run.header
        return header.experiment in self.experiments and header.end_point in self.end_points


@dataclass(frozen=True)
class Verdict:
    """The verdict on one claim. ``figure`` has the numbers, or why there are none."""

    id: str
    claim: str
    paper: str
    verdict: Conclusion
    figure: str


@dataclass(frozen=True)
class Finding:
    """Combine conditions: each is True, False, or None if undecided."""

    conditions: list[bool | None]
    figure: str


def judge(claims: Iterable[Claim], runs: Sequence[Analysis]) -> list[Verdict]:
    """Judge each claim by the newest run that can decide it."""
    return [Verdict(claim.id, claim.claim, claim.paper, *_outcome(claim, runs)) for claim in claims]


def verdict(findings: Iterable[Finding | str]) -> Judgement:
    """The first finding decides; the figures of all are shown.

    A string says why there is no finding.
    """
    each = list(findings)
    if not each:
        return "not measured", "no batch that it needs is complete"
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
    """The size and the samples of each complete batch."""
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
    """Whether the interval is inside the bounds or outside; None if it crosses one."""
    if above < interval.low and interval.high < below:
        return True
    return False if interval.high <= above or interval.low >= below else None


def typical(times_ns: list[int] | list[float]) -> str:
    """The median of some times in ns, formatted."""
    return duration(float(np.median(times_ns)))


def _outcome(claim: Claim, runs: Sequence[Analysis]) -> Judgement:
    name = claim.experiments[0]
    own = _newest([run for run in runs if claim.can_tell(run.run)], claim.judged)
    source = claim.nearer
    if source:
        fitting = [run for run in runs if run.header.experiment in source.experiments]
        if nearer := _newest(fitting, source.judged):
            return _beside(source.name, nearer, own)
    return own or ("not measured", f"needs firstlight run {name}")


def _beside(name: str, nearer: Judgement, own: Judgement | None) -> Judgement:
    """Combine both judgements; the nearer one decides if it can."""
    if own is None:
        return nearer[0], f"{name}: {nearer[1]}"
    if nearer[0] == "not measured" != own[0]:
        return own[0], f"{own[1]}; {name}: not measured: {nearer[1]}"
    return nearer[0], f"{name}: {nearer[1]}; without: {own[0]}: {own[1]}"


def _newest(
    fitting: Sequence[Analysis], judged: Callable[[Analysis], Judgement]
) -> Judgement | None:
    """Judge by the newest run that can decide; else the reason why the newest cannot. None without
    a run.
    """
    outcome: Judgement | None = None
    for run in sorted(fitting, key=lambda run: run.header.started, reverse=True):
        judgement = judged(run)
        if judgement[0] != "not measured":
            return judgement
        outcome = outcome or judgement
    return outcome
