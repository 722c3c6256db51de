import re
import tracemalloc
from itertools import permutations

import numpy as np
import pytest

from firstlight.analysis.stability import is_unstable
from firstlight.analysis.stats import Floats

STEADY = 100 + np.random.default_rng(0).normal(0, 2, 40)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        (STEADY + np.linspace(0, 15, 40), "drift by +1"),
        (STEADY - np.linspace(0, 15, 40), "drift by -1"),
        (np.random.default_rng(0).normal(100, 20, 40), "spread by"),
        (STEADY + np.array([0, 20] * 20), "two groups"),
        (20 * STEADY + np.array([0, 400] * 20), "near 1980 and 2404"),
        (STEADY[:9], "too few"),
    ],
)
def test_unstable_values_are_named(values: Floats, word: str) -> None:
    assert word in (is_unstable(values, np.arange(values.size)) or "")


def test_steady_values_are_not_called_unstable() -> None:
    assert is_unstable(STEADY, np.arange(40)) is None
    assert is_unstable(np.full(20, 7.0), np.arange(20)) is None
    alarms = [
        is_unstable(np.random.default_rng(seed).normal(100, 5, 20), np.arange(20))
        for seed in range(60)
    ]
    assert sum(alarm is not None for alarm in alarms) <= 3


def test_a_burst_counts_as_one_repetition() -> None:
    """Within a burst the last is always slow: only what changes between bursts is unstable."""
    burst = np.linspace(100, 1000, 50)
    values, order = np.tile(burst, 12), np.repeat(np.arange(12), 50)
    assert is_unstable(values, order) is None
    assert "too few" in (is_unstable(values[:100], order[:100]) or "")


def test_the_two_groups_are_where_the_values_are() -> None:
    sentence = is_unstable(STEADY + np.array([0, 100] * 20), np.arange(40)) or ""
    near = re.search(r"near ([\d.]+) and ([\d.]+)", sentence)
    assert near is not None
    assert [float(each) for each in near.groups()] == pytest.approx([100, 200], abs=3)


def test_drift_looks_at_time_and_not_at_the_place_in_the_array() -> None:
    rising = STEADY + np.linspace(0, 15, 40)
    for order in list(permutations((0, 1, 2)))[1:]:
        blocks = np.concatenate([np.arange(40)[part::3] for part in order])
        assert "drift by +1" in (is_unstable(rising[blocks], blocks) or "")


def test_many_repetitions_are_judged_in_little_memory() -> None:
    values = np.random.default_rng(0).lognormal(3, 0.4, 5000) * np.linspace(1, 2, 5000)
    tracemalloc.start()
    try:
        found = is_unstable(values, np.arange(5000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found is not None
    assert "drift" in found
    assert peak < 100 << 20
