"""What limits the rate of starts: CPU time, or the longest time that a lock is held."""

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.analysis import Analysis, capacity, holders
from firstlight.analysis.capacity import Capacity, Section
from firstlight.analysis.figures import PointFigures
from firstlight.model import Interval
from firstlight.report import rate
from firstlight.report.records import Table
from firstlight.store import SPAN_SCHEMA, Run

RTNL = "__mutex_lock;rtnl_newlink;rtnetlink_rcv_msg;netlink_sendmsg"
INODE = "rwsem_down_write_slowpath;down_write;open_last_lookups;path_openat"


def held(*batches: list[tuple[str, int, int]]) -> list[tuple[object, ...]]:
    frames = [
        (
            number,
            pl.DataFrame(
                [
                    (0, "lock", "mutex" if stack == RTNL else "rwsem-write", "", stack,
                     start, end, 1, 1, None, None)
                    for stack, start, end in waits
                ],
                schema=SPAN_SCHEMA,
                orient="row",
            ),
        )
        for number, waits in enumerate(batches)
    ]  # fmt: skip
    run = cast(Run, SimpleNamespace(span_batches=lambda: frames))
    return holders.read(run).held.rows()


def test_a_lock_is_held_while_anybody_waits_for_it() -> None:
    assert held([(RTNL, 0, 10), (RTNL, 5, 20), (RTNL, 30, 31)], [(RTNL, 7, 9)]) == [
        (0, "rtnl_mutex", 21),
        (1, "rtnl_mutex", 2),
    ]


def test_locks_of_which_there_are_many_are_left_out() -> None:
    assert held([(INODE, 0, 10)]) == []


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 50)), min_size=1, max_size=20))
def test_what_is_covered_is_covered_once(waits: list[tuple[int, int]]) -> None:
    instants = {at for start, took in waits for at in range(start, start + took)}
    rows = held([(RTNL, start, start + took) for start, took in waits])
    assert rows == [(0, "rtnl_mutex", len(instants))]


def of(cpu: float, *locks: float) -> Capacity:
    point = cast(PointFigures, SimpleNamespace(name="x × 8"))
    sections = tuple(Section("rtnl_mutex", Interval(each, each, each)) for each in locks)
    return Capacity(point, 2, 4, Interval(cpu, cpu, cpu), sections, None)


def test_cpus_limit_until_the_lock_does() -> None:
    start = of(40e6, 5e6)
    assert start.per_core == 25
    assert [start.rate(cores) for cores in (1, 2, 8, 64)] == [25, 50, 200, 200]
    assert start.saturating_cores == Interval(8, 8, 8)
    assert of(40e6).saturating_cores is None
    assert of(40e6).rate(64) == pytest.approx(1600)


def test_a_run_of_many_at_once_has_a_capacity_for_each_series(container: Analysis) -> None:
    result = {each.point.series: each for each in container.capacities}
    assert set(result) == {point.series for point in container.points if point.instances >= 4}
    for each in result.values():
        spent = container.breakdown.filter(
            (pl.col("cause") == "on CPU")
            & pl.col("sample").is_in([sample.index for sample in each.point.traced_samples])
        )
        total = int(spent["summed"].sum())
        assert each.cpu.value == pytest.approx(total / len(each.point.traced_samples))
        assert each.point.all_ready is not None
        assert each.measured is not None
        assert each.measured.value == pytest.approx(
            each.point.instances * 1e9 / each.point.all_ready.value
        )
        assert np.diff([section.held.value for section in each.sections]).max(initial=0) <= 0


def made(
    *,
    cores: int,
    batches: list[int],
    instances: int = 8,
    cpu_ms: float = 10.0,
    held_ms: float | None = None,
    all_ready_ms: float = 100.0,
) -> list[Capacity]:
    """Of a point whose batches have so many ready starts, each with this CPU time.

    In each batch some thread waits for ``rtnl_mutex`` for ``held_ms``.
    """
    samples = tuple(
        SimpleNamespace(index=100 * batch + instance, batch=batch)
        for batch, ready in enumerate(batches)
        for instance in range(ready)
    )
    ready = all_ready_ms * 1e6
    point = SimpleNamespace(
        name="x", series="x", instances=instances, parallel=True, causes=lambda: [("on CPU", 1.0)],
        traced_samples=samples, all_ready=Interval(ready, ready, ready),
    )  # fmt: skip
    breakdown = pl.DataFrame(
        [(each.index, "on CPU", round(cpu_ms * 1e6)) for each in samples],
        schema={"sample": pl.UInt32, "cause": pl.String, "summed": pl.Int64}, orient="row",
    )  # fmt: skip
    waits = [] if held_ms is None else [
        (batch, "rtnl_mutex", round(held_ms * 1e6)) for batch in range(len(batches))
    ]  # fmt: skip
    frame = pl.DataFrame(waits, schema=holders.HELD, orient="row")
    return list(capacity.capacities([cast(PointFigures, point)], breakdown, frame, cores))


def tables(*capacities: Capacity) -> Table:
    [table] = rate.tables(cast(Analysis, SimpleNamespace(capacities=capacities)))
    return table


