from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from firstlight.analysis.compare import _holm, compare
from firstlight.errors import FirstlightError
from firstlight.model import Ending, EndPoint, Header, Presentation, Sample, Stamps
from firstlight.store import Run

MS = 1_000_000
ENVIRONMENT: dict[str, str | int | float | bool | list[str]] = {"machine": "m", "kernel": "6.1"}


def run_of(
    medians: dict[int, float],
    *,
    seed: int,
    repetitions: int = 12,
    failing: float = 0,
    failing_batches: float = 0,
    between: float = 0.02,
) -> Run:
    """A run over ``instances``: each a median in ms; batches vary by ``between``, starts by 2 %.

    ``failing`` is the share of starts that fail, ``failing_batches`` of batches that do as a whole.
    """
    draw = np.random.default_rng(seed)
    samples: list[Sample] = []
    batches = [size for _ in range(repetitions) for size in medians]
    for batch, size in enumerate(batches):
        shared = draw.normal(1, between)
        all_fail = draw.random() < failing_batches
        for instance in range(size):
            fails = all_fail or draw.random() < failing
            took = int(medians[size] * shared * draw.normal(1, 0.02) * MS)
            samples.append(
                Sample(
                    index=len(samples),
                    batch=batch,
                    instance=instance,
                    repetition=batch // len(medians),
                    point={"runtime": "runc", "instances": size},
                    traced=False,
                    ending=Ending.FAILED if fails else Ending.READY,
                    stamps=Stamps(0, 0, None if fails else took),
                )
            )
    header = Header(
        run="r",
        experiment="container-creation",
        question="?",
        end_point=EndPoint.FIRST_INSTRUCTION,
        axes=("runtime", "instances"),
        points=tuple({"runtime": "runc", "instances": size} for size in medians),
        argv=(),
        seed=seed,
        started="2026",
        revision="",
        repetitions=repetitions,
        environment=ENVIRONMENT,
    )
    return Run(Path(f"/runs/{seed}"), header, samples, None)


def test_runs_of_one_batch_have_no_intervals() -> None:
    [difference] = compare(
        run_of({10: 90}, seed=1, repetitions=1), run_of({10: 108}, seed=2, repetitions=1)
    ).differences
    shown = [difference.a.median, difference.b.median, difference.ratio]
    assert all(each and each.low == each.value == each.high for each in shown)


def test_a_known_slow_down_is_a_regression_of_its_point_alone() -> None:
    result = compare(run_of({1: 30, 10: 90}, seed=1), run_of({1: 30, 10: 108}, seed=2))
    alone, burst = result.differences
    assert (alone.regression, burst.regression) == (False, True)
    assert result.regression
    assert burst.point == {"runtime": "runc", "instances": 10}
    assert burst.ratio is not None
    assert burst.ratio.low < 1.2 < burst.ratio.high
    assert burst.a.median is not None
    assert burst.a.median.value == pytest.approx(90 * MS, rel=0.03)
    assert (burst.a.starts, burst.a.failed, burst.a.batches) == (120, 0, 12)


def test_the_other_way_round_it_is_an_improvement() -> None:
    (differences,) = compare(run_of({10: 108}, seed=2), run_of({10: 90}, seed=1)).differences
    assert (differences.regression, differences.improvement) == (False, True)


def test_small_significant_change_is_no_regression() -> None:
    a, b = run_of({1: 30}, seed=1, repetitions=60), run_of({1: 31}, seed=2, repetitions=60)
    (differences,) = compare(a, b).differences
    assert differences.p is not None
    assert differences.p < 0.01
    assert not differences.regression
    assert compare(a, b, threshold=0.01).regression


def test_interval_below_threshold_is_no_regression() -> None:
    """As two runs of the same thing may look when the machine is busier during the second."""
    result = compare(run_of({10: 100}, seed=1), run_of({10: 107}, seed=2, between=0.04))
    (difference,) = result.differences
    assert difference.ratio is not None
    assert difference.p is not None
    assert difference.p < 0.01
    assert difference.ratio.low < 1.05 < difference.ratio.value
    assert not difference.regression


def test_batches_that_vary_by_themselves_are_no_regression() -> None:
    """50 starts a batch would make any two bursts differ if each counted as independent."""
    alarms = [
        compare(
            run_of({50: 100}, seed=seed, repetitions=8, between=0.15),
            run_of({50: 100}, seed=seed + 500, repetitions=8, between=0.15),
        ).regression
        for seed in range(12)
    ]
    assert sum(alarms) <= 1


def test_starts_that_fail_are_a_regression_without_any_latency() -> None:
    result = compare(run_of({10: 90}, seed=1), run_of({10: 90}, seed=2, failing=1.0))
    (difference,) = result.differences
    assert difference.regression
    assert difference.word == "fails more"
    assert (difference.ratio, difference.p, difference.b.median) == (None, None, None)
    assert difference.b.failed == 120


def test_some_starts_that_fail_in_each_batch_are_a_regression() -> None:
    result = compare(run_of({10: 90}, seed=1), run_of({10: 90}, seed=2, failing=0.3))
    assert [difference.word for difference in result.differences] == ["fails more"]


@pytest.mark.parametrize(("repetitions", "regression"), [(3, False), (4, True)])
def test_point_without_starts_is_regression(repetitions: int, regression: bool) -> None:
    a, b = (
        run_of({10: 90}, seed=1, repetitions=repetitions, failing=share) for share in (0.1, 1.0)
    )
    assert compare(a, b).regression == regression
    assert not compare(b, b).regression


