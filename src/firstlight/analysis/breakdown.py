"""Divides starts into phases and causes.

The time from a start's intended arrival to its end point is divided along the *critical path*. The
path is followed backward from the thread that reached the end point: a thread owns the time back to
the moment when another one woke it from a wait for a peer (a pipe, a child, a futex); before that
the waker owns it, and before a thread's birth its parent. So parallel work counts once, and only
where the start waited for it.

Time in a reported call has the shade ``kernel``, time between calls ``around``; ``attribution``
determines the phase. What a process takes after its exit, to give back what it had, is ``kernel``,
too. If the end point is the exit, the time after that until it is seen is the load generator's. If
the end point is the first packet, the time from its request on is ``packet``.

The starts of many batches are worked on at once, as arrays.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from firstlight.analysis import attribution, boot, causes, phases, pods
from firstlight.analysis.columns import LATENESS, ON_CPU, QUEUED
from firstlight.analysis.critical_path import walk
from firstlight.analysis.instances import Instances
from firstlight.analysis.segments import Flags, Integers, Intervals, Line, distinct
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
STAGES = pl.Schema(
    {"sample": pl.UInt32(), "stage": pl.String(), "phase": pl.String(), "shade": pl.String(),
     "cause": pl.String(), "wall": pl.Int64()}
)  # fmt: skip
_PATHS = pl.Schema({"sample": pl.Int64(), **TIMELINE})
_STAGED = pl.Schema({**_PATHS, "stage": pl.String()})

_PHASE = attribution.PHASE
_START, _PACKET = _PHASE["process.start"], _PHASE["packet"]
_SLEEP, _COMPUTE = _PHASE[phases.SLEEP], _PHASE[phases.COMPUTE]
_UNATTRIBUTED, _HYPERVISOR = _PHASE[phases.UNATTRIBUTED], _PHASE[boot.INIT]
_PHASES = pl.Series(phases.ORDER)
_SHADES = pl.Series(["around", "kernel"])
_CHUNK_SPANS = 100_000
"""Number of spans processed at once, unless a single batch has more."""


@dataclass(frozen=True)
class _Pieces:
    """Stretches of threads' time, each of one phase, shade and cause; times in ns."""

    thread: Integers
    start: Integers
    end: Integers
    phase: Integers
    kernel: Flags
    cause: Integers
    owned: Flags


def breakdown(run: Run) -> pl.DataFrame:
    """Each traced, ready sample's time by phase, shade and cause, as SCHEMA, in ns; but for those
    that components report, whose ``stages`` are their phases.

    ``wall`` is time on the critical path; it sums to the sample's latency. ``summed`` is the time
    of all threads of the instance, without sleeps and waits for each other off the critical path.
    """
    batches = set(run.traced_batches)
    followed = [
        sample
        for sample in run.samples
        if sample.traced
        and sample.stamps.ready is not None
        and not sample.telemetry
        and sample.batch in batches
    ]
    parts = [
        _summarise(Instances(*chunk, run.header.end_point)) for chunk in _chunks(run, followed)
    ]
    return pl.concat([pl.DataFrame(schema=SCHEMA), *parts])


def stages(run: Run) -> pl.DataFrame:
    """The time of each ready start that components report by stage and, inside the stages in which
    a traced one is followed, by phase, shade and cause: as STAGES, in ns.
    """
    reported = [sample for sample in run.samples if sample.telemetry and sample.latency is not None]
    parts = [
        paths.group_by("sample", "stage", "phase", "shade", "cause", maintain_order=True)
        .agg(wall=(pl.col("end") - pl.col("start")).sum())
        .cast(STAGES)
        for paths in _reported(run, reported)
    ]
    return pl.concat([pl.DataFrame(schema=STAGES), *parts])


def of_stages(stages: pl.DataFrame) -> pl.DataFrame:
    """STAGES as SCHEMA, with the stages for phases."""
    by_stage = stages.group_by("sample", "stage", "shade", "cause", maintain_order=True)
    sums = by_stage.agg(wall=pl.col("wall").sum(), summed=pl.col("wall").sum())
    return sums.rename({"stage": "phase"}).cast(SCHEMA)


def timeline(run: Run, sample: Sample) -> pl.DataFrame:
    """The critical path of one ready sample, as ``timelines``."""
    return timelines(run, [sample])[sample.index]


