from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats as reference

from firstlight.analysis import stats
from firstlight.model import Interval

LATENCIES = arrays.arrays(
    np.float64, st.integers(1, 60), elements=st.floats(1e3, 1e10, allow_subnormal=False)
)
QUANTILES = st.sampled_from((0.0, 0.25, 0.5, 0.95, 0.99, 1.0))


def lognormal(seed: int, size: int) -> stats.Floats:
    return np.random.default_rng(seed).lognormal(3, 0.4, size)


@given(st.integers(1, 5000), st.floats(0.01, 0.999))
@settings(max_examples=200)
def test_students_t_is_that_of_scipy(freedom: int, level: float) -> None:
    t = stats.students_quantile(level, freedom)
    assert t == pytest.approx(reference.t.ppf((1 + level) / 2, freedom), rel=1e-9)
    assert 1 - stats.students_within(t, freedom) == pytest.approx(
        2 * reference.t.sf(t, freedom), rel=1e-9, abs=1e-12
    )


@given(LATENCIES, QUANTILES)
@settings(max_examples=60)
def test_interval_holds_estimate_within_values(values: stats.Floats, q: float) -> None:
    result = stats.quantile_interval(values, q, resamples=50)
    assert result.value == pytest.approx(float(np.quantile(values, q)))
    assert result.low <= result.value <= result.high
    assert values.min() * (1 - 1e-9) <= result.low <= result.high <= values.max() * (1 + 1e-9)


