"""Known storms are named from the critical path, with their cost, and nothing else is."""

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import polars as pl
import pytest

from firstlight.analysis import Analysis, holders
from firstlight.analysis.breakdown import SCHEMA, TIMELINE
from firstlight.analysis.causes import TIMEOUT
from firstlight.analysis.spent import Spent
from firstlight.claims.advice import advise
from firstlight.claims.advice.storms import STORMS
from firstlight.model import Ending, Sample, Stamps
from firstlight.store import SPAN_SCHEMA

MS = 1_000_000
Piece = tuple[str, str, str, int]
USUAL: tuple[Piece, ...] = (
    ("process.start", "around", "on CPU", 20 * MS),
    ("mount", "kernel", "RCU: synchronize_rcu_expedited (namespace_unlock)", 2 * MS),
    ("ns.mount", "kernel", "on CPU", MS // 2),
    ("fork", "kernel", "on CPU", MS // 2),
    ("exec", "kernel", "on CPU", MS),
    ("security", "around", "on CPU", MS),
)
MET: dict[str, tuple[Piece, str]] = {
    "veth move": (
        ("veth.move", "kernel", "RCU: rcu_barrier (__dev_change_net_namespace)", 17 * MS), ""
    ),
    "cgroup move": (
        ("cgroup", "kernel", "RCU: rcu_sync_enter (cgroup_procs_write_start)", 10 * MS), ""
    ),
    "many mounts": (("ns.mount", "kernel", "on CPU", 6 * MS), ""),
    "id-mapped layers": (
        ("mount", "kernel", "RCU: synchronize_rcu (namespace_unlock)", 12 * MS),
        "call mount_setattr",
    ),
    "seccomp compiled anew": (("security", "around", "on CPU", 9 * MS), "call seccomp"),
    "rate limit": (("sleep", "around", "sleep", 30 * MS), ""),
    "image unpack": (("image", "kernel", "on CPU", 40 * MS), ""),
    "entropy": (("exec", "around", "unknown wait (wait_for_random_bytes)", 900 * MS), ""),
    "fork of a fat daemon": (("fork", "kernel", "on CPU", 20 * MS), ""),
    "duplicate-address detection": (
        ("ipam", "around", "another process: poll", 1500 * MS), "netlink RTM_NEWADDR"
    ),
    "xtables lock": (
        ("firewall", "kernel", "another process: file lock", 13 * MS), "exec xtables-legacy-multi"
    ),
    "fsync of state": (
        ("process.start", "kernel", "I/O (__filemap_fdatawait_range)", 18 * MS), "call fsync"
    ),
    "cold page cache": (("process.start", "kernel", "I/O (filemap_get_pages)", 14 * MS), ""),
}  # fmt: skip


def starts(
    *pieces: Piece, count: str = "", number: int = 6, held: tuple[tuple[str, str, int], ...] = (),
    cloned: int = 0, idle: int = 0, headline: str = "untraced",
) -> Analysis:  # fmt: skip
    """Traced starts with these pieces, in this order, as an Analysis has them. The last ``cloned``
    are of a child of the thread of those before, made ``idle`` ns before the first of them.

    ``held`` are the locks that each waited for, what the holder did, and for how long.
    """
    total = sum(piece[3] for piece in pieces)
    samples = [
        Sample(
            index=index, batch=index, instance=0, repetition=index, point={"instances": 1},
            traced=True, ending=Ending.READY, stamps=Stamps(0, 0, total),
        )
        for index in range(number)
    ]  # fmt: skip
    rows = [
        (sample.index, phase, shade, cause, wall, wall)
        for sample in samples
        for phase, shade, cause, wall in pieces
    ]
    kind, _, name = count.partition(" ")
    spans: list[tuple[Any, ...]] = []
    if kind == "call":
        spans += [(0, "call", name, "", "", 1, 2, 1, 1, 0, None)] * 4
    if kind == "exec":
        programs = "/usr/sbin/runc", f"/usr/sbin/{name}"
        spans += [(0, "exec", "exec", path, "", at, at, 1, 1, None, None)
                  for at, path in enumerate(programs)]  # fmt: skip
    if kind == "netlink":
        spans.append((0, "call", "sendto", f"socket:netlink.route {name}", "", 1, 2, 1, 1, 0, None))
    ends = [sum(piece[3] for piece in pieces[: place + 1]) for place in range(len(pieces))]
    if cloned:
        moment = ends[-cloned - 1] - idle
        spans.append((0, "fork", "clone", "", "", moment, moment, 1, 1, None, 2))
    frame = pl.DataFrame(
        [(sample.index, *span[1:]) for sample in samples for span in spans],
        schema=SPAN_SCHEMA,
        orient="row",
    )
    point = SimpleNamespace(
        point={"instances": 1},
        name="x × 1",
        latency=object(),
        traced_samples=tuple(samples),
        untraced_samples=(),
    )
    threads = [1] * (len(pieces) - cloned) + [2] * cloned
    path = [
        (end - wall, end, phase, shade, cause, tid, tid)
        for end, tid, (phase, shade, cause, wall) in zip(ends, threads, pieces, strict=True)
    ]
    queues = [(sample.index, *wait) for sample in samples for wait in held]
    fake = SimpleNamespace(
        header=SimpleNamespace(presentation=SimpleNamespace(headline=headline)),
        points=(point,),
        timelines=lambda some: [pl.DataFrame(path, schema=TIMELINE, orient="row") for _ in some],
        locks=SimpleNamespace(holders=pl.DataFrame(queues, schema=holders.SCHEMA, orient="row")),
        spent=Spent.read(pl.DataFrame(rows, schema=SCHEMA, orient="row")),
        run=SimpleNamespace(spans_of=lambda *_: frame),
    )
    return cast("Analysis", fake)


def test_each_storm_is_an_entry_that_this_test_meets() -> None:
    assert set(MET) == {storm.name for storm in STORMS}


@pytest.mark.parametrize("storm", MET)
def test_a_storm_is_named_with_what_it_costs(storm: str) -> None:
    piece, count = MET[storm]
    [first, *others] = advise(starts(*USUAL, piece, count=count), STORMS)
    assert first.storm == storm
    assert others == []
    assert 0.5 * piece[3] < first.gain.value < 1.5 * piece[3]
    assert first.evidence[0][:2] == (piece[0], piece[2])
    assert all(time > 0 for *_, time in first.evidence)
    assert first.remedy


@pytest.mark.parametrize("storm", ["duplicate-address detection", "rate limit"])
def test_a_sleep_that_is_a_wait_with_a_timeout_is_one(storm: str) -> None:
    """As in Go, whose programs sleep in a futex or epoll_wait."""
    (phase, shade, _, wall), count = MET[storm]
    [advice] = advise(starts(*USUAL, (phase, shade, TIMEOUT, wall), count=count), STORMS)
    assert advice.storm == storm


def test_one_wait_has_one_remedy() -> None:
    wait = ("sleep", "around", TIMEOUT, 1500 * MS)
    advice = advise(starts(*USUAL, wait, count="netlink RTM_NEWADDR"), STORMS)
    assert [each.storm for each in advice] == ["duplicate-address detection"]


def test_a_usual_start_meets_none() -> None:
    assert advise(starts(*USUAL), STORMS) == []


def test_a_large_execution_alone_is_no_fork() -> None:
    """As with many environment variables."""
    named = advise(starts(*USUAL, ("exec", "kernel", "on CPU", 12 * MS)), STORMS)
    assert "fork of a fat daemon" not in {each.storm for each in named}


@pytest.mark.parametrize("storm", [name for name, (_, count) in MET.items() if count])
def test_a_wait_alone_is_no_evidence(storm: str) -> None:
    """Without the call, request or program that the storm is made of, another thing waited."""
    assert advise(starts(*USUAL, MET[storm][0]), STORMS) == []


@pytest.mark.parametrize(
    ("storm", "headline", "factor"),
    [
        ("xtables lock", "untraced", 0.5),
        ("rate limit", "untraced", 1.0),
        ("xtables lock", "all", 1.0),
    ],
)
def test_a_trace_gives_the_share_and_untraced_starts_the_time(
    storm: str, headline: str, factor: float
) -> None:
    """But not of what watch kept, where the load decides which starts are traced."""
    piece, count = MET[storm]
    analysis = starts(*USUAL, piece, count=count, headline=headline)
    [point] = analysis.points
    half = [
        msgspec.structs.replace(each, stamps=Stamps(0, 0, (each.latency or 0) // 2))
        for each in point.traced_samples
    ]
    point.untraced_samples = tuple(half)  # type: ignore[misc]
    [advice] = advise(analysis, STORMS)
    assert advice.gain.value == pytest.approx(factor * piece[3], rel=0.01)


def test_what_gains_little_is_not_named() -> None:
    little = ("veth.move", "kernel", "on CPU", MS)
    assert advise(starts(*USUAL, little), STORMS) == []


QUEUE: Piece = ("process.start", "around", "waiting for a CPU", 60 * MS)


@pytest.mark.parametrize("storm", ["fork of a fat daemon", "fsync of state"])
def test_advice_joins_cpu_wait_to_previous_work(storm: str) -> None:
    piece, count = MET[storm]
    [alone] = advise(starts(*USUAL, piece, count=count), STORMS)
    [after] = advise(starts(*USUAL, piece, QUEUE, count=count), STORMS)
    [before] = advise(starts(QUEUE, *USUAL, piece, count=count), STORMS)
    assert before.gain.value == pytest.approx(alone.gain.value, rel=0.1)
    assert after.gain.value == pytest.approx(alone.gain.value + QUEUE[3], rel=0.1)


def test_advice_divides_first_cpu_wait_by_creators_work() -> None:
    copy, (_, _, sleep, _) = MET["many mounts"][0], MET["rate limit"][0]
    other = ("ipam", "kernel", "on CPU", copy[3] // 2)
    last = ("exec", "around", "on CPU", MS)
    [alone] = advise(starts(copy, other, last, cloned=1), STORMS)
    [after] = advise(starts(copy, other, QUEUE, last, cloned=2), STORMS)
    assert after.gain.value == pytest.approx(alone.gain.value + 2 / 3 * QUEUE[3], rel=0.01)
    pause = ("sleep", "around", sleep, MS)
    [paused] = advise(starts(copy, pause, other, QUEUE, last, cloned=2), STORMS)
    assert paused.gain.value == pytest.approx(alone.gain.value, rel=0.01)
    [woken] = advise(starts(copy, other, QUEUE, last, cloned=2, idle=MS), STORMS)
    assert woken.gain.value == pytest.approx(alone.gain.value, rel=0.01)


MOVING = "RCU: rcu_barrier (__dev_change_net_namespace)"
RTNL: Piece = ("link.up", "kernel", "lock: rtnl_mutex (rtnl_newlink)", 100 * MS)


@pytest.mark.parametrize(
    ("holder", "gained"), [(MOVING, 100), (holders.RUNNING, 0), ("RCU: synchronize_rcu (x)", 0)]
)
def test_a_wait_for_a_lock_goes_with_what_its_holder_did(holder: str, gained: int) -> None:
    piece, _ = MET["veth move"]
    analysis = starts(*USUAL, piece, RTNL, held=(("rtnl_mutex", holder, RTNL[3]),))
    [advice] = advise(analysis, STORMS)
    assert advice.gain.value == pytest.approx(piece[3] + gained * MS)
    evidence = {(phase, cause): ns for phase, cause, ns in advice.evidence}
    assert evidence.get((RTNL[0], RTNL[2]), 0) == pytest.approx(gained * MS)


def test_advice_counts_start_queued_in_storm() -> None:
    [advice] = advise(starts(*USUAL, RTNL, held=(("rtnl_mutex", MOVING, RTNL[3]),)), STORMS)
    assert advice.storm == "veth move"
    assert advice.evidence[0][:2] == (RTNL[0], RTNL[2])


def test_advice_excludes_queue_of_other_holders() -> None:
    inside = ("veth.move", "kernel", "lock: rtnl_mutex (rtnl_newlink)", 40 * MS)
    held = (("rtnl_mutex", MOVING, 10 * MS), ("rtnl_mutex", "RCU: synchronize_rcu (x)", 30 * MS))
    [advice] = advise(starts(*USUAL, MET["veth move"][0], inside, held=held), STORMS)
    assert advice.gain.value == pytest.approx(MET["veth move"][0][3] + 10 * MS)


def test_what_a_holder_runs_is_divided_as_its_waits() -> None:
    held = (("rtnl_mutex", MOVING, 50 * MS), ("rtnl_mutex", holders.RUNNING, 50 * MS))
    [most] = advise(starts(*USUAL, RTNL, held=held), STORMS)
    assert most.gain.value == pytest.approx(RTNL[3])
    held = (("rtnl_mutex", MOVING, 20 * MS), ("rtnl_mutex", holders.RUNNING, 80 * MS))
    [few] = advise(starts(*USUAL, RTNL, held=held), STORMS)
    assert few.gain.value == pytest.approx(RTNL[3] / 5)
