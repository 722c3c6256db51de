"""Compares what the starts of two runs did, point by point: does B do more than A?

Counts vary among equal starts: a thread more, a lock that was not free. The variation is learned
from the runs themselves. A count is *steady* in a run if at least ``STEADY`` of its starts have its
usual value. It has changed

- if it is steady in both runs, and the usual values differ by more than chance: the probability
  that equal starts fall apart so clearly (Fisher's exact test) is below ``ALPHA``;
- else only if all starts of one run lie above all of the other, by more than either run's range.

With nine starts on each side no exception is allowed (p = 4e-5), with twelve, one.

Byte counts depend on identifiers and the lengths of paths: they need a change of 1 % as well.
Page faults vary in every start, and with what lies in the page cache. They have changed if all
starts of one run have more than all of the other, and the medians differ by a tenth.
Runs with fewer than ``FEWEST`` starts are refused.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import comb
from typing import Literal

import polars as pl

from firstlight.analysis import counts
from firstlight.errors import FirstlightError
from firstlight.model import Point, Sample, Setting
from firstlight.store import Run

STEADY = 0.85
ALPHA = 1e-4
FEWEST = 9
_BYTES_SHARE, _FAULTS_SHARE = 0.01, 0.1
_MOST_EVIDENCE = 3
_VARIABLE = re.compile(
    r"[0-9a-f]*\d[0-9a-f-]{5,}|(?<=/proc/)\d+|(?<=\.)(?=[A-Za-z]*[A-Z0-9])[A-Za-z0-9]{6}\b"
)
"""What differs between equal starts in a path: identifiers, process numbers, mkstemp's letters."""

Key = frozenset[tuple[str, Setting]]


@dataclass(frozen=True)
class Values:
    """A count over the starts of a point: the usual value, how many have it, and the range."""

    usual: int
    low: int
    high: int
    starts: int
    having: int

    @property
    def steady(self) -> bool:
        """Whether nearly all starts have the usual value."""
        return self.having >= STEADY * self.starts


@dataclass(frozen=True)
class Change:
    """A count that changed. ``evidence`` are the paths and requests that B has more, or less,
    often.

    ``allowed``: the user expects it.
    """

    count: str
    a: Values
    b: Values
    evidence: tuple[str, ...] = ()
    allowed: bool = False

    @property
    def more(self) -> bool:
        """Whether B does more."""
        return self.b.usual > self.a.usual


@dataclass(frozen=True)
class PointCounts:
    """The counts of a point: how many there are, those that changed, and those that vary too much
    among equal starts for a small change to be seen.
    """

    point: Point
    starts_a: int
    starts_b: int
    judged: int
    changes: tuple[Change, ...]
    varying: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """The counts of all points that both runs have.

    ``unmatched`` are the patterns of allowed counts that no count of either run matches.
    """

    points: list[PointCounts]
    outcome: Literal["same", "less", "more"]
    unmatched: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether anything changed that was not allowed."""
        return self.outcome != "same"


def compare(a: Run, b: Run, *, allow: Sequence[str] = ()) -> Verdict:
    """Compare the counts of run ``b`` with those of its baseline ``a``.

    ``allow`` are patterns (fnmatch) of counts that may change. Raises FirstlightError if the runs
    share no point, or have fewer than FEWEST traced starts at one.
    """
    sides = [_by_point(run) for run in (a, b)]
    for run, side, name in zip((a, b), sides, ("A, the baseline,", "B"), strict=True):
        traced = sum(sample.traced for sample in run.samples)
        if traced and not run.traced_batches:
            raise FirstlightError(
                f"{run.path} has lost what its {traced} traced starts did",
                f"copy {run.path / 'spans'} from where the run was made",
            )
        if traced and not side:
            raise FirstlightError(
                f"{run.path}: none of the {traced} traced starts of {name} became ready with all "
                "of its events",
                f"firstlight report {run.path} says how they ended",
            )
    shared = [key for key in sides[0] if key in sides[1]]
    if not shared:
        raise FirstlightError(
            f"{a.path} and {b.path} have no traced point in common",
            "measure the same axes, without --no-trace",
        )
    values = [counts.counts(run) for run in (a, b)]
    points = [_point((a, b), [side[key] for side in sides], values, allow) for key in shared]
    open_changes = [change for point in points for change in point.changes if not change.allowed]
    more = any(change.more for change in open_changes)
    known = {name for frame in values for name in frame["count"].unique()}
    unmatched = tuple(word for word in allow if not any(fnmatchcase(name, word) for name in known))
    return Verdict(points, "more" if more else "less" if open_changes else "same", unmatched)


def _by_point(run: Run) -> dict[Key, list[Sample]]:
    """The starts of each point whose counts are known."""
    starts: dict[Key, list[Sample]] = {}
    batches = set(run.traced_batches)
    for sample in run.samples:
        if counts.is_whole(sample) and sample.batch in batches:
            starts.setdefault(frozenset(sample.point.items()), []).append(sample)
    return starts


def _point(
    runs: tuple[Run, Run],
    starts: Sequence[Sequence[Sample]],
    values: Sequence[pl.DataFrame],
    allow: Sequence[str],
) -> PointCounts:
    for run, own in zip(runs, starts, strict=True):
        if len(own) < FEWEST:
            raise FirstlightError(
                f"{run.path} has {len(own)} whole traced starts of {_words(own[0].point)}",
                f"{FEWEST} are needed, and fifteen are better: give --repetitions 5",
            )
    tables = [_table(frame, own) for frame, own in zip(values, starts, strict=True)]
    none = [tuple([0] * len(own)) for own in starts]
    known = set(tables[0]) | set(tables[1])
    if not all(counts.FAULTS in table for table in tables):
        known.discard(counts.FAULTS)  # a run of an older version does not know them
    names = sorted(known)
    changes, varying = [], []
    for name in names:
        a, b = (table.get(name, zero) for table, zero in zip(tables, none, strict=True))
        left, right = _values(a), _values(b)
        if has_changed(name, left, right):
            evidence = _evidence(name, runs, starts, (left.usual, right.usual), (a, b))
            allowed = any(fnmatchcase(name, pattern) for pattern in allow)
            changes.append(Change(name, left, right, evidence, allowed))
        elif not (left.steady and right.steady):
            varying.append(name)
    changes.sort(key=lambda change: (change.allowed, not change.more, change.count))
    return PointCounts(
        starts[0][0].point, len(starts[0]), len(starts[1]), len(names), tuple(changes),
        tuple(varying),
    )  # fmt: skip


def _table(frame: pl.DataFrame, starts: Sequence[Sample]) -> Mapping[str, tuple[int, ...]]:
    """Each count's values, in the order of the starts."""
    place = {sample.index: number for number, sample in enumerate(starts)}
    table: dict[str, list[int]] = defaultdict(lambda: [0] * len(starts))
    for sample, name, value in frame.rows():
        if sample in place:
            table[name][place[sample]] = value
    return {name: tuple(each) for name, each in table.items()}