def timelines(run: Run, samples: Sequence[Sample]) -> dict[int, pl.DataFrame]:
    """The critical paths of some ready samples, by their indices, as TIMELINE and in order; in ns
    of CLOCK_MONOTONIC.
    """
    reported = [sample for sample in samples if sample.telemetry]
    followed = [sample for sample in samples if not sample.telemetry]
    paths = {sample.index: pl.DataFrame(schema=TIMELINE) for sample in reported}
    for part in _reported(run, reported):
        paths |= _by_sample(part.drop("stage"))
    for spans, some in _chunks(run, followed):
        paths |= timelines_of(spans, some, run.header.end_point)
    return paths


def timelines_of(
    spans: pl.DataFrame, samples: Sequence[Sample], end_point: EndPoint
) -> dict[int, pl.DataFrame]:
    """As ``timelines``, by these spans."""
    return _by_sample(_followed(spans, samples, end_point))


def _by_sample(paths: pl.DataFrame) -> dict[int, pl.DataFrame]:
    by_sample = paths.partition_by("sample", include_key=False, as_dict=True)
    return {sample: path for (sample,), path in by_sample.items()}


def _followed(spans: pl.DataFrame, samples: Sequence[Sample], end_point: EndPoint) -> pl.DataFrame:
    """The critical paths by the kernel's events alone, as _PATHS, by sample and in order."""
    instances = Instances(spans, samples, end_point)
    pieces = _cut(instances, every_call=True)
    own = np.flatnonzero(pieces.owned)
    thread = pieces.thread[own]
    index = np.array([sample.index for sample in instances.samples], np.int64)
    return pl.DataFrame(
        {
            "sample": index[instances.sample[thread]],
            "start": pieces.start[own],
            "end": pieces.end[own],
            "phase": _PHASES[pieces.phase[own]],
            "shade": _SHADES[pieces.kernel[own].astype(int)],
            "cause": pl.Series(instances.columns.causes)[pieces.cause[own]],
            "pid": instances.pid[thread],
            "tid": instances.tid[thread],
        },
        schema=_PATHS,
    ).sort("sample", "start", maintain_order=True)


def _reported(run: Run, samples: Iterable[Sample]) -> Iterator[pl.DataFrame]:
    """The critical paths of starts that components report, as _STAGED, some starts at a time: their
    stages, and inside the container runtime's, if the start was traced, the kernel's events.
    """
    for spans, some in _chunks(run, samples):
        traced = [pods.to_first_instruction(sample) for sample in some if sample.traced]
        paths = pl.DataFrame(schema=_PATHS)
        if traced:
            paths = _followed(spans, traced, run.header.end_point)
        yield _in_stages(some, paths)


def _in_stages(samples: Sequence[Sample], paths: pl.DataFrame) -> pl.DataFrame:
    """The stages of some starts, as _STAGED, divided by the ``paths`` of those that are traced."""
    paths = paths.filter(pl.col("start") < pl.col("end"))
    samples = sorted(samples, key=lambda sample: sample.index)
    index = np.array([sample.index for sample in samples], np.int64)
    stages = [
        (number, stage.start, stage.end, stage.phase)
        for number, sample in enumerate(samples)
        for stage in pods.stretches(sample)
    ]
    if not stages:
        return pl.DataFrame(schema=_STAGED)
    of, begins, ends = np.array([stage[:3] for stage in stages], np.int64).T
    names = pl.Series([phase for *_, phase in stages])
    is_followed = names.is_in(list(pods.TRACED)).to_numpy()
    start, end = paths["start"].to_numpy(), paths["end"].to_numpy()
    origin = min(int(each.min()) for each in (begins, start) if len(each))
    latest = max(int(each.max()) for each in (ends, end) if len(each))
    line = Line(origin, latest - origin + 2)
    stage_at = Intervals(line.at(of, begins), line.at(of, ends), np.arange(len(stages)))
    number = np.searchsorted(index, paths["sample"].to_numpy())
    piece_at = Intervals(line.at(number, start), line.at(number, end), np.arange(len(paths)))
    cuts = np.concatenate([piece_at.starts, piece_at.ends])
    is_inside, stage = stage_at.inside(cuts)
    cuts = cuts[is_inside & is_followed[stage]]
    edges = distinct(np.concatenate([stage_at.starts, stage_at.ends, cuts]))
    is_inside, stage = stage_at.inside(edges[:-1])
    at, until, stage = edges[:-1][is_inside], edges[1:][is_inside], stage[is_inside]
    is_covered, piece = piece_at.inside(at)
    is_covered &= is_followed[stage]
    not_traced = pl.DataFrame(
        {"phase": "", "shade": "around", "cause": causes.NOT_TRACED, "pid": 0, "tid": 0}
    )
    pieces = pl.concat([paths.select(not_traced.columns), not_traced])
    found = pieces[np.where(is_covered, piece, len(paths))]
    is_bare = pl.lit(pl.Series(~is_covered))
    return found.with_columns(
        sample=pl.Series(index[of[stage]]),
        start=pl.Series(line.times(at)),
        end=pl.Series(line.times(until)),
        phase=pl.when(is_bare).then(names[stage]).otherwise("phase"),
        stage=names[stage],
    ).select(_STAGED.names())


