import dataclasses
from collections import Counter
from itertools import groupby
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from msgspec.structs import replace
from tests.support import synthetic

from firstlight.analysis import Analysis, figures
from firstlight.analysis.figures import PointFigures
from firstlight.model import Ending, Sample
from firstlight.report.plots import container_creation, network_setup


def of(run: Analysis, series: str, instances: int) -> PointFigures:
    return next(
        point for point in run.points if (point.series, point.instances) == (series, instances)
    )


def of_point(run: Analysis, point: PointFigures, *, traced: bool) -> pl.DataFrame:
    frame = run.run.frame.filter(traced=traced, ending="ready")
    for axis, value in point.point.items():
        frame = frame.filter(pl.col(axis) == value)
    return frame


def test_headline_latencies_match_numpy_quantiles(
    container: Analysis,
) -> None:
    for point in container.points:
        values = of_point(container, point, traced=False)["latency"].to_numpy()
        assert point.latency is not None
        assert point.latency.count == len(values)
        assert point.latency.median.value == np.quantile(values, 0.5)
        if point.latency.p95:
            assert point.latency.p95.value == np.quantile(values, 0.95)


def test_a_tail_that_too_few_starts_bound_is_absent(container: Analysis) -> None:
    single, many = of(container, "runc", 1).latency, of(container, "runc", 50).latency
    assert single
    assert single.p95 is None
    assert many
    assert many.p99


def test_phase_shares_sum_to_one(container: Analysis) -> None:
    for point in container.points:
        assert sum(part.share.value for part in point.parts) == pytest.approx(1)
        chosen = container.breakdown.filter(
            pl.col("sample").is_in([sample.index for sample in point.traced_samples])
        )
        for part in point.parts:
            wall = chosen.filter(pl.col("phase") == part.phase)["wall"].sum()
            assert part.share.value == pytest.approx(int(wall) / int(chosen["wall"].sum()))
            assert part.share.low <= part.share.value <= part.share.high


def test_wall_and_summed_time_are_two_figures(container: Analysis) -> None:
    parts = {part.phase: part for part in of(container, "runc", 50).parts}
    assert parts["mount"].summed.value == pytest.approx(2 * parts["mount"].wall.value, rel=0.01)


def test_the_kernels_share_and_the_causes_are_of_the_phase(container: Analysis) -> None:
    parts = {part.phase: part for part in of(container, "runc", 1).parts}
    assert parts["mount"].kernel == pytest.approx(0.45, abs=0.01)
    assert dict(parts["mount"].causes)["RCU: synchronize_rcu_expedited"] == pytest.approx(
        0.45, abs=0.01
    )


def test_causes_of_a_point_sum_to_one_the_greatest_first(container: Analysis) -> None:
    shares = [share for _, share in of(container, "runc", 50).causes()]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)


def test_failed_starts_are_counted_without_latency(container: Analysis) -> None:
    point = of(container, "runc", 10)
    assert point.ended == {Ending.READY: 196, Ending.FAILED: 2, Ending.HUNG: 2}
    assert point.latency
    assert point.latency.count == 98


def test_all_ready_is_median_makespan(container: Analysis) -> None:
    point = of(container, "runc", 10)
    at_point = [
        sample
        for sample in container.run.samples
        if sample.point == point.point and not sample.traced
    ]
    spans = [
        makespan(list(batch)) for _, batch in groupby(at_point, key=lambda sample: sample.batch)
    ]
    assert point.all_ready
    complete = [span for span in spans if span is not None]
    assert len(complete) == len(spans) - 1
    assert point.all_ready.value == np.median(complete)


def makespan(batch: list[Sample]) -> int | None:
    ready = [sample.stamps.ready for sample in batch if sample.stamps.ready is not None]
    if len(ready) < len(batch):
        return None
    return max(ready) - min(sample.stamps.intended for sample in batch)


def test_tracings_cost_is_the_ratio_of_the_medians(container: Analysis) -> None:
    point = of(container, "crun", 50)
    traced, untraced = (
        of_point(container, point, traced=traced)["latency"].to_numpy() for traced in (True, False)
    )
    assert point.overhead
    assert point.overhead.value == pytest.approx(np.median(traced) / np.median(untraced))


def test_watch_does_not_show_the_cost_of_tracing(container: Analysis) -> None:
    presentation = replace(container.header.presentation, headline="all")
    header = replace(container.header, presentation=presentation)
    watched = Analysis(dataclasses.replace(container.run, header=header))
    assert {point.overhead for point in watched.points} == {None}


def test_fig_6_bars_sum_to_median(container: Analysis) -> None:
    heights: Counter[tuple[str, int]] = Counter()
    for row in container_creation.values(container):
        heights[row["series"], row["instances"]] += row["ms"]
    assert len(heights) == 6
    for (series, instances), height in heights.items():
        latency = of(container, series, instances).latency
        assert latency
        assert height == pytest.approx(latency.median.value / 1e6)


def test_fig_7_bars_sum_to_last_request(
    network: Analysis,
) -> None:
    heights: Counter[tuple[str, int]] = Counter()
    for row in network_setup.values(network):
        heights[row["series"], row["instances"]] += row["ms"]
    assert len(heights) == 12
    for (series, instances), height in heights.items():
        all_ready = of(network, series, instances).all_ready
        assert all_ready
        assert height == pytest.approx(all_ready.value / 1e6)


def test_the_bars_of_fig_7_are_split_as_the_steps_are(network: Analysis) -> None:
    shares = {
        row["part"]: row["share"]
        for row in network_setup.values(network)
        if (row["series"], row["instances"]) == ("netlink · parallel", 1)
    }
    assert shares["move"] == pytest.approx(0.52, abs=0.01)
    assert shares[network_setup.BETWEEN] == pytest.approx(0.01, abs=0.01)


def test_steps_are_medians_of_untraced_samples(network: Analysis) -> None:
    point = of(network, "ip · parallel", 10)
    took = [
        step.end - step.start
        for sample in network.run.samples
        for step in sample.steps
        if sample.point == point.point and not sample.traced and step.name == "move"
    ]
    assert dict(figures.steps(point))["move"].value == np.median(took)


def test_axes_that_do_not_vary_name_no_series(network: Analysis, container: Analysis) -> None:
    assert network.series[0] == "ip · sequential"
    assert container.series == ["runc", "crun"]


def test_the_answer_is_about_starts_that_overlap(network: Analysis) -> None:
    assert [point.name for point in network.lead] == ["ip · parallel × 1", "ip · parallel × 50"]


def test_the_share_of_one_batch_has_no_interval() -> None:
    part, total = np.array([1.0, 3.0]), np.array([4.0, 4.0])
    share = figures.share_interval(part, total, np.array([7, 7]))
    assert (share.value, share.low, share.high) == (0.5, 0.5, 0.5)


def test_the_waterfall_shows_the_start_nearest_to_the_median(container: Analysis) -> None:
    samples = of(container, "runc", 50).traced_samples
    middle = float(np.median(figures.latencies(samples)))
    chosen = figures.median_sample(samples)
    assert abs((chosen.latency or 0) - middle) == min(
        abs((sample.latency or 0) - middle) for sample in samples
    )


def test_run_without_ready_starts_has_points_and_no_lead(
    known_phases: None, tmp_path: Path
) -> None:
    run = Analysis(synthetic.nothing_ready(tmp_path))
    assert not run.lead
    assert run.points[0].latency is None
    assert run.points[0].ended[Ending.FAILED] == 2