@given(LATENCIES, QUANTILES, st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_the_order_of_the_values_does_not_matter_within_a_batch(
    values: stats.Floats, q: float, random: Random
) -> None:
    groups = np.arange(values.size) % 3
    places = list(range(values.size))
    random.shuffle(places)
    straight = stats.quantile_interval(values, q, groups=groups, resamples=50)
    shuffled = stats.quantile_interval(values[places], q, groups=groups[places], resamples=50)
    assert shuffled == straight


@given(LATENCIES, st.sampled_from((0.001, 2.0, 1024.0)))
@settings(max_examples=60)
def test_intervals_scale_with_the_unit(values: stats.Floats, factor: float) -> None:
    plain = stats.quantile_interval(values, 0.5, resamples=50)
    scaled = stats.quantile_interval(values * factor, 0.5, resamples=50)
    assert (scaled.value, scaled.low, scaled.high) == pytest.approx(
        (plain.value * factor, plain.low * factor, plain.high * factor)
    )


@given(LATENCIES, st.integers(1, 9), QUANTILES)
@settings(max_examples=60)
def test_counted_quantile_equals_repeated_values(
    values: stats.Floats, batches: int, q: float
) -> None:
    """The bootstrap counts instead of copying: both must say what numpy says."""
    values = np.sort(values)
    counts = np.random.default_rng(batches).integers(0, batches, (4, values.size)).astype(np.int32)
    counts[:, 0] += 1
    (result,) = stats._counted_quantiles(values, counts, (q,))
    expected = [np.quantile(np.repeat(values, row), q) for row in counts]
    assert result == pytest.approx(np.array(expected))


@pytest.mark.parametrize(("q", "size"), [(0.5, 40), (0.95, 400)])
def test_interval_coverage_is_as_stated(q: float, size: int) -> None:
    truth = float(np.exp(3 + 0.4 * reference.norm.ppf(q)))
    result = [
        stats.quantile_interval(lognormal(seed, size), q, resamples=300) for seed in range(200)
    ]
    assert 0.91 <= np.mean([each.low <= truth <= each.high for each in result]) <= 0.985


def bursts(seed: int, batches: int) -> tuple[stats.Floats, stats.Floats]:
    """Bursts of 50 whose instances share most of what slows them; the true median is 100."""
    rng = np.random.default_rng(seed)
    values = 100 + rng.normal(0, 10, batches)[:, None] + rng.normal(0, 1, (batches, 50))
    return values.ravel(), np.repeat(np.arange(batches), 50).astype(float)


def test_only_whole_batches_give_honest_intervals_for_bursts() -> None:
    by_batch: list[bool] = []
    by_value: list[bool] = []
    for seed in range(60):
        values, groups = bursts(seed, 20)
        for hits, given_groups in ((by_batch, groups), (by_value, None)):
            each = stats.quantile_interval(values, 0.5, groups=given_groups, resamples=300)
            hits.append(each.low <= 100 <= each.high)
    assert np.mean(by_batch) >= 0.88
    assert np.mean(by_value) < 0.5


@pytest.mark.parametrize(("batches", "least"), [(4, 0.84), (6, 0.91), (12, 0.92)])
def test_the_intervals_of_few_bursts_are_wide_enough(batches: int, least: float) -> None:
    """The plain percentile interval holds the median 81, 86 and 91 times in 100."""
    held = []
    for seed in range(300):
        values, groups = bursts(seed, batches)
        each = stats.quantile_interval(values, 0.5, groups=groups, resamples=300)
        held.append(each.low <= 100 <= each.high)
    assert least <= np.mean(held) <= 0.99


def test_one_batch_says_no_more_than_its_range() -> None:
    assert stats.quantile_interval([3.0, 1.0, 9.0], 0.5, groups=[7, 7, 7]) == Interval(3, 1, 9)


def test_a_resample_keeps_columns_of_one_sample_together() -> None:
    first = lognormal(1, 80)
    draws = stats.resampled_quantiles(np.column_stack([first, first * 3]), 0.5, resamples=100)
    assert draws.shape == (100, 2)
    assert draws[:, 1] == pytest.approx(draws[:, 0] * 3)


def test_a_summary_says_when_a_tail_has_too_few_samples() -> None:
    assert [stats.samples_needed(q) for q in (0.5, 0.95, 0.99)] == [6, 72, 368]
    few, some, many = (stats.summary(lognormal(0, size)) for size in (71, 72, 368))
    assert (few.p95, some.p99) == (None, None)
    assert some.p95 is not None
    assert many.p99 is not None
    assert (many.count, many.batches) == (368, 368)
    assert many.median.value < many.p99.value


def test_a_ratio_finds_a_known_speed_up() -> None:
    slow, fast = lognormal(1, 300) * 3, lognormal(2, 300)
    result = stats.ratio_interval(slow, fast)
    assert result.low < 3 < result.high
    assert result.low > 2.5
    assert result.high < 3.5
    assert stats.ratio_interval(fast, slow).value == pytest.approx(1 / result.value)


@given(
    arrays.arrays(np.float64, st.integers(2, 5), elements=st.floats(1, 1e6)),
    arrays.arrays(np.float64, st.integers(2, 5), elements=st.floats(1, 1e6)),
)
@settings(max_examples=40)
def test_few_batches_are_tested_exactly_as_scipy_does(a: stats.Floats, b: stats.Floats) -> None:
    def statistic(x: stats.Floats, y: stats.Floats) -> float:
        ranks = reference.rankdata(np.concatenate([x, y]))
        return float(abs(ranks[: x.size].mean() - ranks.mean()))

    expected = reference.permutation_test(
        (a, b), statistic, alternative="greater", vectorized=False, n_resamples=np.inf
    )
    assert stats.permutation_test(a, b) == pytest.approx(expected.pvalue)


def test_groups_move_as_a_whole() -> None:
    a, b = np.array([1.0, 2, 3, 4]), np.array([11.0, 12, 13, 14])
    halves = [0, 0, 1, 1]
    assert stats.permutation_test(a, b) == pytest.approx(2 / 70)
    assert stats.permutation_test(a, b, groups_a=halves, groups_b=halves) == pytest.approx(2 / 6)
    assert stats.least_p(2, 2) == pytest.approx(2 / 6)
    assert stats.least_p(2, 3) == pytest.approx(2 / 10)


@given(st.integers(1, 8), st.integers(1, 8))
@settings(max_examples=30)
def test_no_p_is_below_the_least(batches_a: int, batches_b: int) -> None:
    a, b = np.arange(batches_a) / 7, 1000 + np.arange(batches_b) / 7
    least = stats.least_p(batches_a, batches_b, resamples=500)
    assert stats.permutation_test(a, b, resamples=500) >= least * (1 - 1e-9)


@pytest.mark.parametrize("batches", [3, 4, 5, 9])
def test_equal_points_are_told_apart_at_most_one_time_in_twenty(batches: int) -> None:
    """Whatever the values are like: skewed, of two kinds, or equal more often than not."""
    wrong = 0
    for seed in range(100):
        draw = np.random.default_rng(seed)
        for each in (
            draw.lognormal(3, 0.4, 2 * batches),
            draw.choice([10.0, 30.0], 2 * batches) + draw.normal(0, 1, 2 * batches),
            draw.integers(10, 13, 2 * batches).astype(float),
            draw.pareto(1.5, 2 * batches) + 1,
        ):
            a, b = each[:batches], each[batches:]
            ratio, difference = stats.ratio_interval(a, b), stats.difference_interval(a, b)
            assert (ratio.low > 1) <= (difference.low > 0)
            wrong += ratio.low > 1 or ratio.high < 1 or difference.low > 0 or difference.high < 0
    assert wrong <= 0.05 * 400 + 3 * (0.05 * 0.95 * 400) ** 0.5


@pytest.mark.parametrize(("batches", "seen"), [(3, False), (4, True), (9, True)])
def test_a_large_difference_is_seen_by_four_batches(batches: int, seen: bool) -> None:
    a, b = lognormal(1, batches), lognormal(2, batches) * 30
    assert (stats.ratio_interval(b, a).low > 1) == seen
    assert (stats.difference_interval(b, a).low > 0) == seen
    assert (batches >= stats.FEWEST_BATCHES) == seen


def test_p_is_uniform_when_nothing_differs() -> None:
    result = [
        stats.permutation_test(lognormal(seed, 12), lognormal(seed + 10_000, 12), resamples=400)
        for seed in range(300)
    ]
    assert reference.kstest(result, "uniform").pvalue > 0.001
    assert 0.02 <= np.mean(np.array(result) <= 0.05) <= 0.09


def test_bursts_differing_by_batch_are_equal() -> None:
    def p(seed: int, by_batch: bool) -> float:
        (a, groups_a), (b, groups_b) = bursts(seed, 10), bursts(seed + 1000, 10)
        if not by_batch:
            return stats.permutation_test(a, b, resamples=300)
        return stats.permutation_test(a, b, groups_a=groups_a, groups_b=groups_b, resamples=300)

    assert np.mean([p(seed, True) <= 0.05 for seed in range(100)]) <= 0.12
    assert np.mean([p(seed, False) <= 0.05 for seed in range(100)]) >= 0.5


def test_a_shift_is_found_and_p_is_never_zero() -> None:
    result = stats.permutation_test(lognormal(1, 60), lognormal(2, 60) * 2, resamples=999)
    assert result == pytest.approx(1 / 1000)


@pytest.mark.parametrize("exponent", [0, 1, 2])
def test_growth_is_found_from_noisy_values(exponent: int) -> None:
    sizes = np.repeat([1, 10, 20, 50, 100], 10)
    values = sizes**exponent * np.random.default_rng(4).lognormal(0, 0.1, sizes.size)
    result = stats.growth_exponent(sizes, values)
    assert result.low <= exponent <= result.high
    assert result.high - result.low < 0.1


def test_growth_of_one_size_is_refused() -> None:
    with pytest.raises(ValueError, match="two sizes"):
        stats.growth_exponent([5, 5], [1, 2])


def test_no_values_are_refused() -> None:
    for refuse in (
        lambda: stats.summary([]),
        lambda: stats.quantile_interval([], 0.5),
        lambda: stats.permutation_test([], [1.0]),
    ):
        with pytest.raises(ValueError, match="no values"):
            refuse()
