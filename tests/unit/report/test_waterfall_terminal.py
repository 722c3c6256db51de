from io import StringIO
from time import process_time

import polars as pl
from rich.console import Console

from firstlight.analysis.breakdown import TIMELINE
from firstlight.report.waterfall import waterfall
from firstlight.store import SPAN_SCHEMA

MS = 1_000_000


def shown(timeline: pl.DataFrame, spans: pl.DataFrame) -> str:
    console = Console(file=StringIO(), width=100, highlight=False)
    with console.capture() as capture:
        console.print(waterfall(timeline, spans, 100))
    return " ".join(capture.get().split())


def spans(*waits: tuple[int, int, str]) -> pl.DataFrame:
    rows = [(0, "blocked", "", "", stack, start * MS, end * MS, 7, 7, None, None)
            for start, end, stack in waits]  # fmt: skip
    return pl.DataFrame(rows, schema=SPAN_SCHEMA, orient="row")


def timeline(*parts: tuple[int, int]) -> pl.DataFrame:
    rows = [(start * MS, end * MS, "cgroup", "kernel", "on CPU", 7, 7) for start, end in parts]
    return pl.DataFrame(rows, schema=TIMELINE, orient="row")


def test_waits_at_one_place_are_one_row_with_their_number() -> None:
    message = shown(
        timeline((0, 4), (4, 9), (9, 10)),
        spans((0, 4, "rcu_sync_enter;attach"), (4, 9, "rcu_sync_enter;attach"), (9, 10, "other")),
    )
    assert "9.00 2 cgroup rcu_sync_enter ← attach 1.00 1 cgroup other" in message


def test_no_waits_have_no_table() -> None:
    assert "slowest kernel waits" not in shown(timeline((0, 4)), spans())


def test_the_waits_of_a_long_command_are_found_in_little_time() -> None:
    def spent(count: int) -> float:
        """CPU time for a thread with ``count`` waits."""
        parts = [(place, place + 1) for place in range(count)]
        waits = spans(*((start, end, "rcu_sync_enter;attach") for start, end in parts))
        pieces = timeline(*parts)
        begin = process_time()
        assert f"{count}.00 {count} cgroup rcu_sync_enter" in shown(pieces, waits)
        return process_time() - begin

    spent(10)
    assert spent(6000) < 20 * spent(600)  # 100 times, if each piece met each wait