def _chunks(run: Run, samples: Iterable[Sample]) -> Iterator[tuple[pl.DataFrame, list[Sample]]]:
    """The samples, those of some batches at a time, with their spans."""
    batches: dict[int, list[Sample]] = {}
    for sample in samples:
        batches.setdefault(sample.batch, []).append(sample)
    frames: list[pl.DataFrame] = []
    chosen: list[Sample] = []
    for number in sorted(batches):
        frames.append(run.spans_of(*batches[number]))
        chosen += batches[number]
        if sum(map(len, frames)) >= _CHUNK_SPANS:
            yield pl.concat(frames), chosen
            frames, chosen = [], []
    if chosen:
        yield pl.concat(frames), chosen


def _summarise(instances: Instances) -> pl.DataFrame:
    """The sums of each sample's pieces, by phase, shade and cause."""
    pieces, names = _cut(instances), instances.columns.causes
    width = len(names)
    is_idle = instances.columns.is_cause(
        lambda cause: cause.startswith((causes.PEER, causes.SLEEP))
    )
    key = (instances.sample[pieces.thread] * len(_PHASES) + pieces.phase) * 2 + pieces.kernel
    key = key * width + pieces.cause
    counted = pieces.owned | ~is_idle[pieces.cause]
    length = np.where(counted, pieces.end - pieces.start, 0)
    keys = distinct(key[counted])
    group = np.searchsorted(keys, key[counted])
    wall = np.where(pieces.owned, length, 0)[counted]
    sums = {
        name: np.bincount(group, weights=taken, minlength=len(keys)).round().astype(np.int64)
        for name, taken in (("wall", wall), ("summed", length[counted]))
    }
    place, cause = keys // width, keys % width
    by_name = np.argsort(np.argsort(np.array(names)))
    order = np.lexsort((by_name[cause], place))
    place, cause = place[order], cause[order]
    index = np.array([sample.index for sample in instances.samples], np.int64)
    return pl.DataFrame(
        {
            "sample": index[place // 2 // len(_PHASES)],
            "phase": _PHASES[place // 2 % len(_PHASES)],
            "shade": _SHADES[place % 2],
            "cause": pl.Series(names)[cause],
            "wall": sums["wall"][order],
            "summed": sums["summed"][order],
        },
        schema=SCHEMA,
    )


def _cut(instances: Instances, *, every_call: bool = False) -> _Pieces:
    """Cut each thread's time wherever its phase, shade, cause or ownership changes.

    Or, on the critical path alone, at ``every_call`` of its process: the rest is then cut less.
    """
    line, calls = instances.line, instances.calls
    begins, owned = _walk(instances)
    ends = np.array([sample.stamps.ready for sample in instances.samples], np.int64)
    threads = np.flatnonzero(~instances.dropped)
    sample = instances.sample
    born = np.maximum(instances.birth, begins[sample])
    died = np.minimum(instances.exit, ends[sample])
    alive_from = line.at(threads, np.clip(born[threads], line.origin, ends[sample][threads] + 1))
    alive_to = line.at(threads, np.maximum(died[threads], line.origin))
    followed = [(owned.starts, owned.ends)]
    if not every_call:
        followed.append((alive_from, alive_to))
    own_calls = Intervals(
        line.at(calls.thread, calls.starts), line.at(calls.thread, calls.ends), calls.codes
    )
    waits = [instances.intervals(kind) for kind in ("blocked", "queued", "lock")]
    guests = {
        number: stretches
        for number, each in enumerate(instances.samples)
        if (stretches := boot.stretches(each))
    }
    edges = [
        own_calls.starts, own_calls.ends, owned.starts, owned.ends, alive_from, alive_to,
        *(edge for each in waits for edge in (each.starts, each.ends)),
        *(_process_edges(instances, *each, every_call=every_call) for each in followed),
        *_own_edges(instances, guests),
        *(
            line.at(threads, np.clip(times[threads], line.origin, ends[sample][threads]))
            for times in (instances.over, instances.gone)
        ),
    ]  # fmt: skip
    every = distinct(np.concatenate(edges))
    thread = line.segment(every)
    time = every - line.starts(thread)
    of = sample[thread]
    kept = (time >= begins[of]) & (time <= ends[of]) & ~instances.dropped[thread]
    every, thread = every[kept], thread[kept]
    same = thread[:-1] == thread[1:]
    start, stop, thread = every[:-1][same], every[1:][same], thread[:-1][same]
    in_owned, _ = owned.inside(start)
    at = start - line.starts(thread)
    alive = in_owned | ((at >= born[thread]) & (at < died[thread]))
    start, stop, in_owned = start[alive], stop[alive], in_owned[alive]
    thread, at = thread[alive], at[alive]
    kernel, phase = own_calls.inside(start)
    following = _following(instances, thread, at)
    phase = np.where(kernel, phase, _gap_phases(instances, *following))
    blocked, queued, locks = waits
    cause = np.full(len(start), ON_CPU)
    for intervals in (blocked, locks):
        covered, code = intervals.inside(start)
        cause = np.where(covered, code, cause)
    cause = np.where(queued.inside(start)[0], QUEUED, cause)
    phase = _with_pauses(
        instances, _Gaps(start, stop, thread, at, ~kernel, following[0]), phase, cause
    )
    unseen = in_owned & (at >= instances.gone[thread])
    cause[unseen] = LATENESS
    kernel = (kernel | (at >= instances.over[thread])) & ~unseen
    pieces = _Pieces(thread, at, at + (stop - start), phase, kernel, cause, in_owned)
    for number, stretches in guests.items():
        _with_guest(pieces, sample[thread] == number, stretches)
    for number, requested in enumerate(instances.packet_requests):
        if requested is not None:
            packet = in_owned & (sample[thread] == number) & (pieces.start >= requested)
            pieces.phase[packet] = _PACKET
    return _with_lateness(instances, pieces, begins)


@dataclass(frozen=True)
class _Gaps:
    """Stretches of threads' time, on the line and from its ``origin``, which are ``between`` the
    calls of their threads, and the ``place`` of the next call of their process."""

    starts: Integers
    ends: Integers
    thread: Integers
    at: Integers
    between: Flags
    place: Integers


def _with_pauses(instances: Instances, gaps: _Gaps, phase: Integers, cause: Integers) -> Integers:
    """The phases, with ``sleep`` and ``compute`` where the time between two calls of a phase is too
    long to have prepared one."""
    latest = np.searchsorted(instances.call_starts, gaps.starts, side="right")
    gap = np.cumsum(
        (np.diff(latest, prepend=-1) != 0) | (np.diff(gaps.thread, prepend=-1) != 0)
    )  # the stretches are in order, so that those between the same two calls lie together
    processes = instances.processes
    between = gaps.between & (gaps.at < instances.exit[gaps.thread])
    is_sleep = instances.columns.is_cause(lambda name: name.startswith(causes.SLEEP))[cause]
    is_busy = (cause == ON_CPU) | (cause == QUEUED)
    for code, chosen, allowed, counted, longest in (
        (_SLEEP, is_sleep, processes.pauses, is_sleep, phases.LONGEST_PAUSE),
        (_COMPUTE, is_busy, processes.computes, cause == ON_CPU, phases.LONGEST_PREPARATION),
    ):
        chosen = chosen & between & (allowed[gaps.place] if len(allowed) else True)
        length = np.where(chosen & counted, gaps.ends - gaps.starts, 0)
        total = np.bincount(gap, weights=length)
        phase = np.where(chosen & (total[gap] > longest), code, phase)
    return phase


def _walk(instances: Instances) -> tuple[Integers, Intervals]:
    """The beginning of each sample's critical path, and its owners, on the line of threads."""
    begins = []
    owned: list[tuple[int, int, int]] = []
    for number, sample in enumerate(instances.samples):
        threads = instances.threads_of(number)
        assert sample.stamps.ready is not None
        last = threads[instances.last(number)]
        begins.append(walk(threads, last, sample.stamps.intended, sample.stamps.ready))
        for place, thread in zip(instances.members(number), threads.values(), strict=True):
            owned += [(place, start, end) for start, end in thread.owned]
    table = np.array(sorted(owned), np.int64).reshape(-1, 3)
    starts = instances.line.at(table[:, 0], table[:, 1])
    ends = instances.line.at(table[:, 0], table[:, 2])
    return np.array(begins, np.int64), Intervals(starts, ends, table[:, 0])


def _process_edges(
    instances: Instances, begin: Integers, end: Integers, *, every_call: bool
) -> Integers:
    """Where the phase between calls changes in a thread's process, or at ``every_call``: in
    stretches of threads, given on the line, and once behind each.

    Stretches, because a program of many threads has calls times threads edges.
    """
    processes, line = instances.processes, instances.line
    chosen = processes.starts
    if not every_call:
        chosen = chosen[processes.gaps != processes.gaps_after]
    thread = line.segment(begin)
    process = instances.process[thread]
    shift = (process - thread) * line.length
    low = np.searchsorted(chosen, begin + shift)
    last = np.searchsorted(chosen, (process + 1) * line.length)
    high = np.minimum(np.searchsorted(chosen, end + shift, side="right") + 1, last)
    count = np.maximum(high - low, 0)
    place = np.repeat(low - (np.cumsum(count) - count), count) + np.arange(count.sum())
    edges: Integers = chosen[place] - np.repeat(shift, count)
    return edges


def _own_edges(instances: Instances, guests: dict[int, list[boot.Stretch]]) -> Iterator[Integers]:
    """Where a guest's phases begin, and where the first packet was requested."""
    for number in range(len(instances.samples)):
        times = [stretch.start for stretch in guests.get(number, ())]
        if (requested := instances.packet_requests[number]) is not None:
            times.append(requested)
        if times:
            threads = np.array(instances.members(number), np.int64)
            yield instances.line.at(
                np.repeat(threads, len(times)), np.tile(np.array(times, np.int64), len(threads))
            )


def _gap_phases(
    instances: Instances, place: Integers, is_last: Flags, has_calls: Flags
) -> Integers:
    """The phase of times between calls, by what is ``_following``."""
    processes = instances.processes
    if not len(processes.starts):
        return np.full(len(place), _UNATTRIBUTED)
    phase = np.where(is_last, processes.gaps_after[place], processes.gaps[place])
    return np.where(has_calls, phase, _UNATTRIBUTED)


def _following(
    instances: Instances, thread: Integers, at: Integers
) -> tuple[Integers, Flags, Flags]:
    """The place of the next call of each time's process, or of its last call, then marked so; and
    whether the process has any call."""
    processes, process = instances.processes, instances.process[thread]
    low, high = processes.bounds[process], processes.bounds[process + 1]
    place = np.searchsorted(processes.starts, instances.line.at(process, at), side="right")
    return np.minimum(place, np.maximum(high - 1, 0)), place >= high, low < high


def _with_guest(pieces: _Pieces, mine: Flags, stretches: Sequence[boot.Stretch]) -> None:
    """Once a guest runs, its phases own the time. Before, everything except program starts belongs
    to the hypervisor.
    """
    edges = np.array([each.start for each in stretches], dtype=np.int64)
    codes = np.array([_HYPERVISOR, *(_PHASE[each.phase] for each in stretches)])
    stretch = np.searchsorted(edges, pieces.start[mine], side="right")
    is_start = (stretch == 0) & (pieces.phase[mine] == _START)
    pieces.phase[mine] = np.where(is_start, _START, codes[stretch])


def _with_lateness(instances: Instances, pieces: _Pieces, begins: Integers) -> _Pieces:
    """The time before a critical path begins, when the load generator had not started it yet."""
    count = len(instances.samples)
    arrivals = np.array([sample.stamps.intended for sample in instances.samples], np.int64)
    late = _Pieces(
        np.array(instances.roots, np.int64), arrivals, begins, np.full(count, _START),
        np.zeros(count, np.bool_), np.full(count, LATENESS), np.ones(count, np.bool_),
    )  # fmt: skip
    return _Pieces(
        *(
            np.concatenate([getattr(late, name), getattr(pieces, name)])
            for name in _Pieces.__dataclass_fields__
        )
    )
