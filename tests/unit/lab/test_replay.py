"""The day that is generated from a published distribution, and what pools make of one."""

import numpy as np
import pytest

from firstlight.agile.config import PoolSize
from firstlight.lab import replay
from firstlight.lab.backends.replay import FUNCTIONS, calls
from firstlight.lab.load import offsets

COSTS = replay.Costs(ready=0.001, made=0.006)


def test_functions_are_called_as_often_as_was_published() -> None:
    counts = np.array([len(arrivals) for arrivals in replay.day(400, seed=7)])
    assert np.mean(counts <= 24) == pytest.approx(0.45, abs=0.08), "at most once an hour"
    assert np.mean(counts <= 1440) == pytest.approx(0.81, abs=0.05), "at most once a minute"
    assert counts.max() > 1440


def test_calls_are_in_order_and_the_same_for_the_same_seed() -> None:
    day = replay.day(20, seed=3)
    assert day == replay.day(20, seed=3) != replay.day(20, seed=4)
    for arrivals in day:
        assert arrivals == sorted(arrivals)
        assert all(0 <= at < replay.DAY + 1 for at in arrivals)


def test_fixed_pool_costs_all_day() -> None:
    burst = [[1000.0] * 3]
    day = replay.simulated(burst, PoolSize(low=2, high=2), 0, COSTS)
    # Nothing waits before the first call: each makes its own fork, one after the other.
    assert list(day.latencies) == pytest.approx([0.006, 0.011, 0.016])
    held = 2 * replay.FORK_MEBIBYTES + replay.PLACES * replay.PLACE_MEBIBYTES
    assert day.idle == pytest.approx(held * (replay.DAY - 1000), rel=1e-4)
    again = replay.simulated([[1000.0, *([2000.0] * 3)]], PoolSize(low=2, high=2), 0, COSTS)
    assert list(again.latencies[1:]) == pytest.approx([0.001, 0.001, 0.006])


def test_following_pool_holds_demand_for_window() -> None:
    size = PoolSize(low=0, high=64)
    day = replay.simulated([[1000.0] * 4 + [1500.0] * 4], size, 600, COSTS)
    assert list(day.latencies[4:]) == pytest.approx([0.001] * 4)
    forks, places = 4 * (500 + 600), 4 * (replay.DAY - 1000)
    held = forks * replay.FORK_MEBIBYTES + places * replay.PLACE_MEBIBYTES
    assert day.idle == pytest.approx(held, rel=1e-3)
    late = replay.simulated([[1000.0] * 4 + [2000.0] * 4], size, 600, COSTS)
    assert late.latencies[4] == pytest.approx(0.006)


def test_following_saves_third_at_equal_tail() -> None:
    compared = replay.compared(COSTS)
    assert compared.fixed.p99 <= compared.follows.p99
    assert compared.follows.idle < 0.7 * compared.fixed.idle


def test_calls_are_together_that_come_within_a_moment() -> None:
    arrivals = [0.0, 1.0, 1.01, 1.05, 1.06, 9.0, 9.0]
    assert replay.at_once(arrivals, 9.0) == 3
    assert replay.at_once(arrivals, 1.0) == 1
    assert replay.at_once(arrivals, 0.0) == 0


def test_the_replay_has_a_function_and_a_time_for_each_call() -> None:
    numbers, shape = calls(150)
    assert len(numbers) == len(offsets(shape, 150)) == 150
    assert set(numbers) <= set(range(FUNCTIONS))
    assert list(shape.offsets) == sorted(shape.offsets)
