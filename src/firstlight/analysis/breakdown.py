"""Spans to phases and causes: whose work each instant of a start was, and what it was spent on.

The instants between a start's intended arrival and its end point are divided by the *critical
path*. It is walked backward from the thread that reached the end point: a thread owns the time
back to when another one woke it from a wait for a peer (a pipe, a child, a futex); from there the
waker owns it, and before its birth a thread's parent. So work that ran beside it counts once, and
only where the start waited for it.

A thread's instant in a reported call has the shade ``kernel``, and between calls ``around``; which
phase it belongs to is ``attribution``'s to say. Where the end point is the first packet, it is
``packet`` from when the instance's program asked for it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from firstlight.analysis import attribution, boot, causes, phases
from firstlight.analysis.attribution import Integers
from firstlight.analysis.critical_path import NONE, Thread, inside, walk
from firstlight.model import EndPoint, Sample
from firstlight.store import Run

SCHEMA = pl.Schema(
    {"sample": pl.UInt32(), "phase": pl.String(), "shade": pl.String(), "cause": pl.String(),
     "wall": pl.Int64(), "summed": pl.Int64()}
)  # fmt: skip
TIMELINE = pl.Schema(
    {"start": pl.Int64(), "end": pl.Int64(), "phase": pl.String(), "shade": pl.String(),
     "cause": pl.String(), "pid": pl.Int64(), "tid": pl.Int64()}
)  # fmt: skip

_LATE = "load generator"
_NAMESPACE_CALLS = frozenset({"unshare", "clone", "clone3"})
_PHASE = attribution.PHASE
_START, _EXEC = _PHASE["process.start"], _PHASE["exec"]
_PACKET = _PHASE["packet"]
_UNATTRIBUTED = _PHASE[phases.UNATTRIBUTED]
_HYPERVISOR = _PHASE[boot.INIT]
_USED_BYTES = 64
_TAKING = frozenset({"read", "pread64", "readv", "recvfrom", "recvmsg"})


@dataclass
class _Process:
    """When a process's calls begin, in order, the phase of the time before each, and that of the
    last call, to which what follows belongs."""

    starts: Integers
    gaps: Integers
    last: int


@dataclass(frozen=True)
class _Pieces:
    """Stretches of one thread's time, each of one phase, shade and cause."""

    start: Integers
    end: Integers
    phase: Integers
    kernel: npt.NDArray[np.bool_]
    cause: Integers
    owned: npt.NDArray[np.bool_]


def breakdown(run: Run) -> pl.DataFrame:
    """Each traced, ready sample's time by phase, shade and cause, as SCHEMA, in ns.

    ``wall`` is time on the critical path: it sums to the sample's latency exactly. ``summed`` is
    the time of all the instance's threads, less what they sleep or wait for one another off the
    critical path.
    """
    parts = []
    for reader, sample, rows in _traced(run):
        parts.append(_summarise(reader, sample, rows))
    return pl.concat(parts) if parts else pl.DataFrame(schema=SCHEMA)


def timeline(run: Run, sample: Sample) -> pl.DataFrame:
    """The critical path of one ready sample in order, as TIMELINE, in ns of CLOCK_MONOTONIC."""
    spans = run.spans_of(sample)
    reader = _Batch(spans, run.header.end_point)
    parts = [pl.DataFrame(schema=TIMELINE)]
    for thread, pieces in reader.pieces(sample, slice(0, len(spans))):
        chosen = np.flatnonzero(pieces.owned)
        parts.append(
            pl.DataFrame(
                {
                    "start": pieces.start[chosen],
                    "end": pieces.end[chosen],
                    "phase": [phases.ORDER[code] for code in pieces.phase[chosen]],
                    "shade": np.where(pieces.kernel[chosen], "kernel", "around"),
                    "cause": [reader.causes[code] for code in pieces.cause[chosen]],
                    "pid": np.full(len(chosen), thread.pid),
                    "tid": np.full(len(chosen), thread.tid),
                },
                schema=TIMELINE,
            )
        )
    return pl.concat(parts).sort("start")


def _traced(run: Run) -> Iterator[tuple["_Batch", Sample, slice]]:
    ready: dict[int, list[Sample]] = {}
    for sample in run.samples:
        if sample.traced and sample.stamps.ready is not None:
            ready.setdefault(sample.batch, []).append(sample)
    for number, spans in run.span_batches():
        batch = _Batch(spans, run.header.end_point)
        rows = dict(batch.samples())
        for sample in ready.get(number, ()):
            yield batch, sample, rows.get(sample.index, slice(0, 0))


