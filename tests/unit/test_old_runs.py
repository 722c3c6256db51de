"""Stored runs of each schema version are read, and shown as they were when they were made."""

from pathlib import Path

import polars as pl
import pytest

from firstlight.analysis.breakdown import breakdown
from firstlight.model import SCHEMA_VERSION, Presentation
from firstlight.store import Run, read

DATA = Path(__file__).parents[1] / "data"
VERSIONS = tuple(range(1, SCHEMA_VERSION + 1))
CONTAINER = Presentation(subject="a {series} container", counterpart="the paper's Fig. 6")


@pytest.fixture(params=VERSIONS, ids=lambda version: f"schema {version}")
def run(request: pytest.FixtureRequest) -> Run:
    return read(DATA / f"schema-{request.param}")


def test_every_version_has_a_stored_run() -> None:
    assert sorted(path.name for path in DATA.glob("schema-*")) == [f"schema-{v}" for v in VERSIONS]


def test_an_old_run_is_read_whole(run: Run) -> None:
    assert run.path.name == f"schema-{run.header.schema}"
    assert (run.header.experiment, run.header.axes) == (
        "container-creation",
        ("runtime", "instances"),
    )
    assert run.header.presentation == CONTAINER
    assert run.footer is not None
    assert {sample.traced for sample in run.samples} == {False, True}
    assert all(sample.latency for sample in run.samples)


def test_an_old_runs_spans_still_explain_its_latencies(run: Run) -> None:
    walls = dict(breakdown(run).group_by("sample").agg(pl.col("wall").sum()).iter_rows())
    assert walls == {sample.index: sample.latency for sample in run.samples if sample.traced}
