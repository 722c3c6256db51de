"""Finds the critical path of a start: the thread whose work the end point waited for.

The path is followed backward from the thread that reached the end point: a thread owns the time
back to the moment when another one woke it from a wait for a peer (a pipe, a child, a futex);
before that the waker owns it, and before a thread's birth its parent.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

Spans = tuple[Sequence[int], Sequence[int]]
"""Starts and ends of disjoint intervals, in order, in ns."""


@dataclass
class Thread:
    """A thread, for the path; times in ns.

    ``wakes`` are its wake-ups from waits for a peer, as (time, waker); ``waits`` are the beginnings
    of these waits. ``idle`` is when it slept or waited for a peer, except for a child that borrows
    its memory; ``sleeps`` is when it slept. ``ended`` is when it ended its process.
    """

    tid: int
    pid: int
    parent: int | None = None
    birth: int = 0
    exit: int | None = None
    ended: int | None = None
    waits: Sequence[int] = ()
    wakes: Sequence[tuple[int, int]] = ()
    idle: Spans = ((), ())
    sleeps: Spans = ((), ())
    owned: list[tuple[int, int]] = field(default_factory=list)
    """Its part of the critical path, filled by ``walk`` from the end."""

    def last_wait(self, at: int) -> int:
        """The beginning of its latest wait before ``at``, or its birth."""
        place = bisect_left(self.waits, at) - 1
        return int(self.waits[place]) if place >= 0 else self.birth

    def ends_by(self, at: int) -> bool:
        """Whether it waits for nothing more from ``at`` to its exit."""
        return self.exit is not None and bisect_left(self.waits, at) == len(self.waits)

    def is_busy(self, at: int) -> bool:
        """Whether it was alive, and neither slept nor waited for a peer."""
        alive = self.birth < at and (self.exit is None or at < self.exit)
        return alive and not _is_inside(self.idle, at)


def walk(threads: dict[int, Thread], last: Thread, begin: int, end: int) -> int:
    """Give each thread its part of the critical path; returns when the path begins."""
    enders: dict[int, list[Thread]] = {}
    for each in threads.values():
        if each.ended is not None:
            enders.setdefault(each.pid, []).append(each)
    thread, at = last, end
    while at > begin:
        when, before = _before(threads, enders, thread, at)
        when = max(when, begin) if when < at else begin  # a reused thread id must not make a loop
        thread.owned.append((when, at))
        at = when
        if before is None:
            break
        thread = before
    return at


def _before(
    threads: dict[int, Thread], enders: dict[int, list[Thread]], thread: Thread, at: int
) -> tuple[int, Thread | None]:
    """How far back a thread owns the time before ``at``, and which thread owns it before that.

    ``enders`` are the threads that ended their process, by process.
    """
    place = bisect_left(thread.wakes, (at, -1)) - 1
    while place >= 0:
        when, tid = thread.wakes[place]
        waker = threads.get(tid)
        if waker and waker is not thread and waker.birth < when:
            worker = _worker(threads, enders, thread, waker, when)
            if worker is not thread:
                return when, worker
        place -= 1
    parent = threads.get(thread.parent or 0)
    if parent and parent.pid == thread.pid:
        worker = _worker(threads, enders, thread, parent, thread.birth)
        parent = parent if worker is thread else worker
    return thread.birth, parent


def _worker(
    threads: dict[int, Thread],
    enders: dict[int, list[Thread]],
    wakee: Thread,
    waker: Thread,
    when: int,
) -> Thread:
    """Whose work a wake-up or a birth ended: the waker's, unless it is a polling monitor.

    A language run-time may have a thread that sleeps and polls (Go's sysmon). When it wakes another
    thread, the work before was done by the thread that was busy then. A thread that wakes another
    as its process ends does so for the thread that ended the process; one that wakes another as it
    ends itself is no monitor.
    """
    for thread in enders.get(waker.pid, ()):
        if thread.ended is not None and thread.ended <= when:
            return thread
    if waker.pid != wakee.pid or waker.ends_by(when):
        return waker
    if not _is_inside(waker.sleeps, waker.last_wait(when)):
        return waker
    busy = [
        thread
        for thread in threads.values()
        if thread.pid == wakee.pid and thread not in (wakee, waker) and thread.is_busy(when)
    ]
    return max(busy, key=lambda thread: thread.last_wait(when), default=wakee)


def _is_inside(spans: Spans, at: int) -> bool:
    starts, ends = spans
    place = bisect_right(starts, at) - 1
    return place >= 0 and at < ends[place]
