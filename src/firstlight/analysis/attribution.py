"""Assigns each call of a process, and the time before it, to a phase.

A call with a rule in the phase table belongs to that phase. The rest follows from its neighbours:

- Everything from execve, or from a language run-time's own start, to the program's first own call
  is ``process.start``; in the program that reaches the end point it is ``exec``.
- An answer belongs to its request, and a change of the signal mask to the handlers set before it.
- After a call that read data, the time to the next call belongs to it: the data is being used. A
  few bytes are not data: they are a message.
- Everything in a helper program (iptables, an address plugin) is the helper's phase, except its
  requests to a daemon.
- Everything else, including neutral calls, belongs to the next classified call, which it prepares.

``make bench`` checks these rules against the functions of a real runtime.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from firstlight.analysis import phases
from firstlight.analysis.segments import Flags, Integers, after, before, firsts

PHASE = {name: code for code, name in enumerate(phases.ORDER)}
NEUTRAL, ANSWER, MASK = -1, -2, -3
"""Codes of calls without a phase of their own."""
CODE = {**PHASE, phases.ANSWER: ANSWER, phases.MASK: MASK}

_START, _EXEC, _EXIT = PHASE["process.start"], PHASE["exec"], PHASE["process.exit"]
_SIGNALS, _UNATTRIBUTED = PHASE["signals"], PHASE[phases.UNATTRIBUTED]
_DATASTORE = PHASE["datastore"]
_NEVER = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Calls:
    """The reported calls of processes; arrays of shape (n,), times in ns on a segments.Line.

    ``process`` numbers the processes from 0, ascending; within one, calls are in order of their
    start. ``codes`` are PHASE, NEUTRAL or MASK; ``took`` marks calls that read data, or its end.
    """

    process: Integers
    starts: Integers
    ends: Integers
    codes: Integers
    took: Flags


@dataclass(frozen=True)
class Execs:
    """The execve calls, in order on the line: process and time."""

    process: Integers
    starts: Integers


def charge(calls: Calls, execs: Execs, ends: Integers) -> tuple[Integers, Integers]:
    """The phase of each call and of the time before it; both of shape (n,), none neutral.

    ``ends`` is, for each process, the end point of its instance.
    """
    codes = _before_exec(_masked(calls.codes, calls.process), calls.process)
    starting = _starting(calls, codes, execs)
    codes = np.where(starting & ~_is_own(codes), _START, codes)
    following = after(codes, calls.process, _UNATTRIBUTED)
    gaps = np.where(starting & (following != _EXIT), _START, following)
    gaps[gaps == _EXIT] = _UNATTRIBUTED
    codes = np.where(codes < 0, gaps, codes)
    used = calls.took[:-1] & (calls.ends[:-1] <= calls.starts[1:]) & ~starting[1:]
    used &= calls.process[:-1] == calls.process[1:]
    gaps[1:] = np.where(used, codes[:-1], gaps[1:])
    return _with_last_exec(calls, codes, gaps, execs, ends)


def helped(
    starts: Integers, codes: Integers, gaps: Integers, programs: list[tuple[int, int]]
) -> tuple[Integers, Integers]:
    """As ``charge``, for processes that have executed helpers.

    ``programs`` are the time of each execve, in order, and the PHASE of its program, NEUTRAL if it
    is not a helper.
    """
    begun = np.array([begin for begin, _ in programs], dtype=np.int64)
    served = np.array([NEUTRAL, *(phase for _, phase in programs)])
    purpose = served[np.searchsorted(begun, starts, side="right")]
    is_other = purpose == NEUTRAL
    return (
        np.where(is_other | (codes == _DATASTORE), codes, purpose),
        np.where(is_other | (gaps == _DATASTORE), gaps, purpose),
    )


def to_itself(spans: pl.DataFrame) -> Flags:
    """The rows of SPAN_SCHEMA that use a pipe which only one process writes and reads."""
    moved = (pl.col("kind") == "call") & pl.col("peer").is_not_null()
    wrote = pl.col("name").is_in(["write", "writev"]).any()
    rows = spans.lazy()
    users = (
        rows.filter(moved & (pl.col("result") > 0))
        .group_by("sample", "peer")
        .agg(alone=(pl.col("pid").n_unique() == 1) & wrote & (pl.col("name") == "read").any())
    )
    joined = rows.select("sample", "peer", moved=moved).join(
        users, on=["sample", "peer"], how="left", maintain_order="left"
    )
    is_alone = pl.col("moved") & pl.col("alone").fill_null(value=False)
    return joined.select(is_alone).collect().to_series().to_numpy()


def answered(codes: Integers, thread: Integers) -> Integers:
    """Threads' calls, with answers replaced by the phase of the preceding classified call."""
    return np.where(codes == ANSWER, before(codes, firsts(thread), NEUTRAL), codes)


