"""Finds out what the holder of a contended lock did while others waited for it.

The kernel does not report who holds a lock. But only one thread does, and while it waits within
functions that run under the lock, its stack shows them: the others wait for that, and until the
holder, woken, has a CPU again.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import polars as pl

from firstlight.analysis import causes
from firstlight.analysis.segments import Integers, merged
from firstlight.analysis.words import Words
from firstlight.store import Run

SCHEMA = pl.Schema(
    {"sample": pl.UInt32(), "lock": pl.String(), "holder": pl.String(), "waited": pl.Int64()}
)
SHARED = frozenset({
    "rtnl_mutex", "cgroup_mutex", "pernet_ops_rwsem", "namespace_sem", "pcpu_alloc_mutex",
    "cgroup_threadgroup_rwsem", "shrinker_mutex", "shrinker_rwsem", "nl_table_lock",
})  # fmt: skip
"""The locks of which the kernel has one; of others the name says too little to add their waits."""
HELD = pl.Schema({"batch": pl.Int64(), "lock": pl.String(), "held": pl.Int64()})
RUNNING = "running, waiting for a CPU, or not traced"
"""No traced thread is seen to wait under the lock. Any program of the machine may hold it."""

# The functions that run under a lock, and those that wait after releasing it.
_UNDER = {
    "rtnl_mutex": (
        re.compile(r"\b(rtnl_newlink|rtnl_dellink|rtnl_setlink|do_setlink|rtnetlink_rcv_msg|"
                   r"register_netdev|unregister_netdev|default_device_exit_batch|"
                   r"register_nexthop_notifier|inet_rtm_\w+|inet6_rtm_\w+|addrconf_\w+)\b"),
        re.compile(r"\b(netdev_run_todo|rtnl_unlock)\b"),
    ),
    "cgroup_mutex": (
        re.compile(r"\b(cgroup_procs_write|__cgroup_procs_write|cgroup1_procs_write|cgroup_mkdir|"
                   r"cgroup_rmdir|cgroup_kn_lock_live|cgroup_apply_control\w*)\b"),
        re.compile(r"\bcgroup_kn_unlock\b"),
    ),
}  # fmt: skip

_WORDS = ("stack", "name", "detail")


class Waits:
    """The waits of a batch's threads, by lock and by holder. ``rows`` are those for each lock."""

    def __init__(self, spans: pl.DataFrame) -> None:
        self._columns = {name: spans[name].to_numpy() for name in ("sample", "start", "end", "tid")}
        words = Words(spans, "kind", *_WORDS)
        locks, self._blocked, self._queued = words.rows(
            "kind", "lock", "blocked", "queued"
        ).values()
        kinds = words.combinations(locks, *_WORDS)
        self._stacks = words.combinations(self._blocked, "stack")
        names = list(dict.fromkeys(lock for each in kinds.words if (lock := _lock_of(*each))))
        number = {name: place for place, name in enumerate(names)}
        numbers = kinds.map(lambda *each: number.get(_lock_of(*each), -1))
        self.rows = {name: locks[numbers == place] for name, place in number.items()}

    def times(self, lock: str) -> tuple[Integers, Integers, Integers]:
        """The samples that wait for a lock, and when each wait starts and ends."""
        rows = self.rows[lock]
        sample, start, end = (self._columns[name][rows] for name in ("sample", "start", "end"))
        return sample, start, end

    def held(self, lock: str) -> Iterator[tuple[str, tuple[Integers, Integers]]]:
        """What holders of a lock waited for, and when: the starts and ends of disjoint intervals,
        each until the holder ran again.
        """
        causes_of = [_of_holder(lock, stack) for (stack,) in self._stacks.words]
        for holder in dict.fromkeys(filter(None, causes_of)):
            is_its = np.array([cause == holder for cause in causes_of])
            rows = self._blocked[is_its[self._stacks.place]]
            starts, tids, ends = (self._columns[name][rows] for name in ("start", "tid", "end"))
            until = [
                self._running.get(wait, wait[1])
                for wait in zip(tids.tolist(), ends.tolist(), strict=True)
            ]
            yield holder, merged(starts, np.array(until))

    @cached_property
    def _running(self) -> dict[tuple[int, int], int]:
        """When a thread runs again that has waited for a CPU since a time."""
        tid, start, end = (
            self._columns[name][self._queued].tolist() for name in ("tid", "start", "end")
        )
        return dict(zip(zip(tid, start, strict=True), end, strict=True))


@dataclass(frozen=True)
class Locks:
    """The waits for locks in a run's traced batches.

    ``holders``, as SCHEMA, is how long each sample waited, by what the lock's holder was waiting
    for: ``waited`` in ns, summed over the sample's threads, for locks whose holders can be
    determined. The holder is looked for among the traced threads of the same batch; if none waits,
    ``holder`` is RUNNING. ``held``, as HELD, is how long any thread of a batch waited for each lock
    of SHARED.
    """

    holders: pl.DataFrame
    held: pl.DataFrame


def read(run: Run) -> Locks:
    """The locks of a run, in one pass over its spans."""
    queued: list[tuple[int, str, str, int]] = []
    held: list[tuple[int, str, int]] = []
    for batch, spans in run.span_batches():
        waits = Waits(spans)
        for lock in filter(waits.rows.__contains__, _UNDER):
            queued += _queued_for(lock, waits)
        for lock in waits.rows.keys() & SHARED:
            starts, ends = merged(*waits.times(lock)[1:])
            held.append((batch, lock, int((ends - starts).sum())))
    return Locks(
        pl.DataFrame(queued, schema=SCHEMA, orient="row"),
        pl.DataFrame(sorted(held), schema=HELD, orient="row"),
    )


def _queued_for(lock: str, waits: Waits) -> Iterator[tuple[int, str, str, int]]:
    """Rows of SCHEMA."""
    sample, starts, ends = waits.times(lock)
    samples, place = np.unique(sample, return_inverse=True)

    def rows(holder: str, waited: Integers) -> Iterator[tuple[int, str, str, int]]:
        sums = np.bincount(place, weights=waited)
        for each, time in zip(samples.tolist(), sums.tolist(), strict=True):
            yield each, lock, holder, int(time)

    rest = ends - starts
    for holder, held in waits.held(lock):
        waited = _covered(*held, ends) - _covered(*held, starts)
        rest = rest - waited
        yield from rows(holder, waited)
    yield from rows(RUNNING, np.maximum(rest, 0))


def _lock_of(stack: str, kind: str, variable: str) -> str:
    """The name of the lock that a wait of the kind ``lock`` is for; empty without a stack."""
    if not stack:
        return ""
    return causes.of_lock(stack, kind, variable).removeprefix("lock: ").partition(" ")[0]


@lru_cache(maxsize=16384)
def _of_holder(lock: str, stack: str) -> str | None:
    """The cause of a wait by the lock's holder; None for another thread's wait."""
    under, after = _UNDER[lock]
    if not under.search(stack) or after.search(stack):
        return None
    cause = causes.of_wait(stack)
    return None if cause.startswith((causes.PEER, "lock:", "kernel:")) else cause


def _covered(starts: Integers, ends: Integers, at: Integers) -> Integers:
    """The length of disjoint intervals before each instant, in ns."""
    before = np.concatenate([[0], np.cumsum(ends - starts)])
    place = np.searchsorted(starts, at, side="right")
    last = np.maximum(place - 1, 0)
    inside = np.where(place > 0, np.clip(at - starts[last], 0, ends[last] - starts[last]), 0)
    return np.asarray(np.where(place > 0, before[last] + inside, 0))
