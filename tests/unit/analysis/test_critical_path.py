"""Whose work an end point waited for, where a language's run-time makes it hard to tell."""

from typing import Any

from firstlight.analysis.critical_path import Spans, Thread, walk

MAIN, MONITOR, OTHER, CHILD = 1, 2, 3, 9


def intervals(*spans: tuple[int, int]) -> Spans:
    return [start for start, _ in spans], [end for _, end in spans]


def monitor() -> Thread:
    """A thread that sleeps and looks, from 10 on."""
    naps = intervals(*((at, at + 9) for at in range(10, 200, 10)))
    return Thread(MONITOR, MAIN, MAIN, 5, waits=naps[0], sleeps=naps, idle=naps)


def path(threads: list[Thread], last: int, end: int) -> list[tuple[int, int, int]]:
    held = {thread.tid: thread for thread in threads}
    walk(held, held[last], 0, end)
    return sorted((start, stop, each.tid) for each in threads for start, stop in each.owned)


def test_thread_of_monitor_continues_work() -> None:
    made = Thread(OTHER, MAIN, MONITOR, 100)
    assert path([Thread(MAIN, MAIN), monitor(), made], OTHER, 150) == [
        (0, 100, MAIN), (100, 150, OTHER)
    ]  # fmt: skip


def test_a_thread_that_waits_for_its_vfork_child_is_busy() -> None:
    waits = intervals((60, 120))
    lender = Thread(MAIN, MAIN, waits=waits[0])  # such a wait is not among its idle times
    made = Thread(OTHER, MAIN, MONITOR, 100)
    assert path([lender, monitor(), made], OTHER, 150)[0] == (0, 100, MAIN)


def test_last_thread_stands_for_exiting_one() -> None:
    parent = Thread(MAIN, MAIN, wakes=[(140, CHILD + 1)])
    child = Thread(CHILD, CHILD, MAIN, 20, exit=130, ended=125)
    helper = Thread(CHILD + 1, CHILD, CHILD, 30, exit=140)
    assert path([parent, child, helper], MAIN, 150) == [
        (0, 20, MAIN), (20, 140, CHILD), (140, 150, MAIN)
    ]  # fmt: skip


def test_sleeping_parent_is_no_monitor_of_idle_tree() -> None:
    slept = intervals((10, 90))
    parent = Thread(MAIN, MAIN, waits=slept[0], sleeps=slept, idle=slept)
    made = Thread(OTHER, MAIN, MAIN, 100)
    assert path([parent, made], OTHER, 150) == [(0, 100, MAIN), (100, 150, OTHER)]


def test_path_scales_with_wake_ups() -> None:
    class Counted(dict[int, Thread]):
        looks = 0

        def values(self) -> Any:
            self.looks += 1
            return super().values()

    main = Thread(MAIN, MAIN, wakes=[(10 * at + 9, MAIN + at) for at in range(1, 50)])
    made = [Thread(MAIN + at, MAIN, MAIN, 10 * at, exit=10 * at + 9) for at in range(1, 50)]
    threads = Counted({each.tid: each for each in (main, *made)})
    walk(threads, main, 0, 500)
    assert sum(len(each.owned) for each in threads.values()) == 99
    assert threads.looks <= 2
