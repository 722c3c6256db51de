"""Counts what each traced start did: calls, requests, processes, waits, bytes.

A count depends on the program and the kernel, hardly on the machine's load: a start that takes
twice as long on a busy machine makes the same system calls. ``gate`` compares them.
"""

from collections.abc import Iterator

import numpy as np
import polars as pl

from firstlight.analysis import causes
from firstlight.analysis.words import Words
from firstlight.model import Sample
from firstlight.store import Run

SCHEMA = pl.Schema({"sample": pl.UInt32(), "count": pl.String(), "value": pl.Int64()})

CALL, REQUEST, PROGRAM = "call", "netlink", "exec"
RCU, LOCK = "RCU wait", "lock wait"
PROCESSES, THREADS = "processes", "threads"
READ, WRITTEN = "bytes read", "bytes written"
FAULTS = "page faults"
"""The kinds of counts: a kind and a name, such as ``call mount``, or the kind alone."""

_TAKING = ("read", "pread64", "readv", "recvfrom", "recvmsg", "getdents64")
_GIVING = ("write", "pwrite64", "writev", "sendto", "sendmsg", "sendfile", "copy_file_range",
           "splice")  # fmt: skip
_OF_THE_HOST = r"^(proc|sysfs|cgroup2?|securityfs|nsfs):"
"""Files whose length is the host's: a mount more on the host is a longer mountinfo. Reads of them
are not counted, opens are."""


def counts(run: Run) -> pl.DataFrame:
    """The counts of each traced start that became ready, as SCHEMA; zeros are left out.

    A span counts if it begins before the end point; page faults are those of the process tree to
    its end. Starts with lost events are left out, because their counts would be too low.
    """
    usable = {sample.index: sample for sample in run.samples if is_whole(sample)}
    faults = [(index, FAULTS, sample.page_faults) for index, sample in usable.items()]
    parts = [pl.DataFrame([row for row in faults if row[2]], schema=SCHEMA, orient="row")]
    for _, spans in run.span_batches():
        own = [usable[index] for index in spans["sample"].unique().to_list() if index in usable]
        if own:
            parts.append(of_spans(spans, own))
    return pl.concat(parts)


def is_whole(sample: Sample) -> bool:
    """Whether all events of the start were seen, from its beginning to its end point."""
    return sample.traced and sample.latency is not None and not sample.lost


def of_spans(spans: pl.DataFrame, samples: list[Sample]) -> pl.DataFrame:
    """The counts of these samples, as SCHEMA."""
    ends = pl.DataFrame(
        {
            "sample": [each.index for each in samples],
            "ready": [each.stamps.ready for each in samples],
        },
        schema={"sample": pl.UInt32, "ready": pl.Int64},
    )
    words = [
        pl.col(name).cast(pl.String).fill_null("") for name in ("kind", "name", "detail", "stack")
    ]
    own = (
        spans.lazy()
        .join(ends.lazy(), on="sample")
        .filter(pl.col("start") <= pl.col("ready"))
        .with_columns(words)
        .collect()
    )
    sums = [part.group_by("sample", "count").agg(pl.col("value").sum()) for part in _parts(own)]
    return pl.concat(sums).cast(SCHEMA).collect()


def _parts(spans: pl.DataFrame) -> Iterator[pl.LazyFrame]:
    """Rows of sample, count and value, some of them several times."""
    unit = pl.lit(1, pl.Int64).alias("value")
    every = spans.lazy()
    calls = every.filter(pl.col("kind") == "call")
    read_of_host = pl.col("name").is_in(_TAKING) & pl.col("detail").str.contains(_OF_THE_HOST)
    yield calls.filter(~read_of_host).select("sample", _named(CALL, pl.col("name")), unit)
    requests = calls.filter(pl.col("detail").str.contains(r"^socket:netlink\.\S+ \S"))
    request = pl.col("detail").str.strip_prefix("socket:netlink.")
    yield requests.select("sample", _named(REQUEST, request), unit)
    moved = pl.col("result").fill_null(0).clip(lower_bound=0).alias("value")
    for names, count in ((_TAKING, READ), (_GIVING, WRITTEN)):
        yield calls.filter(pl.col("name").is_in(names) & ~read_of_host).select(
            "sample", pl.lit(count).alias("count"), moved
        )
    forks = every.filter(pl.col("kind") == "fork")
    for name, count in (("process", PROCESSES), ("thread", THREADS)):
        yield forks.filter(pl.col("name") == name).select(
            "sample", pl.lit(count).alias("count"), unit
        )
    programs = (
        every.filter(pl.col("kind") == "exec")
        .sort("start")
        .with_columns(program=pl.col("detail").str.extract(r"([^/]*)$"))
    )
    program = pl.col("program")
    is_itself = program.str.contains(r"^(\d+|exe)$") | (program == program.first().over("sample"))
    named = pl.when(is_itself).then(pl.lit("itself")).otherwise(program)
    yield programs.select("sample", _named(PROGRAM, named), unit)
    yield from _waits(spans, calls)


def _waits(spans: pl.DataFrame, calls: pl.LazyFrame) -> Iterator[pl.LazyFrame]:
    """Waits for RCU and for locks. Several of a thread for one cause in one call count once.

    The kernel may sleep more than once for a grace period: in a queue for it, and then for itself.
    """
    waits = spans.filter(pl.col("kind").is_in(["blocked", "lock"]) & (pl.col("stack") != ""))
    columns = "kind", "stack", "name", "detail"
    each = Words(waits, *columns).combinations(np.arange(len(waits)), *columns)
    known = np.array([_cause(*words) for words in each.words], dtype=object)
    cause = pl.Series(known[each.place].tolist(), dtype=pl.String)
    found = waits.lazy().with_columns(count=cause).filter(pl.col("count").is_not_null())
    begun = calls.select("sample", "tid", "start", call=pl.col("start"), call_end=pl.col("end"))
    inside = found.sort("start").join_asof(
        begun.sort("start"), on="start", by=["sample", "tid"], check_sortedness=False
    )
    of_call = pl.when(pl.col("call_end") >= pl.col("end")).then(pl.col("call"))
    yield (
        inside.with_columns(at=of_call.otherwise(pl.col("start")))
        .unique(["sample", "tid", "count", "at"])
        .select("sample", "count", pl.lit(1, pl.Int64).alias("value"))
    )


def _cause(kind: str, stack: str, name: str, detail: str) -> str | None:
    """The count of a wait; None if it is neither for RCU nor for a lock."""
    cause = causes.of_lock(stack, name, detail) if kind == "lock" else causes.of_wait(stack)
    if cause.startswith("RCU: "):
        return f"{RCU} {cause.removeprefix('RCU: ')}"
    if kind == "lock":
        return f"{LOCK} {cause.removeprefix('lock: ').partition(' ')[0]}"
    return None


def _named(kind: str, name: pl.Expr) -> pl.Expr:
    return pl.concat_str(pl.lit(f"{kind} "), name).alias("count")
