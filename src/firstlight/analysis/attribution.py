"""Which phase each call of a process, and the time before it, belongs to.

A call that the phase table names is its phase's. The rest follows from its neighbours:

- From execve, or from what only a language's run-time does when it starts, to the program's first
  own call, all is ``process.start``; in the program that reaches the end point it is ``exec``.
- An answer goes with its request, and a change of the signal mask with the handlers set before it.
- After a call that took data in, the time to the next call goes with it: the data is being used.
  A few words are no data: they tell what to do next.
- In a helper program (iptables, an address plugin) all is the helper's phase, but for what it asks
  of a daemon.
- All else, calls that the table leaves neutral included, goes with the next classified call, which
  it prepares.

``make bench`` checks these rules against the functions of a real runtime.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from firstlight.analysis import phases

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

PHASE = {name: code for code, name in enumerate(phases.ORDER)}
NEUTRAL, ANSWER, MASK = -1, -2, -3
"""Codes of calls that have no phase of their own."""
CODE = {**PHASE, phases.ANSWER: ANSWER, phases.MASK: MASK}

_START, _EXEC, _EXIT = PHASE["process.start"], PHASE["exec"], PHASE["process.exit"]
_SIGNALS, _UNATTRIBUTED = PHASE["signals"], PHASE[phases.UNATTRIBUTED]
_DATASTORE = PHASE["datastore"]
_NEVER = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Calls:
    """A process's reported calls in order of start; arrays of shape (n,), times in ns.

    ``codes`` are PHASE or NEUTRAL; ``took`` says which calls took data in, or the end of it.
    """

    starts: Integers
    ends: Integers
    codes: Integers
    took: Flags


def charge(calls: Calls, execs: list[int], end: int) -> tuple[Integers, Integers]:
    """The phase of each call, and of the time before each; both of shape (n,), none neutral.

    ``execs`` are the times of the process's execve, ``end`` that of the instance's end point.
    """
    codes = _before_exec(_masked(calls.codes))
    starting = _starting(calls.starts, codes, np.sort(np.array(execs, dtype=np.int64)))
    codes = np.where(starting & ~_is_own(codes), _START, codes)
    following = _following(codes)
    gaps = np.where(starting & (following != _EXIT), _START, following)
    gaps[gaps == _EXIT] = _UNATTRIBUTED
    codes = np.where(codes < 0, gaps, codes)
    used = calls.took[:-1] & (calls.ends[:-1] <= calls.starts[1:]) & ~starting[1:]
    gaps[1:] = np.where(used, codes[:-1], gaps[1:])
    return _with_last_exec(calls, codes, gaps, execs, end)


def helped(
    starts: Integers, codes: Integers, gaps: Integers, programs: list[tuple[int, int]]
) -> tuple[Integers, Integers]:
    """As ``charge``, when the process has executed helpers.

    ``programs`` are the time of each execve, in order, and the PHASE that its program serves,
    NEUTRAL where that is not a helper.
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
    """Which rows of SPAN_SCHEMA use a pipe that one process alone writes to and reads from."""
    moved = (pl.col("kind") == "call") & pl.col("peer").is_not_null()
    wrote = pl.col("name").is_in(["write", "writev"]).any()
    users = (
        spans.filter(moved & (pl.col("result") > 0))
        .group_by("sample", "peer")
        .agg(alone=(pl.col("pid").n_unique() == 1) & wrote & (pl.col("name") == "read").any())
    )
    joined = spans.select("sample", "peer", moved=moved).join(
        users, on=["sample", "peer"], how="left", maintain_order="left"
    )
    return np.asarray(joined["moved"] & joined["alone"].fill_null(False))


def answered(codes: Integers) -> Integers:
    """One thread's calls, answers replaced by the phase of the call before them that has one."""
    return np.where(codes == ANSWER, _before(codes), codes)


def _masked(codes: Integers) -> Integers:
    """Changes of the signal mask that follow the setting of handlers are part of it."""
    mask = codes == MASK
    return np.where(mask, np.where(_before(codes) == _SIGNALS, _SIGNALS, NEUTRAL), codes)


def _before_exec(codes: Integers) -> Integers:
    """Handlers that a child resets before it executes a program are part of that start."""
    signals = codes == _SIGNALS
    follows = _following(np.where(signals, NEUTRAL, codes)) == _START
    return np.where(signals & follows, _START, codes)


def _before(codes: Integers) -> Integers:
    """The phase of the latest call that has one, at each call; NEUTRAL if none has."""
    latest = np.maximum.accumulate(np.where(codes >= 0, np.arange(len(codes)), -1))
    return np.where(latest >= 0, codes[np.maximum(latest, 0)], NEUTRAL)


def _is_own(codes: Integers) -> Flags:
    """Whether a call is the program's own, and not its language's run-time's."""
    return np.asarray((codes >= 0) & (codes != _START) & (codes != _SIGNALS))


def _starting(starts: Integers, codes: Integers, execs: Integers) -> Flags:
    """Whether no own call was made between the program's start and each call."""
    begun = np.maximum.accumulate(np.where(codes == _START, starts, _NEVER))
    if len(execs):
        latest = np.searchsorted(execs, starts, side="right") - 1
        begun = np.maximum(begun, np.where(latest >= 0, execs[np.maximum(latest, 0)], _NEVER))
    own = np.maximum.accumulate(np.where(_is_own(codes), starts, _NEVER))
    return np.asarray(begun > np.concatenate([[_NEVER], own[:-1]]))


def _following(codes: Integers) -> Integers:
    """The phase of the next call that has one, from each call on; of the last one at the end."""
    count = len(codes)
    place = np.where(codes >= 0, np.arange(count), count)
    after = np.minimum.accumulate(place[::-1])[::-1]
    known = codes[codes >= 0]
    last = known[-1] if len(known) else _UNATTRIBUTED
    return np.where(after < count, codes[np.minimum(after, count - 1)], last)


def _with_last_exec(
    calls: Calls, codes: Integers, gaps: Integers, execs: list[int], end: int
) -> tuple[Integers, Integers]:
    """Marks what follows the last execve as ``exec`` if no own call comes before the end point."""
    before = [at for at in execs if at <= end]
    if not before:
        return codes, gaps
    executed = max(before)
    if np.any((calls.starts >= executed) & (calls.starts < end) & _is_own(calls.codes)):
        return codes, gaps
    inside = (calls.ends >= executed) & (calls.starts < end)
    return np.where(inside, _EXEC, codes), np.where(calls.ends >= executed, _EXEC, gaps)


def namespace_edges(detail: str, start: int, marks: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Where each kind of namespace begins inside one call, and its phase."""
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
