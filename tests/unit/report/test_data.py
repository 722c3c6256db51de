import cProfile
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.support import synthetic

from firstlight.analysis import Analysis, holders
from firstlight.claims import catalogue
from firstlight.cli.output import to_json
from firstlight.report import data
from firstlight.store import Run


def test_json_holds_the_same_figures_as_integers_of_ns(container: Analysis) -> None:
    document = json.loads(json.dumps(data.as_json([container])))
    (run,) = document["runs"]
    assert run["end_point"] == "first instruction"
    assert [point["point"] for point in run["points"]] == list(container.run.header.points)
    for read, point in zip(run["points"], container.points, strict=True):
        values = [
            sample.latency
            for sample in container.run.samples
            if sample.point == point.point and not sample.traced and sample.latency
        ]
        median = read["latency_ns"]["median"]
        assert median["value"] == round(np.median(values))
        assert all(isinstance(bound, int) for bound in median.values())
        assert median["low"] <= median["value"] <= median["high"]
        assert (read["latency_ns"]["p99"] is None) == (len(values) < 368)
        assert sum(part["share"]["value"] for part in read["phases"]) == pytest.approx(1)


def test_json_has_wall_and_summed_time_apart(container: Analysis) -> None:
    point = data.as_json([container])["runs"][0]["points"][2]
    (mount,) = (part for part in point["phases"] if part["phase"] == "mount")
    assert mount["summed_ns"]["value"] > mount["wall_ns"]["value"]


def test_json_holds_failures_skips_claims_and_steps(container: Analysis, network: Analysis) -> None:
    document = data.as_json([container, network])
    first, second = document["runs"]
    assert [failure["ending"] for failure in first["failed"]] == ["failed", "hung"] * 2
    assert first["failed"][0]["output"].startswith("runc run failed")
    assert first["skipped"][0]["reason"].startswith("runsc is not installed")
    assert [step["step"] for step in second["points"][0]["steps"]][:3] == ["netns", "veth", "move"]
    assert [claim["id"] for claim in document["claims"]] == [claim.id for claim in catalogue.ALL]


def test_json_holds_the_queues_for_a_lock(
    container: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = next(sample for sample in container.run.samples if sample.traced and sample.latency)
    row = (traced.index, "rtnl_mutex", holders.RUNNING, 10**9)
    queued = pl.DataFrame([row], holders.SCHEMA, orient="row")
    locks = holders.Locks(queued, pl.DataFrame(schema=holders.HELD))
    monkeypatch.setattr(holders, "read", lambda _: locks)
    (run,) = json.loads(to_json(data.as_json([Analysis(container.run)])))["runs"]
    (result,) = (queue for point in run["points"] for queue in point["queues"])
    assert result["lock"] == "rtnl_mutex"
    assert result["share"] > 0
    assert result["holders"] == [{"cause": holders.RUNNING, "share": 1.0}]


def queries(run: Run) -> int:
    """The queries that polars plans for a report of a run: each takes up to 1 ms."""
    profile = cProfile.Profile()
    profile.runcall(data.as_json, [Analysis(run)])
    return sum(entry.callcount for entry in profile.getstats() if "'collect' of" in str(entry.code))


def test_a_report_plans_few_queries_per_batch(tmp_path: Path) -> None:
    few, many = (
        synthetic.container_creation(tmp_path / f"{count}", repetitions=count) for count in (4, 8)
    )
    batches = len(many.traced_batches) - len(few.traced_batches)
    assert 0 < queries(many) - queries(few) <= 4 * batches
    assert queries(few) <= 4 * len(few.traced_batches) + 20 * len(few.header.points)
