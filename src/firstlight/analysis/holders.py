"""Finds out what the holder of a contended lock did while others waited for it.

The kernel does not report who holds a lock. But only one thread does, and while it waits within
functions that run under the lock, its stack shows them: the others wait for that, and until the
holder, woken, has a CPU again.
"""

import re
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import polars as pl

from firstlight.analysis import causes
from firstlight.store import Run

SCHEMA = pl.Schema(
    {"sample": pl.UInt32(), "lock": pl.String(), "holder": pl.String(), "waited": pl.Int64()}
)
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

_Intervals = npt.NDArray[np.int64]


def holders(run: Run) -> pl.DataFrame:
    """How long each traced sample waited for a lock, by what its holder was waiting for.

    As SCHEMA: ``waited`` in ns, summed over the sample's threads, for locks whose holders can be
    determined. The holder is looked for among the traced threads of the same batch; if none waits,
    ``holder`` is RUNNING.
    """
    parts = [pl.DataFrame(schema=SCHEMA)]
    for _, spans in run.span_batches():
        waits = spans.filter(pl.col("stack") != "")
        locks = locks_of(waits.filter(pl.col("kind") == "lock"))
        blocked = _until_running(waits.filter(pl.col("kind") == "blocked"), spans)
        for lock in _UNDER:
            queued = locks.filter(pl.col("lock") == lock)
            if len(queued):
                parts.append(_queued_for(lock, queued, blocked))
    return pl.concat(parts)


def locks_of(queues: pl.DataFrame) -> pl.DataFrame:
    """Waits of the kind ``lock``: ``sample``, ``start``, ``end``, and ``lock``, its name."""
    words = queues.select(pl.col("stack", "name", "detail").cast(pl.String)).rows()
    names = [
        causes.of_lock(stack, kind, variable).removeprefix("lock: ").partition(" ")[0]
        for stack, kind, variable in words
    ]
    return queues.select("sample", "start", "end", lock=pl.Series(names, dtype=pl.String))


def _until_running(blocked: pl.DataFrame, spans: pl.DataFrame) -> pl.DataFrame:
    """Waits as ``stack``, ``start`` and ``end``, each with the wait for a CPU that follows it."""
    queued = spans.filter(pl.col("kind") == "queued").select("tid", end="start", running="end")
    return blocked.join(queued, on=["tid", "end"], how="left").select(
        pl.col("stack").cast(pl.String), "start", end=pl.coalesce("running", "end")
    )


def _queued_for(lock: str, queued: pl.DataFrame, blocked: pl.DataFrame) -> pl.DataFrame:
    starts, ends = queued["start"].to_numpy(), queued["end"].to_numpy()
    samples = queued["sample"].to_numpy()
    rest = ends - starts
    parts = []
    for holder, intervals in _held(lock, blocked):
        waited = _covered(intervals, ends) - _covered(intervals, starts)
        rest = rest - waited
        parts.append(_part(samples, lock, holder, waited))
    parts.append(_part(samples, lock, RUNNING, np.maximum(rest, 0)))
    return pl.concat(parts).group_by("sample", "lock", "holder").agg(pl.col("waited").sum())


def _part(
    samples: npt.NDArray[np.uint32], lock: str, holder: str, waited: _Intervals
) -> pl.DataFrame:
    return pl.DataFrame({"sample": samples, "waited": waited}).select(
        "sample",
        lock=pl.lit(lock),
        holder=pl.lit(holder),
        waited=pl.col("waited").cast(pl.Int64),
    )


def _held(lock: str, blocked: pl.DataFrame) -> Iterator[tuple[str, _Intervals]]:
    """What holders waited for and when: disjoint intervals of shape (n, 2)."""
    held: dict[str, list[tuple[int, int]]] = {}
    for (stack,), waits in blocked.group_by("stack", maintain_order=True):
        if cause := _of_holder(lock, str(stack)):
            held.setdefault(cause, []).extend(waits.select("start", "end").iter_rows())
    for cause, intervals in held.items():
        yield cause, _merged(intervals)


@lru_cache(maxsize=16384)
def _of_holder(lock: str, stack: str) -> str | None:
    """The cause of a wait by the lock's holder; None for another thread's wait."""
    under, after = _UNDER[lock]
    if not under.search(stack) or after.search(stack):
        return None
    cause = causes.of_wait(stack)
    return None if cause.startswith((causes.PEER, "lock:", "kernel:")) else cause


def _merged(intervals: list[tuple[int, int]]) -> _Intervals:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return np.array(merged, dtype=np.int64)


def _covered(intervals: _Intervals, at: _Intervals) -> _Intervals:
    """The length of the intervals before each instant, in ns."""
    starts, ends = intervals[:, 0], intervals[:, 1]
    before = np.concatenate([[0], np.cumsum(ends - starts)])
    place = np.searchsorted(starts, at, side="right")
    last = np.maximum(place - 1, 0)
    inside = np.where(place > 0, np.clip(at - starts[last], 0, ends[last] - starts[last]), 0)
    return np.asarray(np.where(place > 0, before[last] + inside, 0))
