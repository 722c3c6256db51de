from types import SimpleNamespace
from typing import cast

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from firstlight.analysis import holders
from firstlight.store import SPAN_SCHEMA, Run

QUEUE = "__mutex_lock;rtnl_newlink;rtnetlink_rcv_msg;netlink_sendmsg"
MOVE = "schedule_timeout;rcu_barrier;__dev_change_net_namespace;do_setlink;rtnl_newlink"
AFTER = "schedule_timeout;rcu_barrier;netdev_run_todo;rtnl_newlink"


def span(
    sample: int, kind: str, stack: str, start: int, end: int, tid: int = 1
) -> tuple[object, ...]:
    name = "mutex" if kind == "lock" else ""
    return (sample, kind, name, "", stack, start, end, tid, tid, None, None)


def result(*rows: tuple[object, ...]) -> dict[tuple[int, str], int]:
    spans = pl.DataFrame(list(rows), schema=SPAN_SCHEMA, orient="row")
    run = cast(Run, SimpleNamespace(span_batches=lambda: [(0, spans)]))
    result = holders.read(run).holders
    return {(row["sample"], row["holder"]): row["waited"] for row in result.iter_rows(named=True)}


def test_the_wait_of_the_holder_is_what_the_queue_is_for() -> None:
    found_here = result(span(0, "blocked", MOVE, 100, 190), span(1, "lock", QUEUE, 120, 200, tid=2))
    assert found_here == {
        (1, "RCU: rcu_barrier (__dev_change_net_namespace)"): 70,
        (1, holders.RUNNING): 10,
    }


def test_a_wait_after_the_lock_was_let_go_is_no_holders() -> None:
    found_here = result(
        span(0, "blocked", AFTER, 100, 190), span(1, "lock", QUEUE, 120, 200, tid=2)
    )
    assert found_here == {(1, holders.RUNNING): 80}


def test_a_queue_for_another_lock_is_left_out() -> None:
    other = "rwsem_down_write_slowpath;namespace_lock;do_mount"
    assert result(span(0, "lock", other, 0, 10)) == {}


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(1, 90)), max_size=8),
    st.lists(st.tuples(st.integers(0, 500), st.integers(1, 90)), min_size=1, max_size=8),
)
def test_parts_sum_to_the_time_queued(
    held: list[tuple[int, int]], queued: list[tuple[int, int]]
) -> None:
    rows = [span(0, "blocked", MOVE, at, at + took, tid=1) for at, took in held]
    rows += [
        span(1, "lock", QUEUE, at, at + took, tid=2 + i) for i, (at, took) in enumerate(queued)
    ]
    found_here = result(*rows)
    assert sum(found_here.values()) == sum(took for _, took in queued)
    assert all(waited >= 0 for waited in found_here.values())
    waiting = {at for begin, took in held for at in range(begin, begin + took)}
    expected = sum(len(waiting & set(range(at, at + took))) for at, took in queued)
    assert (
        sum(waited for (_, by), waited in found_here.items() if by != holders.RUNNING) == expected
    )


def test_a_holder_waits_until_it_has_a_cpu_again() -> None:
    rows = [
        span(0, "blocked", MOVE, 100, 190),
        span(0, "queued", "", 190, 195),
        span(0, "queued", "", 196, 199),
        span(1, "lock", QUEUE, 120, 200, tid=2),
    ]
    assert result(*rows) == {
        (1, "RCU: rcu_barrier (__dev_change_net_namespace)"): 75,
        (1, holders.RUNNING): 5,
    }
