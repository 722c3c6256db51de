"""The critical path of a start: which thread's work its end point waited for, at each instant.

It is walked backward from the thread that reached the end point: a thread owns the time back to
when another one woke it from a wait for a peer (a pipe, a child, a futex); from there the waker
owns it, and before its birth a thread's parent.
"""

from bisect import bisect_left
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from firstlight.analysis.attribution import Integers

NONE = np.empty(0, dtype=np.int64)
Intervals = tuple[Integers, Integers, Integers]
"""Starts, ends and codes of disjoint intervals, in order; times in ns."""


@dataclass
class Thread:
    """One thread's spans as sorted arrays; intervals as (start, end, code)."""

    tid: int
    pid: int
    parent: int | None = None
    birth: int = 0
    exit: int | None = None
    ended: int | None = None
    """When it ended its process."""
    calls: Intervals = (NONE, NONE, NONE)
    """Every reported call, with its phase or NEUTRAL, which attribution replaces."""
    took: Integers = field(default_factory=lambda: NONE)
    """When its calls that took data in began."""
    blocked: Intervals = (NONE, NONE, NONE)
    queued: Intervals = (NONE, NONE, NONE)
    locks: Intervals = (NONE, NONE, NONE)
    wakes: list[tuple[int, int]] = field(default_factory=list)
    """(when, by whom) it was woken from a wait for a peer."""
    owned: list[tuple[int, int]] = field(default_factory=list)
    """Its part of the critical path."""
    idle: Intervals = (NONE, NONE, NONE)
    """When it slept or waited for a peer, but for the child that it lent its memory to."""
    sleeps: Intervals = (NONE, NONE, NONE)

    def last_wait(self, at: int) -> int:
        """When the latest wait before ``at`` began; its birth if there is none."""
        place = int(np.searchsorted(self.blocked[0], at)) - 1
        return int(self.blocked[0][place]) if place >= 0 else self.birth

    def is_busy(self, at: int) -> bool:
        """Whether it was alive and neither slept nor waited for a peer."""
        alive = self.birth < at and (self.exit is None or at < self.exit)
        return alive and not inside(self.idle, np.array([at]))[0][0]


def walk(threads: dict[int, Thread], last: Thread, begin: int, end: int) -> int:
    """Give each thread its part of the critical path; returns when the path begins."""
    thread, at = last, end
    while at > begin:
        when, before = _before(threads, thread, at)
        when = max(when, begin) if when < at else begin  # a number used twice makes no loop
        thread.owned.append((when, at))
        at = when
        if before is None:
            break
        thread = before
    return at


def _before(threads: dict[int, Thread], thread: Thread, at: int) -> tuple[int, Thread | None]:
    """Back to when a thread owns the time before ``at``, and who owns it before that."""
    place = bisect_left(thread.wakes, (at, -1)) - 1
    while place >= 0:
        when, tid = thread.wakes[place]
        waker = threads.get(tid)
        if waker and waker is not thread and waker.birth < when:
            worker = _worker(threads, thread, waker, when)
            if worker is not thread:
                return when, worker
        place -= 1
    parent = threads.get(thread.parent or 0)
    if parent and parent.pid == thread.pid:
        worker = _worker(threads, thread, parent, thread.birth)
        parent = parent if worker is thread else worker
    return thread.birth, parent


def _worker(threads: dict[int, Thread], woken: Thread, waker: Thread, when: int) -> Thread:
    """Whose work a wake-up or a birth ended: the waker's, unless that is a monitor that polls.

    A language's run-time has a thread that sleeps and looks (Go's sysmon). When it wakes another
    for want of one, the work before was done by the thread that was busy then. And a thread that
    wakes another as its process ends does so for the one that ended it.
    """
    for thread in threads.values():
        if thread.pid == waker.pid and thread.ended is not None and thread.ended <= when:
            return thread
    if waker.pid != woken.pid or not inside(waker.sleeps, np.array([waker.last_wait(when)]))[0][0]:
        return waker
    busy = [
        thread
        for thread in threads.values()
        if thread.pid == woken.pid and thread not in (woken, waker) and thread.is_busy(when)
    ]
    return max(busy, key=lambda thread: thread.last_wait(when), default=woken)


def inside(intervals: Intervals, at: Integers) -> tuple[npt.NDArray[np.bool_], Integers]:
    """Whether each instant is inside one of the disjoint intervals, and that one's code."""
    starts, ends, codes = intervals
    if not len(starts):
        return np.zeros(len(at), np.bool_), np.zeros(len(at), np.int64)
    place = np.searchsorted(starts, at, side="right") - 1
    found = np.maximum(place, 0)
    return (place >= 0) & (at < ends[found]), codes[found]
