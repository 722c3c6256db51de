"""What limits the rate of starts: CPU time, or the longest time that a lock is held."""

from types import SimpleNamespace
from typing import cast

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.analysis import Analysis, capacity
from firstlight.analysis.capacity import Capacity, Section
from firstlight.analysis.figures import PointFigures
from firstlight.model import Interval
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
    return capacity.held(run).rows()


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
    return Capacity(point, 2, Interval(cpu, cpu, cpu), sections, None)


def test_cpus_limit_until_the_lock_does() -> None:
    start = of(40e6, 5e6)
    assert start.per_core == 25
    assert [start.rate(cores) for cores in (1, 2, 8, 64)] == [25, 50, 200, 200]
    assert start.saturating_cores == 8
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
