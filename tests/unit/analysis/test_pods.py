"""A pod's start by the spans of its components."""

from itertools import pairwise
from pathlib import Path

import msgspec
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from firstlight.analysis import Analysis, breakdown, phases, pods
from firstlight.analysis.causes import NOT_TRACED
from firstlight.model import (
    ComponentSpan,
    Ending,
    EndPoint,
    Header,
    Point,
    Sample,
    Stamps,
    Step,
    Telemetry,
)
from firstlight.report.views import pods as report
from firstlight.store import Run

SPANS = (
    ComponentSpan("create POST pods", 10, 100),
    ComponentSpan("create Create etcd3", 30, 80),
    ComponentSpan("bind POST binding", 120, 180),
    ComponentSpan("bind GuaranteedUpdate etcd3", 130, 160),
    ComponentSpan("sync syncPod", 200, 900),
    ComponentSpan("sandbox runtime.v1.RuntimeService/RunPodSandbox", 220, 600),
    ComponentSpan("sandbox netns", 235, 250),
    ComponentSpan("sandbox cni.setup_pod_network", 250, 300),
    ComponentSpan("sandbox container.NewTask", 300, 500),
    ComponentSpan("sandbox containerd.task.v3.Task/Create", 350, 480),
    ComponentSpan("container runtime.v1.RuntimeService/CreateContainer", 610, 640),
    ComponentSpan("start runtime.v1.RuntimeService/StartContainer", 650, 890),
    ComponentSpan("start containerd.task.v3.Task/Create", 660, 880),
    ComponentSpan("status HTTP PATCH", 400, 420),
    ComponentSpan("status HTTP PATCH", 1300, 1350),
    ComponentSpan("status GuaranteedUpdate etcd3", 1310, 1340),
)


def pod(spans: tuple[ComponentSpan, ...] = SPANS, ready: int = 870) -> Sample:
    return Sample(
        index=0, batch=0, instance=0, repetition=0, point={"instances": 1}, traced=False,
        ending=Ending.READY, stamps=Stamps(0, 1, ready), telemetry=Telemetry(spans, 1),
        steps=(Step("first-instruction", 1, 870), Step("Ready", 1, 1400)),
    )  # fmt: skip


def test_each_instant_is_the_part_s_that_began_last() -> None:
    assert pods.account(pod()) == {
        "request": 10, "api": 20 + 10, "datastore": 50 + 30, "schedule": 40,
        "kubelet.watch": 40, "kubelet.sync": 20 + 10 + 10, "sandbox.other": 15 + 100,
        "sandbox.netns": 15, "cni": 50, "shim": 50 + 20, "sandbox.runtime": 130,
        "container.create": 30, "container.other": 10, "container.runtime": 210,
    }  # fmt: skip


def test_to_ready_the_kubelet_s_wait_and_its_status_follow() -> None:
    first = pods.account(pod())
    whole = pods.account(pod(ready=1400))
    assert {name: whole[name] - first.get(name, 0) for name in whole if whole[name] !=
            first.get(name, 0)} == {"kubelet.relist": 430, "status": 10, "datastore": 30,
                                    "request": 60}  # fmt: skip


def test_cpu_wait_after_runtime_is_own_phase() -> None:
    late = msgspec.structs.replace(
        pod(ready=1000), steps=(Step("first-instruction", 1, 1000), Step("Ready", 1, 1400))
    )
    assert pods.account(late)["exec"] == 1000 - 890
    assert phases.UNATTRIBUTED not in pods.account(late)


def test_operations_have_their_phases_and_their_spans() -> None:
    """The last ends at the first instruction, before its span does."""
    assert pods.of_operations(pod()) == {
        "run_podsandbox": (380, 380), "network": (65, 65),
        "create_container": (30, 30), "start_container": (220, 240),
    }  # fmt: skip


def test_time_without_a_report_is_unattributed() -> None:
    sync = tuple(span for span in SPANS if span.name.startswith("sync"))
    assert pods.account(pod(sync))[phases.UNATTRIBUTED] == 200


def test_a_start_without_telemetry_has_none() -> None:
    assert pods.account(msgspec.structs.replace(pod(), telemetry=None)) == {}
    assert pods.account(pod(())) == {}


def test_an_end_without_phases_is_no_column_of_the_report(tmp_path: Path) -> None:
    """As a burst during which the host's clock was set."""
    points: tuple[Point, ...] = ({"instances": 1}, {"instances": 30})
    header = Header(
        run="r", experiment="kubernetes-pods", question="?", end_point=EndPoint.READY_AT_API,
        axes=("instances",), points=points, argv=("firstlight",), seed=1, started="", revision="",
        repetitions=1,
    )  # fmt: skip
    for whole in (0, 1):
        samples = [
            msgspec.structs.replace(
                pod(SPANS if place == whole else ()), index=place, batch=place, point=point
            )
            for place, point in enumerate(points)
        ]
        shown, _ = report.VIEW.tables(Analysis(Run(tmp_path, header, samples, None)))
        assert shown.headings == ("phase", ("alone", "30 at once")[whole], "share")


@given(st.lists(st.tuples(st.sampled_from([each.name for each in SPANS]), st.integers(-50, 1500),
                          st.integers(0, 900)), min_size=1), st.integers(1, 1500))  # fmt: skip
def test_the_parts_sum_to_the_latency(spans: list[tuple[str, int, int]], ready: int) -> None:
    made = tuple(ComponentSpan(name, start, start + length) for name, start, length in spans)
    sample = pod(made, ready)
    parts = pods.stretches(sample)
    assert sum(part.end - part.start for part in parts) == sample.latency
    assert all(a.end == b.start for a, b in pairwise(parts))


def test_traced_pod_is_followed_inside_its_runtimes_stages() -> None:
    """The stages lie without gaps; pieces of other starts and outside of stages do not count."""
    parts = [(180, 230), (240, 310), (620, 620), (640, 655), (2000, 2100)]
    paths = pl.DataFrame(
        [(7, *part, "mount", "kernel", "on CPU", 5, 6) for part in parts],
        schema=["sample", *breakdown.TIMELINE], orient="row",
    )  # fmt: skip
    first, second = (msgspec.structs.replace(pod(), index=index) for index in (3, 7))
    found = breakdown._in_stages([second, first], paths)
    assert found.schema.names() == ["sample", *breakdown.TIMELINE, "stage"]
    whole = [row for row in found.iter_rows() if row[0] == 3]
    stages = pods.stretches(first)
    assert [(row[1], row[2], row[3]) for row in whole] == [
        (each.start, each.end, each.phase) for each in stages
    ]
    assert {row[4:8] for row in whole} == {("around", NOT_TRACED, 0, 0)}
    cut = [row for row in found.iter_rows() if row[0] == 7]
    assert all(a[2] == b[1] for a, b in pairwise(cut))
    assert [(*row[1:4], row[-1]) for row in cut if row[5] == "on CPU"] == [
        (220, 230, "mount", "sandbox.other"), (240, 250, "mount", "sandbox.netns"),
        (250, 300, "mount", "cni"), (300, 310, "mount", "shim"),
        (650, 655, "mount", "container.other"),
    ]  # fmt: skip
    assert {row[4:8] for row in cut if row[3] == "mount"} == {("kernel", "on CPU", 5, 6)}
    assert (230, 235, "sandbox.other") in [row[1:4] for row in cut]
    assert [row for row in cut if row[1] < 220] == [(7, *row[1:]) for row in whole if row[1] < 220]