def test_saturated_lock_limits_measured_rate() -> None:
    """8 starts in 80 ms, all of which rtnl_mutex is held: 10 ms each, 100 a second at most."""
    [start] = made(cores=2, batches=[8, 8, 8, 8], cpu_ms=5, held_ms=80, all_ready_ms=80)
    assert start.sections[0].held.value == 10e6
    assert start.per_core == 200
    assert [start.rate(cores) for cores in (1, 2, 16)] == [100, 100, 100]
    assert start.saturating_cores == Interval(0.5, 0.5, 0.5)
    assert start.most == Interval(100, 100, 100)
    assert start.measured is not None
    assert start.measured.value == 100
    assert not start.is_exceeded
    assert (
        "can use at most one CPU: rtnl_mutex admits at most 100 (100–100) starts"
        in tables(start).advice
    )


def test_two_cpus_double_rate_until_lock() -> None:
    """16 ms of CPU and 10 ms of a lock: 62.5 a second on one CPU, 100 on two and on more."""
    [one] = made(cores=1, batches=[8, 8, 8, 8], cpu_ms=16, held_ms=80, all_ready_ms=130)
    [two] = made(cores=2, batches=[8, 8, 8, 8], cpu_ms=16, held_ms=80, all_ready_ms=82)
    assert one.rate(1) == two.rate(1) == 62.5
    assert one.rate(2) == two.rate(2) == 100
    assert one.saturating_cores == two.saturating_cores == Interval(1.6, 1.6, 1.6)
    for each in (one, two):
        assert each.measured is not None
        assert each.measured.value <= each.rate(each.cores)


def test_without_a_wait_only_cpus_limit() -> None:
    for none in (None, 0.0):
        [start] = made(cores=2, batches=[8, 8, 8, 8], held_ms=none)
        assert start.sections == ()
        assert start.saturating_cores is None
        assert start.most is None
        assert start.rate(2) == 200
        assert "x waits for no lock of the whole kernel." in tables(start).advice


def test_one_start_at_once_has_no_capacity() -> None:
    assert made(cores=2, batches=[1, 1, 1], instances=1) == []


def test_batches_with_failed_starts_do_not_count() -> None:
    """The failed seven waited for the lock as well: their time is not that of the one."""
    assert made(cores=2, batches=[1, 1, 1], held_ms=80) == []
    [start] = made(cores=2, batches=[8, 1, 8, 8, 8], held_ms=80)
    assert start.sections[0].held.value == 10e6


def test_no_rate_is_predicted_from_fewer_starts_than_cpus() -> None:
    [start] = made(cores=64, batches=[8, 8, 8, 8], held_ms=1)
    assert not start.is_saturated
    table = tables(start)
    assert table.rows[0][-3:] == ("–", "–", "–")
    assert "x is too few at once for 64 CPUs: no rate is predicted." in table.advice


def test_no_rate_is_predicted_from_fewer_batches_than_ranks_need() -> None:
    [start] = made(cores=2, batches=[8, 8, 8], held_ms=80)
    table = tables(start)
    assert table.rows[0][-3:] == ("–", "–", "–")
    assert table.advice.startswith(
        "x was traced in too few batches (3 of 4): no rate is predicted. Assumed"
    )


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (
            Interval(1000, 900, 1100),
            "x can use at most 100 (91–111) CPUs: rtnl_mutex admits at most 1 000 000 "
            "(909 000–1 110 000) starts a second.",
        ),
        (Interval(1000, 700, 1100), "No lock limits x below 91 CPUs."),
        (Interval(25, 20, 30), "No lock limits x below 128 CPUs."),
        (Interval(1000, 0, 60_000), "x varies too much to tell whether a lock limits it."),
    ],
)
def test_a_lock_that_may_limit_far_larger_hosts_is_not_named(held: Interval, said: str) -> None:
    """100 µs of CPU: 1 µs of a lock limits 100 CPUs, and 0.7 µs more than 64 times the two."""
    [start] = made(cores=2, batches=[8, 8, 8, 8], cpu_ms=0.1)
    start = replace(start, sections=(Section("rtnl_mutex", held),))
    assert tables(start).advice.replace("\N{NARROW NO-BREAK SPACE}", " ").startswith(said)


def test_exceeded_bound_gives_reason_and_assumptions() -> None:
    """4 ms of traced CPU on two CPUs: 500 a second, of which 800 were measured."""
    [start] = made(cores=2, batches=[8, 8, 8, 8], cpu_ms=4, all_ready_ms=10)
    assert start.rate(2) == 500
    assert start.is_exceeded
    advice = tables(start).advice
    assert "More were measured than its bound: tracing makes these times longer." in advice
    assert advice.endswith(f"Assumed: {capacity.ASSUMED}.")


def test_locks_that_intervals_do_not_tell_apart_are_both_named() -> None:
    sections = tuple(
        Section(lock, Interval(*held))
        for lock, held in (
            ("rtnl_mutex", (9.0, 7.0, 11.0)),
            ("cgroup_mutex", (8.0, 6.0, 10.0)),
            ("namespace_sem", (3.0, 2.0, 4.0)),
        )
    )
    [start] = made(cores=2, batches=[8, 8, 8, 8], cpu_ms=5, held_ms=80, all_ready_ms=80)
    start = replace(start, sections=sections)
    assert start.longest == ("rtnl_mutex", "cgroup_mutex")
    table = tables(start)
    assert table.rows[0][2] == "rtnl_mutex or cgroup_mutex"
    assert table.brief is not None
    assert table.brief[1][0][2] == "rtnl_mutex or 1 more"
    assert of(40.0).longest == ()