def _values(each: Sequence[int]) -> Values:
    usual, having = Counter(each).most_common(1)[0]
    if having < STEADY * len(each):
        usual = sorted(each)[len(each) // 2]
    return Values(usual, min(each), max(each), len(each), having)


def has_changed(count: str, a: Values, b: Values) -> bool:
    """Whether a count differs between two runs by more than its variation; see above."""
    low, high = (a, b) if a.usual < b.usual else (b, a)
    gap = high.low - low.high
    if count == counts.FAULTS:
        return gap > 0 and high.usual - low.usual >= _FAULTS_SHARE * low.usual
    least = 1.0
    if count in (counts.READ, counts.WRITTEN):
        least = _BYTES_SHARE * high.usual
    elif a.steady and b.steady:
        return a.usual != b.usual and chance(a, b) < ALPHA
    return gap >= least and gap > max(a.high - a.low, b.high - b.low)


def chance(a: Values, b: Values) -> float:
    """The probability that equal starts differ at least this clearly between two runs.

    Fisher's exact test, doubled for both sides. Starts of A without its usual value count as if
    they had B's, and vice versa, so the probability is an upper bound.
    """
    exceptions = a.starts - a.having, b.starts - b.having
    like_a = a.having + exceptions[1]
    ways = comb(a.starts + b.starts, like_a)
    tail = sum(
        comb(a.starts, hits) * comb(b.starts, like_a - hits)
        for hits in range(a.having, min(a.starts, like_a) + 1)
    )
    return min(1.0, 2 * tail / ways)


def _evidence(
    count: str,
    runs: tuple[Run, Run],
    starts: Sequence[Sequence[Sample]],
    usual: tuple[int, int],
    values: tuple[Sequence[int], Sequence[int]],
) -> tuple[str, ...]:
    """Arguments of a call that usual starts of one run have more often than the other's."""
    kind, _, name = count.partition(" ")
    if kind != counts.CALL:
        return ()
    details = []
    for run, own, value, each in zip(runs, starts, usual, values, strict=True):
        typical = min(zip(own, each, strict=True), key=lambda pair: abs(pair[1] - value))[0]
        details.append(Counter(_objects(run, typical, name)))
    more = details[1] - details[0] if usual[1] > usual[0] else details[0] - details[1]
    return tuple(
        f"{detail} ×{times}" if times > 1 else detail
        for detail, times in more.most_common(_MOST_EVIDENCE)
        if detail
    )


def _objects(run: Run, sample: Sample, call: str) -> Iterator[str]:
    spans = run.spans_of(sample).filter(
        (pl.col("kind") == "call")
        & (pl.col("name") == call)
        & (pl.col("start") <= sample.stamps.ready)
    )
    for detail in spans["detail"].cast(pl.String).fill_null("").to_list():
        yield _VARIABLE.sub("*", detail)


def _words(point: Point) -> str:
    return ", ".join(f"{axis} {setting}" for axis, setting in point.items())
