"""The spans of some starts as columns, its calls classified and its waits explained.

What a call or a wait is depends on its words alone: each distinct combination is looked up once.
"""

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from firstlight.analysis import attribution, causes, phases
from firstlight.analysis.segments import Flags, Integers
from firstlight.analysis.words import Combinations, Words
from firstlight.store import TIMER

LATE = "load generator"
"""The cause of the time before a start's critical path begins, and after its process is gone."""
ON_CPU, QUEUED, LATENESS = 0, 1, 2
"""Codes of the causes that no span names."""
_NAMESPACE_CALLS = frozenset({"unshare", "clone", "clone3"})
_USED_BYTES = 64
_TAKING = frozenset({"read", "pread64", "readv", "recvfrom", "recvmsg"})
_KINDS = ("call", "blocked", "queued", "lock", "fork", "exec", "exit", "gone", "mark")


class Columns:
    """One row a span of the given samples, by sample, thread and start.

    ``sample`` counts the samples in the order of their indices. ``rows`` are the places of each
    kind of span; ``deferred``, ``pipe_writes`` and ``namespace_calls`` (which make several) are
    places too. ``phase`` is a phase's code or one of attribution's others, and ``cause`` an index
    into ``causes``. ``took`` says which calls took data in, ``at_end`` which met the end of it.
    """

    def __init__(self, spans: pl.DataFrame, samples: Sequence[int]) -> None:
        """``samples`` are the indices of the samples that count, ascending."""
        spans = spans.filter(pl.col("sample").is_in(samples))
        order = np.lexsort([spans[name].to_numpy() for name in ("end", "start", "tid", "sample")])
        spans = spans[order]
        self._spans = spans
        numbers = spans.select(
            pl.col("sample", "tid", "pid", "start", "end").cast(pl.Int64),
            pl.col("peer").cast(pl.Int64).fill_null(0),
            size=pl.col("result").fill_null(-1),
            refused=(pl.col("result") < 0).fill_null(value=False),
        )
        self.sample: Integers = np.searchsorted(samples, numbers["sample"].to_numpy())
        self.tid, self.pid, self.start, self.end, self.peer = (
            numbers[name].to_numpy() for name in ("tid", "pid", "start", "end", "peer")
        )
        self._words = Words(spans, "kind", "name", "detail", "stack")
        self.rows = self._words.rows("kind", *_KINDS)
        self._combinations: dict[tuple[str, ...], Combinations] = {}
        self._read_calls(numbers["size"].to_numpy(), numbers["refused"].to_numpy())
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

    def _read_calls(self, size: Integers, refused: Flags) -> None:
        """``size`` is what each call returned, and ``refused`` whether that is an error."""
        spans, calls = self._spans, self.rows["call"]
        self.phase: Integers = np.full(len(spans), attribution.NEUTRAL)
        self.phase[calls] = self._looked_up("call", ("name", "detail"), _phase_of)
        queries = self._looked_up("call", ("name",), lambda name: name == "seccomp")
        # A refusal is the answer to a query.
        self.phase[calls[queries.astype(np.bool_) & refused[calls]]] = attribution.NEUTRAL
        self.phase[attribution.to_itself(spans)] = attribution.NEUTRAL
        taking = np.zeros(len(spans), np.bool_)
        taking[calls] = self._looked_up("call", ("name",), lambda name: name in _TAKING)
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
        key = (kind, *columns)
        if key not in self._combinations:
            self._combinations[key] = self._words.combinations(self.rows[kind], *columns)
        return self._combinations[key].map(of)


def _phase_of(name: str, detail: str) -> int:
    phase = phases.classify(name, detail)
    return attribution.NEUTRAL if phase is None else attribution.CODE[phase]