def _masked(codes: Integers, process: Integers) -> Integers:
    """Changes of the signal mask that follow the setting of handlers are part of it."""
    follows = before(codes, firsts(process), NEUTRAL) == _SIGNALS
    return np.where(codes == MASK, np.where(follows, _SIGNALS, NEUTRAL), codes)


def _before_exec(codes: Integers, process: Integers) -> Integers:
    """Handlers that a child resets before it executes a program are part of that start."""
    signals = codes == _SIGNALS
    follows = after(np.where(signals, NEUTRAL, codes), process, _UNATTRIBUTED) == _START
    return np.where(signals & follows, _START, codes)


def _is_own(codes: Integers) -> Flags:
    """Whether a call is the program's own, not its language run-time's."""
    return np.asarray((codes >= 0) & (codes != _START) & (codes != _SIGNALS))


def _starting(calls: Calls, codes: Integers, execs: Execs) -> Flags:
    """Whether the program has made no own call before each call."""
    first = firsts(calls.process)
    begun = _latest(codes == _START, calls.starts, first)
    if len(execs.starts):
        latest = np.searchsorted(execs.starts, calls.starts, side="right") - 1
        nearest = np.maximum(latest, 0)
        mine = (latest >= 0) & (execs.process[nearest] == calls.process)
        begun = np.maximum(begun, np.where(mine, execs.starts[nearest], _NEVER))
    own = _latest(_is_own(codes), calls.starts, first)
    own_before = np.concatenate([[_NEVER], own[:-1]])
    own_before[first == np.arange(len(first))] = _NEVER
    return np.asarray(begun > own_before)


def _latest(chosen: Flags, starts: Integers, first: Integers) -> Integers:
    """For each call, when the latest chosen call of its process began, or NEVER."""
    latest = np.maximum.accumulate(np.where(chosen, np.arange(len(starts)), -1))
    return np.where(latest >= first, starts[np.maximum(latest, 0)], _NEVER)


def _with_last_exec(
    calls: Calls, codes: Integers, gaps: Integers, execs: Execs, ends: Integers
) -> tuple[Integers, Integers]:
    """Mark the time after the last execve as ``exec`` if the end point precedes any own call."""
    last = np.full(len(ends), _NEVER)
    in_time = execs.starts <= ends[execs.process]
    np.maximum.at(last, execs.process[in_time], execs.starts[in_time])
    executed, end = last[calls.process], ends[calls.process]
    own = (calls.starts >= executed) & (calls.starts < end) & _is_own(calls.codes)
    is_payload = (last != _NEVER) & (np.bincount(calls.process[own], minlength=len(ends)) == 0)
    late = is_payload[calls.process] & (calls.ends >= executed)
    inside = late & (calls.starts < end)
    return np.where(inside, _EXEC, codes), np.where(late, _EXEC, gaps)


def namespace_edges(detail: str, start: int, marks: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Where each kind of namespace begins within one call, and its phase."""
    kinds = set(detail.split(","))
    net = next((at for at, function in marks if "net" in function), None)
    if "net" not in kinds or net is None:
        net = None
    edges: list[tuple[int, str]] = []
    others = kinds - {"net", "mount", "into-cgroup"}
    if "mount" in kinds:
        edges.append((start, "ns.mount"))
        after = next((at for at, function in marks if "vfsmnt" not in function), None)
        if others and after is not None and after != net:
            edges.append((after, "ns.other"))
    elif others:
        edges.append((start, "ns.other"))
    if net is not None:
        edges.append((net, "ns.net"))
    elif "net" in kinds:
        return [(start, "ns.net")]
    return edges or [(start, "ns.other")]
