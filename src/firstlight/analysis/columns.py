"""The spans of some starts as columns, its calls classified and its waits explained.

What a call or a wait is depends on its words alone: each distinct combination is looked up once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from firstlight.analysis import attribution, causes, phases
from firstlight.analysis.segments import Flags, Integers
from firstlight.store import TIMER

LATE = "load generator"
"""The cause of the time before a start's critical path begins."""
ON_CPU, QUEUED, LATENESS = 0, 1, 2
"""Codes of the causes that no span names."""
_NAMESPACE_CALLS = frozenset({"unshare", "clone", "clone3"})
_USED_BYTES = 64
_TAKING = frozenset({"read", "pread64", "readv", "recvfrom", "recvmsg"})
_WIDEST = 1 << 22
_KINDS = ("call", "blocked", "queued", "lock", "fork", "exec", "exit", "mark")


class Columns:
    """One row a span of the given samples, by sample, thread and start.

    ``sample`` counts the samples in the order of their indices. ``rows`` are the places of each
    kind of span; ``deferred``, ``pipe_writes`` and ``namespace_calls`` (which make several) are
    places too. ``phase`` is a phase's code or one of attribution's others, and ``cause`` an index
    into ``causes``. ``took`` says which calls took data in, ``at_end`` which met the end of it.
    """

    def __init__(self, spans: pl.DataFrame, samples: Sequence[int]) -> None:
        """``samples`` are the indices of the samples that count, ascending."""
        spans = spans.filter(pl.col("sample").is_in(samples)).sort(
            "sample", "tid", "start", "end", maintain_order=True
        )
        self._spans = spans
        self._codes = {name: _codes(spans[name]) for name in ("name", "detail", "stack")}
        self.sample: Integers = np.searchsorted(samples, spans["sample"].to_numpy())
        self.tid, self.pid, self.start, self.end = (
            spans[name].to_numpy().astype(np.int64) for name in ("tid", "pid", "start", "end")
        )
        self.peer: Integers = spans["peer"].fill_null(0).to_numpy().astype(np.int64)
        self._groups: dict[tuple[str, ...], _Group] = {}
        kind = spans["kind"].cast(pl.String)
        self.rows: dict[str, Integers] = {
            name: np.flatnonzero((kind == name).to_numpy()) for name in _KINDS
        }
        self._read_calls()
        self.causes = [causes.ON_CPU, causes.QUEUED, LATE]
        blocked, locks = self.rows["blocked"], self.rows["lock"]
        self.cause: Integers = np.zeros(len(spans), np.int64)
        self.cause[blocked] = self._looked_up(
            "blocked",
            ("stack", "name"),
            lambda stack, by: self._code_of(causes.of_wait(stack, timed=by == TIMER)),
        )
        self.cause[locks] = self._looked_up(
            "lock",
            ("stack", "name", "detail"),
            lambda stack, kind, lock: self._code_of(causes.of_lock(stack, kind, lock)),
        )
        # A call may do work on return to user space (umount does): the wait follows its exit.
        deferred = self._looked_up("blocked", ("stack",), lambda stack: "task_work_run" in stack)
        self.deferred: Integers = blocked[deferred.astype(np.bool_)]

    def _read_calls(self) -> None:
        spans, calls = self._spans, self.rows["call"]
        self.phase: Integers = np.full(len(spans), attribution.NEUTRAL)
        self.phase[calls] = self._looked_up("call", ("name", "detail"), _phase_of)
        refused = (spans["name"] == "seccomp") & (spans["result"] < 0)
        # A refusal is the answer to a query.
        self.phase[refused.fill_null(False).to_numpy()] = attribution.NEUTRAL
        self.phase[attribution.to_itself(spans)] = attribution.NEUTRAL
        taking = np.zeros(len(spans), np.bool_)
        taking[calls] = self._looked_up("call", ("name",), lambda name: name in _TAKING)
        size = spans["result"].fill_null(-1).to_numpy()
        self.took: Flags = taking & (size >= _USED_BYTES)
        self.at_end: Flags = taking & (size == 0)
        to_pipe = self._looked_up(
            "call", ("name", "detail"), lambda name, detail: (name, detail) == ("write", "pipe:")
        )
        self.pipe_writes: Integers = calls[to_pipe.astype(np.bool_)]
        several = self._looked_up(
            "call",
            ("name", "detail"),
            lambda name, detail: name in _NAMESPACE_CALLS and "," in detail,
        )
        self.namespace_calls: Integers = calls[several.astype(np.bool_)]

    def is_cause(self, chosen: Callable[[str], bool]) -> Flags:
        """For each cause, whether it is one of those."""
        return np.array([chosen(cause) for cause in self.causes])

    def names(self, rows: Integers) -> list[str]:
        """The names of some spans."""
        return self._spans["name"][rows].cast(pl.String).to_list()

    def detail(self, row: int) -> str:
        """The detail of one span."""
        return str(self._spans["detail"][row])

    def _code_of(self, cause: str) -> int:
        if cause not in self.causes:
            self.causes.append(cause)
        return self.causes.index(cause)

    def _looked_up(self, kind: str, columns: tuple[str, ...], of: Callable[..., int]) -> Integers:
        """Apply ``of`` to the columns of each row of a kind, once per distinct combination."""
        if not len(self.rows[kind]):
            return np.empty(0, np.int64)
        key = (kind, *columns)
        if key not in self._groups:
            self._groups[key] = self._group(self.rows[kind], columns)
        group = self._groups[key]
        return np.array([of(*values) for values in group.distinct], np.int64)[group.place]

    def _group(self, rows: Integers, columns: tuple[str, ...]) -> "_Group":
        key, width = np.zeros(len(rows), np.int64), 1
        for name in columns:
            dense, count = _dense(self._codes[name][rows])
            if width * count > _WIDEST:
                _, key = np.unique(key * count + dense, return_inverse=True)
                width = int(key.max()) + 1
            else:
                key, width = key * count + dense, width * count
        place, count = _dense(key)
        first = np.empty(count, np.int64)
        first[place[::-1]] = rows[::-1]
        distinct = self._spans.select(columns)[first].rows()
        return _Group(place, [tuple(value or "" for value in row) for row in distinct])


@dataclass(frozen=True)
class _Group:
    """The distinct values of some rows, and the index of each row's."""

    place: Integers
    distinct: list[tuple[str, ...]]


def _codes(column: pl.Series) -> Integers:
    """A number for each value of a categorical column, from 0; null is 0."""
    return (column.to_physical().cast(pl.Int64) + 1).fill_null(0).to_numpy()


def _dense(codes: Integers) -> tuple[Integers, int]:
    """The same codes without gaps between them, and how many there are."""
    is_used = np.zeros(int(codes.max()) + 1, np.bool_)
    is_used[codes] = True
    return (np.cumsum(is_used) - 1)[codes], int(np.count_nonzero(is_used))


def _phase_of(name: str, detail: str) -> int:
    phase = phases.classify(name, detail)
    return attribution.NEUTRAL if phase is None else attribution.CODE[phase]
