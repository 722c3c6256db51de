"""Arrays over many threads at once: their times lie end to end on one line.

Each item belongs to a segment (a thread, a process), numbered from 0; the items of a segment are
adjacent and in order. A time of segment ``n`` lies on the line at ``n * length`` plus its distance
from ``origin``. So one search finds the positions of many times, each in its own segment.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Line:
    """``origin`` is the earliest time that is laid on it, ``length`` more than the span of all."""

    origin: int
    length: int

    def at(self, segment: Integers, times: Integers) -> Integers:
        """Where times lie, each of its segment."""
        return segment * self.length + (times - self.origin)

    def segment(self, places: Integers) -> Integers:
        """The segment of each place on the line."""
        return places // self.length

    def starts(self, segment: Integers) -> Integers:
        """What to subtract from positions of these segments to get their times."""
        return segment * self.length - self.origin

    def times(self, places: Integers) -> Integers:
        """The time of each place on the line."""
        return places % self.length + self.origin


@dataclass(frozen=True)
class Intervals:
    """Disjoint intervals on the line, in order, each with a code."""

    starts: Integers
    ends: Integers
    codes: Integers

    def inside(self, places: Integers) -> tuple[Flags, Integers]:
        """Whether each place is inside one, and that one's code."""
        if not len(self.starts):
            return np.zeros(len(places), np.bool_), np.zeros(len(places), np.int64)
        before = np.searchsorted(self.starts, places, side="right") - 1
        nearest = np.maximum(before, 0)
        return (before >= 0) & (places < self.ends[nearest]), self.codes[nearest]


def distinct(values: Integers) -> Integers:
    """Each value once, ascending. By sorting: numpy's own way hashes, which is slow for these."""
    ordered: Integers = np.sort(values)
    return np.asarray(ordered[np.diff(ordered, prepend=ordered[:1] - 1) != 0])


def merged(starts: Integers, ends: Integers) -> tuple[Integers, Integers]:
    """The starts and ends of the union of intervals."""
    order = np.argsort(starts, kind="stable")
    begins, latest = starts[order], np.maximum.accumulate(ends[order])
    first = np.ones(len(begins), np.bool_)
    first[1:] = begins[1:] > latest[:-1]
    return begins[first], latest[np.roll(first, -1)]


def bounds(segment: Integers, count: int) -> Integers:
    """Where each of ``count`` segments begins among items, and where the last ends."""
    return np.searchsorted(segment, np.arange(count + 1))


def firsts(segment: Integers) -> Integers:
    """The place of the first item of each item's segment."""
    is_first = np.diff(segment, prepend=segment[:1] - 1) != 0
    return np.asarray(np.maximum.accumulate(np.where(is_first, np.arange(len(segment)), 0)))


def before(codes: Integers, first: Integers, otherwise: int) -> Integers:
    """At each item the latest code of its segment that is not negative, its own included."""
    latest = np.maximum.accumulate(np.where(codes >= 0, np.arange(len(codes)), -1))
    return np.where(latest >= first, codes[np.maximum(latest, 0)], otherwise)


def after(codes: Integers, segment: Integers, otherwise: int) -> Integers:
    """At each item the next code of its segment that is not negative, its own included.

    Behind the last of them that last one; in a segment that has none, ``otherwise``.
    """
    count = len(codes)
    place = np.where(codes >= 0, np.arange(count), count)
    next_ = np.minimum.accumulate(place[::-1])[::-1]
    last = count - firsts(segment[::-1])[::-1]
    return np.where(
        next_ < last,
        codes[np.minimum(next_, count - 1)],
        before(codes, firsts(segment), otherwise),
    )