@pytest.mark.parametrize(("repetitions", "share", "pairs"), [(7, 0.15, 30), (4, 0.8, 20)])
def test_whole_batch_failures_seldom_regress(repetitions: int, share: float, pairs: int) -> None:
    """One cause fails all of a burst: seven bursts are seven observations."""
    alarms = [
        compare(*(
            run_of({5: 100}, seed=seed + side, repetitions=repetitions, failing_batches=share)
            for side in (0, 1000)
        )).regression
        for seed in range(pairs)
    ]  # fmt: skip
    assert not any(alarms)


def test_too_few_repetitions_say_that_they_cannot_tell() -> None:
    a, b = run_of({10: 90}, seed=1, repetitions=3), run_of({10: 900}, seed=2, repetitions=3)
    result = compare(a, b)
    assert not result.regression
    assert [difference.word for difference in result.differences] == ["no difference seen"]
    assert any("too few" in warning for warning in result.warnings)


def test_unstable_runs_are_named() -> None:
    result = compare(run_of({1: 30}, seed=1), run_of({1: 30}, seed=2, between=0.4))
    assert any("instances 1, B: Repetitions spread" in warning for warning in result.warnings)


def test_traced_starts_do_not_count() -> None:
    a, b = run_of({1: 30}, seed=1), run_of({1: 30}, seed=2)
    slow = [replace(each, traced=True, stamps=Stamps(0, 0, 999 * MS)) for each in b.samples]
    (differences,) = compare(a, Run(b.path, b.header, b.samples + slow, None)).differences
    assert not differences.regression
    assert differences.b.starts == 12


def test_kept_starts_are_compared_with_their_like() -> None:
    """Watch keeps starts that are traced and that are not, in shares that the load decides."""
    a, b = run_of({1: 30}, seed=1), run_of({1: 30}, seed=2)
    header = replace(a.header, presentation=Presentation(headline="all"))
    slow = [replace(each, traced=True, stamps=Stamps(0, 0, 60 * MS)) for each in b.samples]
    without, having, traced = (
        Run(b.path, header, samples, None) for samples in (a.samples, b.samples[:6] + slow, slow)
    )
    for pair in ((without, having), (having, without)):
        (differences,) = compare(*pair).differences
        assert not differences.regression
        assert {differences.a.starts, differences.b.starts} == {12, 6}
    assert any("only one run has traced starts" in each for each in compare(a, traced).warnings)


@pytest.mark.parametrize(
    ("header", "fact"),
    [
        ({"environment": {**ENVIRONMENT, "kernel": "6.2"}}, "kernel 6.1 and 6.2"),
        ({"environment": {**ENVIRONMENT, "machine": "n"}}, "machine m and n"),
        ({"experiment": "floor"}, "experiment container-creation and floor"),
        ({"cold": True}, "cold False and True"),
    ],
)
def test_runs_that_differ_are_compared_only_when_asked(
    header: dict[str, object], fact: str
) -> None:
    a, b = run_of({1: 30}, seed=1), run_of({1: 30}, seed=2)
    other = Run(b.path, replace(b.header, **header), b.samples, None)
    with pytest.raises(FirstlightError, match=fact):
        compare(a, other)
    assert any(fact in warning for warning in compare(a, other, across=True).warnings)


def test_runs_of_a_runtime_each_are_compared() -> None:
    """As for the gate: the paths of an old and a new build differ."""
    a, b = run_of({1: 30}, seed=1), run_of({1: 90}, seed=2)
    header = replace(b.header, points=[{**point, "runtime": "new"} for point in b.header.points])
    samples = [replace(each, point={**each.point, "runtime": "new"}) for each in b.samples]
    result = compare(a, Run(b.path, header, samples, None))
    assert [each.point for each in result.differences] == [{"instances": 1}]
    assert result.regression
    assert result.warnings[0] == "A has runtime runc, and B new."


def test_compare_names_unmatched_points() -> None:
    a, b = run_of({1: 30, 10: 90}, seed=1), run_of({1: 30, 50: 400}, seed=2)
    result = compare(a, b)
    assert [each.point["instances"] for each in result.differences] == [1]
    assert "Only A has runtime runc, instances 10." in result.warnings
    assert "Only B has runtime runc, instances 50." in result.warnings
    with pytest.raises(FirstlightError, match="no point in common"):
        compare(run_of({10: 90}, seed=1), run_of({50: 400}, seed=2))


def test_the_order_of_a_points_axes_does_not_matter() -> None:
    a, b = run_of({1: 30}, seed=1), run_of({1: 30}, seed=2)
    turned = [replace(each, point=dict(reversed(each.point.items()))) for each in b.samples]
    assert len(compare(a, Run(b.path, b.header, turned, None)).differences) == 1


def test_holm_as_in_its_textbook_example() -> None:
    assert _holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert _holm([None, 0.5, None]) == [None, 0.5, None]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_only_raises_p_and_keeps_its_order(ps: list[float]) -> None:
    corrected = [p for p in _holm(list(ps)) if p is not None]
    assert all(low <= high <= 1 for low, high in zip(ps, corrected, strict=True))
    assert [corrected[i] for i in np.argsort(ps, kind="stable")] == sorted(corrected)