def _summarise(batch: "_Batch", sample: Sample, rows: slice) -> pl.DataFrame:
    width = len(batch.causes)
    wall: dict[int, int] = {}
    summed: dict[int, int] = {}
    idle = np.array([cause.startswith((causes.PEER, causes.SLEEP)) for cause in batch.causes])
    for _, pieces in batch.pieces(sample, rows):
        length = pieces.end - pieces.start
        key = (pieces.phase * 2 + pieces.kernel) * width + pieces.cause
        for total, chosen in ((wall, pieces.owned), (summed, pieces.owned | ~idle[pieces.cause])):
            distinct, inverse = np.unique(key[chosen], return_inverse=True)
            sums = np.bincount(inverse, weights=length[chosen], minlength=len(distinct))
            for one, amount in zip(distinct.tolist(), sums.tolist(), strict=True):
                total[one] = total.get(one, 0) + round(amount)
    keys = sorted(
        wall.keys() | summed.keys(), key=lambda key: (key // width, batch.causes[key % width])
    )
    return pl.DataFrame(
        {
            "sample": [sample.index] * len(keys),
            "phase": [phases.ORDER[key // width // 2] for key in keys],
            "shade": ["kernel" if key // width % 2 else "around" for key in keys],
            "cause": [batch.causes[key % width] for key in keys],
            "wall": [wall.get(key, 0) for key in keys],
            "summed": [summed.get(key, 0) for key in keys],
        },
        schema=SCHEMA,
    )


class _Batch:
    """The spans of one batch as columns, its calls classified and its waits explained."""

    def __init__(self, spans: pl.DataFrame, end_point: EndPoint) -> None:
        self._end_point = end_point
        spans = spans.sort("sample", "tid", "start", maintain_order=True)
        self._sample = spans["sample"].to_numpy()
        self._tid = spans["tid"].to_numpy()
        self._pid = spans["pid"].to_numpy()
        self._peer = spans["peer"].fill_null(0).to_numpy()
        self._start = spans["start"].to_numpy()
        self._end = spans["end"].to_numpy()
        self._kind = _codes(spans, ["kind"], lambda row: row[0])
        self._names = _codes(spans, ["name"], lambda row: row[0])
        self._details = _codes(spans, ["detail"], lambda row: row[0])
        self._phase = _codes(spans, ["kind", "name", "detail"], _phase_of)
        taking = _codes(spans, ["name"], lambda row: row[0] in _TAKING)
        refused = (spans["name"] == "seccomp") & (spans["result"] < 0)
        self._phase[refused.fill_null(False).to_numpy()] = attribution.NEUTRAL  # it was a question
        self._phase[attribution.to_itself(spans)] = attribution.NEUTRAL
        bytes_ = spans["result"].fill_null(-1).to_numpy()
        self._took = taking & (bytes_ >= _USED_BYTES)
        self._at_end = taking & (bytes_ == 0)
        self.causes = [causes.ON_CPU, causes.QUEUED, _LATE]
        self._cause = _codes(spans, ["kind", "name", "stack", "detail"], self._cause_of)
        self._deferred = _codes(spans, ["kind", "stack"], _is_deferred).astype(np.bool_)

    def _cause_of(self, row: tuple[Any, ...]) -> int:
        kind, name, stack, detail = row
        if kind not in ("blocked", "lock"):
            return 0
        cause = causes.of_wait(stack) if kind == "blocked" else causes.of_lock(stack, name, detail)
        if cause not in self.causes:
            self.causes.append(cause)
        return self.causes.index(cause)

    def samples(self) -> Iterator[tuple[int, slice]]:
        """Each sample's index and rows."""
        yield from _runs(self._sample, 0)

    def pieces(self, sample: Sample, rows: slice) -> Iterator[tuple[Thread, _Pieces]]:
        """Every thread of a sample, cut into pieces between its arrival and its end point."""
        begin, end = sample.stamps.intended, sample.stamps.ready
        assert end is not None
        threads = self._threads(rows)
        root = threads.setdefault(sample.pid, Thread(sample.pid, sample.pid))
        threads.pop(root.parent or 0, None)  # the load generator is no part of the instance
        root.parent = None
        asked = self._asked(sample)
        begun = end if asked is None else asked
        processes = self._processes(threads, root.pid, rows, begun)
        late = walk(threads, self._last(threads, root, rows, begun), begin, end)
        yield root, _lateness(begin, late)
        guest = boot.stretches(sample)
        for thread in threads.values():
            pieces = _cut(thread, processes.get(thread.pid), late, end)
            pieces = _with_guest(pieces, guest) if guest else pieces
            yield thread, pieces if asked is None else _with_packet(pieces, asked)

    def _asked(self, sample: Sample) -> int | None:
        """When the first packet that is the end point was asked for, where a program says so."""
        if self._end_point is not EndPoint.FIRST_PACKET or sample.guest:
            return None
        return next((step.start for step in sample.steps if step.name == "packet"), None)

    def _threads(self, rows: slice) -> dict[int, Thread]:
        threads = {}
        followed = np.array([cause.startswith(causes.PEER) for cause in self.causes])
        parked = followed & np.array([cause != causes.VFORK for cause in self.causes])
        sleeping = np.array([cause == causes.SLEEP for cause in self.causes])
        for tid, part in _runs(self._tid[rows], rows.start):
            kind = self._kind[part]
            thread = Thread(tid, int(self._pid[part.start]))
            calls = np.flatnonzero(kind == "call") + part.start
            starts, ends, codes = self._intervals(calls, self._phase)
            deferred = np.flatnonzero(self._deferred[part]) + part.start
            _prolong(starts, ends, self._start[deferred], self._end[deferred])
            thread.calls = starts, ends, attribution.answered(codes)
            took = self._took[calls]
            took[1:] |= self._at_end[calls][1:] & took[:-1]
            thread.took = starts[took]
            thread.ended = next(iter(starts[codes == _PHASE["process.exit"]].tolist()), None)
            self._split(thread, part)
            blocked = np.flatnonzero(kind == "blocked") + part.start
            thread.blocked = self._intervals(blocked, self._cause)
            thread.queued = self._intervals(np.flatnonzero(kind == "queued") + part.start)
            locks = np.flatnonzero(kind == "lock") + part.start
            thread.locks = self._intervals(locks, self._cause)
            cause = self._cause[blocked]
            thread.sleeps = self._intervals(blocked[sleeping[cause]])
            thread.idle = self._intervals(blocked[sleeping[cause] | parked[cause]])
            wakes = blocked[followed[cause]]
            thread.wakes = list(
                zip(self._end[wakes].tolist(), self._peer[wakes].tolist(), strict=True)
            )
            exits = np.flatnonzero(kind == "exit")
            thread.exit = int(self._start[part][exits[-1]]) if len(exits) else None
            threads[tid] = thread
        forks = np.flatnonzero(self._kind[rows] == "fork") + rows.start
        for row in forks[np.argsort(self._start[forks], kind="stable")].tolist():
            child = threads.get(int(self._peer[row]))
            if child and child.parent is None:
                child.birth, child.parent = int(self._start[row]), int(self._tid[row])
        return threads

    def _intervals(
        self, rows: Integers, codes: npt.NDArray[Any] | None = None
    ) -> tuple[Integers, Integers, Integers]:
        code = np.zeros(len(rows), np.int64) if codes is None else codes[rows].astype(np.int64)
        return self._start[rows], self._end[rows], code

    def _split(self, thread: Thread, part: slice) -> None:
        """Divides calls that make a network namespace and others, by the kernel's own marks.

        The kernel makes them in the order of create_new_namespaces: mount, uts, ipc, pid, cgroup,
        net, time. Each allocates per-CPU memory in functions of its own.
        """
        marks = np.flatnonzero(self._kind[part] == "mark") + part.start
        if not len(marks):
            return
        calls = np.flatnonzero(self._kind[part] == "call") + part.start
        starts, ends, codes = [column.tolist() for column in thread.calls]
        for call in calls.tolist():
            if self._names[call] not in _NAMESPACE_CALLS or "," not in self._details[call]:
                continue
            start, end = int(self._start[call]), int(self._end[call])
            inside = marks[(self._start[marks] >= start) & (self._start[marks] <= end)]
            edges = attribution.namespace_edges(
                str(self._details[call]), start,
                [(int(self._start[mark]), str(self._names[mark])) for mark in inside],
            )  # fmt: skip
            at = starts.index(start)
            starts[at : at + 1] = [edge for edge, _ in edges]
            ends[at : at + 1] = [*(edge for edge, _ in edges[1:]), end]
            codes[at : at + 1] = [_PHASE[phase] for _, phase in edges]
        thread.calls = (
            np.array(starts, np.int64), np.array(ends, np.int64), np.array(codes, np.int64)
        )  # fmt: skip

    def _processes(
        self, threads: dict[int, Thread], root: int, rows: slice, end: int
    ) -> dict[int, _Process]:
        execs: dict[int, list[int]] = {}
        helpers: dict[int, list[tuple[int, int]]] = {}
        for row in (np.flatnonzero(self._kind[rows] == "exec") + rows.start).tolist():
            pid, at = int(self._pid[row]), int(self._start[row])
            execs.setdefault(pid, []).append(at)
            phase = phases.of_helper(str(self._details[row]))
            if pid != root and (phase or pid in helpers):
                code = attribution.NEUTRAL if phase is None else _PHASE[phase]
                helpers.setdefault(pid, []).append((at, code))
        processes = {}
        for pid in {thread.pid for thread in threads.values()}:
            own = [thread for thread in threads.values() if thread.pid == pid]
            starts, ends, codes = (
                np.concatenate([thread.calls[column] for thread in own]) for column in range(3)
            )
            if not len(starts):
                continue
            order = np.argsort(starts, kind="stable")
            took = np.isin(starts, np.concatenate([thread.took for thread in own]))
            calls = attribution.Calls(starts[order], ends[order], codes[order], took[order])
            charged, gaps = attribution.charge(calls, execs.get(pid, []), end)
            if pid in helpers:
                charged, gaps = attribution.helped(calls.starts, charged, gaps, helpers[pid])
            processes[pid] = _Process(calls.starts, gaps, int(charged[-1]))
            codes[order] = charged
            edges = np.cumsum([len(thread.calls[0]) for thread in own])[:-1]
            for thread, part in zip(own, np.split(codes, edges), strict=True):
                thread.calls = (*thread.calls[:2], part)
        return processes

    def _last(self, threads: dict[int, Thread], root: Thread, rows: slice, end: int) -> Thread:
        """The thread that reached the end point.

        Where that is an exit, it is the instance's first. Otherwise it is the payload, which has
        executed and called nothing else yet; or else the one that next writes to a pipe, to say so:
        where the instance's first writes to one too, to the same.
        """
        if self._end_point == EndPoint.EXIT:
            return root
        executed = np.flatnonzero(self._kind[rows] == "exec") + rows.start
        executed = executed[self._start[executed] <= end]
        for row in executed[np.argsort(self._start[executed])[::-1]].tolist():
            thread = threads[int(self._tid[row])]
            if _EXEC in thread.calls[2]:
                return thread
        kind, name = self._kind[rows], self._names[rows]
        detail = self._details[rows]
        said = np.flatnonzero((kind == "call") & (name == "write") & (detail == "pipe:"))
        said = said[self._start[rows][said] >= end] + rows.start
        own = said[self._tid[said] == root.tid]
        if len(own):
            said = said[self._peer[said] == self._peer[own[0]]]
        if len(said):
            return threads[int(self._tid[said[np.argmin(self._start[said])]])]
        return root


def _phase_of(row: tuple[Any, ...]) -> int:
    kind, name, detail = row
    phase = phases.classify(name, detail) if kind == "call" else None
    return attribution.NEUTRAL if phase is None else attribution.CODE[phase]


def _is_deferred(row: tuple[Any, ...]) -> bool:
    """Whether a wait is in work that a call put off to its return (umount does), after its exit."""
    kind, stack = row
    return kind == "blocked" and "task_work_run" in stack


def _prolong(starts: Integers, ends: Integers, waits: Integers, until: Integers) -> None:
    """Make the call before each wait last until the wait has ended."""
    if len(starts):
        place = np.searchsorted(starts, waits, side="right") - 1
        np.maximum.at(ends, place[place >= 0], until[place >= 0])


def _codes(
    spans: pl.DataFrame, columns: Sequence[str], of: Callable[[tuple[Any, ...]], Any]
) -> npt.NDArray[Any]:
    """``of`` each row's values in the columns, asked once for each distinct combination."""
    distinct = spans.select(columns).unique(maintain_order=True)
    values = [of(row) for row in distinct.rows()]
    joined = spans.select(columns).join(
        distinct.with_row_index("_code"), on=columns, how="left", maintain_order="left",
        nulls_equal=True,
    )  # fmt: skip
    return np.array(values)[joined["_code"].to_numpy()] if values else np.empty(0, object)


def _runs(column: npt.NDArray[Any], offset: int) -> Iterator[tuple[int, slice]]:
    """Each value of a sorted column and its rows, counted from ``offset``."""
    if not len(column):
        return
    edges = np.flatnonzero(np.diff(column)) + 1
    for first, last in zip([0, *edges.tolist()], [*edges.tolist(), len(column)], strict=True):
        yield int(column[first]), slice(offset + first, offset + last)


def _lateness(begin: int, path: int) -> _Pieces:
    """The time before the critical path begins: the load generator had not started it yet."""
    one = np.ones(1, dtype=np.int64)
    return _Pieces(begin * one, path * one, _START * one, np.zeros(1, np.bool_), 2 * one,
                   np.ones(1, np.bool_))  # fmt: skip


def _cut(thread: Thread, process: _Process | None, begin: int, end: int) -> _Pieces:
    """Cut one thread's time wherever its phase, shade, cause or ownership changes."""
    born = max(thread.birth, begin)
    died = min(thread.exit if thread.exit is not None else end, end)
    owned = np.array(thread.owned[::-1], dtype=np.int64).reshape(-1, 2)
    gaps = process.starts if process else NONE
    edges = np.concatenate(
        [*thread.calls[:2], *thread.blocked[:2], *thread.queued[:2], *thread.locks[:2], gaps,
         owned.ravel(), np.array([born, died])]
    )  # fmt: skip
    edges = np.unique(edges[(edges >= begin) & (edges <= end)])
    start, stop = edges[:-1], edges[1:]
    in_call, phase = inside(thread.calls, start)
    in_owned, _ = inside((owned[:, 0], owned[:, 1], owned[:, 0]), start)
    alive = in_owned | ((start >= born) & (start < died))
    phase = np.where(in_call, phase, _gap_phase(process, start))
    cause = np.zeros(len(start), dtype=np.int64)
    for intervals in (thread.blocked, thread.locks):
        covered, code = inside(intervals, start)
        cause = np.where(covered, code, cause)
    cause = np.where(inside(thread.queued, start)[0], 1, cause)
    return _Pieces(start[alive], stop[alive], phase[alive], in_call[alive], cause[alive],
                   in_owned[alive])  # fmt: skip


def _with_guest(pieces: _Pieces, guest: Sequence[boot.Stretch]) -> _Pieces:
    """Once a guest runs its phases own the time; before, what is no program's start is its
    hypervisor's."""
    edges = np.array([each.start for each in guest], dtype=np.int64)
    codes = np.array([_HYPERVISOR, *(_PHASE[each.phase] for each in guest)])
    order, start, end = _cut_at(pieces.start, pieces.end, edges)
    phase = pieces.phase[order]
    stretch = np.searchsorted(edges, start, side="right")
    phase = np.where((stretch == 0) & (phase == _START), _START, codes[stretch])
    return _Pieces(start, end, phase, pieces.kernel[order], pieces.cause[order],
                   pieces.owned[order])  # fmt: skip


def _with_packet(pieces: _Pieces, asked: int) -> _Pieces:
    """On the critical path, all that follows ``asked`` is for the first packet."""
    order, start, end = _cut_at(pieces.start, pieces.end, np.array([asked], dtype=np.int64))
    owned = pieces.owned[order]
    phase = np.where(owned & (start >= asked), _PACKET, pieces.phase[order])
    return _Pieces(start, end, phase, pieces.kernel[order], pieces.cause[order], owned)


def _cut_at(
    starts: Integers, ends: Integers, edges: Integers
) -> tuple[Integers, Integers, Integers]:
    """Intervals in order, cut at each edge inside one: whose part each is, and its bounds."""
    all_starts = np.unique(np.concatenate([starts, ends, edges]))
    at, until = all_starts[:-1], all_starts[1:]
    of = np.searchsorted(starts, at, side="right") - 1
    within = (of >= 0) & (at < ends[np.maximum(of, 0)]) if len(starts) else np.zeros(0, np.bool_)
    return of[within], at[within], until[within]


def _gap_phase(process: _Process | None, at: Integers) -> Integers:
    """The phase of the time between calls."""
    if process is None:
        return np.full(len(at), _UNATTRIBUTED)
    place = np.searchsorted(process.starts, at, side="right")
    after = np.minimum(place, len(process.starts) - 1)
    return np.where(place < len(process.starts), process.gaps[after], process.last)
