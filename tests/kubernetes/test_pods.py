"""Pods and sandboxes as the lab measures them, and what goes wrong with them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from tests.kubernetes.test_cluster import kubectl

from firstlight import store
from firstlight.analysis import breakdown as breakdowns
from firstlight.analysis import pods
from firstlight.analysis.breakdown import breakdown
from firstlight.analysis.causes import NOT_TRACED
from firstlight.lab.cluster import standing
from firstlight.model import Ending, Sample


def measured(out: Path, *words: str) -> list[Sample]:
    """The samples of a run by the command line, in a process of its own as users' are."""
    done = subprocess.run(
        [Path(sys.prefix, "bin", "firstlight"), "run", *words, "--out", out],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return list(store.read(out).samples)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> store.Run:
    out = tmp_path_factory.mktemp("pods") / "run"
    networks = ("--cni", "bridge", "--cni", "ptp")
    measured(out, "kubernetes-pods", *networks, "--instances", "1,5", "--repetitions", "1")
    return store.read(out)


@pytest.fixture(scope="module")
def samples(run: store.Run) -> list[Sample]:
    return list(run.samples)


def test_pods_reach_first_instruction_then_ready(samples: list[Sample]) -> None:
    assert len(samples) == 2 * (3 + 3 + 5)
    for sample in samples:
        assert sample.ending is Ending.READY, sample.error
        steps = {step.name: step for step in sample.steps}
        assert steps["first-instruction"].end == sample.stamps.ready
        assert steps["Ready"].end > steps["first-instruction"].end


def test_the_phases_of_every_pod_sum_to_its_latency(samples: list[Sample]) -> None:
    for sample in samples:
        spent = pods.account(sample)
        assert sum(spent.values()) == sample.latency
        assert spent.get("unattributed", 0) <= 0.05 * (sample.latency or 0), spent
        assert spent.keys() >= {  # what waits for an event may see it before its span has ended
            "kubelet.sync", "cni", "shim", "sandbox.runtime", "container.create",
            "container.runtime", "datastore", "api",
        }  # fmt: skip
        assert sample.telemetry
        assert sample.telemetry.uncertainty < 1_000_000


def test_traced_pod_explains_waits_of_stages(
    run: store.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breakdowns, "_CHUNK_SPANS", 1)
    spent = breakdown(run)
    latencies = {sample.index: sample.latency for sample in run.samples}
    for index, wall in spent.group_by("sample").agg(pl.col("wall").sum()).iter_rows():
        assert latencies[index] == wall
    traced = [sample.index for sample in run.samples if sample.traced]
    assert len(traced) == 2 * 3
    seen = spent.filter(pl.col("sample").is_in(traced) & (pl.col("phase") == "container.runtime"))
    untraced = seen.filter(pl.col("cause") == NOT_TRACED)["wall"].sum()
    assert 5 * untraced <= seen["wall"].sum()


def test_the_stages_are_those_that_the_components_tell(samples: list[Sample]) -> None:
    """Together, the sandbox's phases are RunPodSandbox's own span, but for its CRI call."""
    for sample in samples:
        assert sample.telemetry
        span = next(
            each for each in sample.telemetry.spans
            if each.name == "sandbox runtime.v1.RuntimeService/RunPodSandbox"
        )  # fmt: skip
        spent = pods.account(sample)
        names = ("sandbox.netns", "cni", "shim", "sandbox.runtime", "sandbox.other")
        parts = sum(spent[name] for name in names)
        shim = [each for each in sample.telemetry.spans if each.name == "start container.NewTask"]
        inner = [each for each in sample.telemetry.spans
                 if each.name == "start containerd.task.v3.Task/Create"]  # fmt: skip
        second = shim[0].end - shim[0].start - (inner[0].end - inner[0].start)
        whole = span.end - span.start
        assert parts - second == pytest.approx(whole, rel=0.05)


def test_a_pod_to_its_first_packet(tmp_path: Path) -> None:
    result = measured(tmp_path / "run", "kubernetes-pods", "--cni", "ptp", "--instances", "1",
                     "--repetitions", "1", "--end-point", "first-packet")  # fmt: skip
    for sample in result:
        assert sample.ending is Ending.READY, sample.error
        steps = {step.name: step for step in sample.steps}
        assert steps["packet"].end == sample.stamps.ready
        assert steps["first-instruction"].end <= steps["packet"].start
        assert pods.account(sample)["packet"] >= steps["packet"].end - steps["packet"].start


def test_a_sandbox_by_the_cri_alone(tmp_path: Path) -> None:
    result = measured(tmp_path / "run", "cri-sandbox", "--cni", "bridge", "--instances", "1,4",
                     "--repetitions", "1")  # fmt: skip
    assert len(result) == 3 + 3 + 4
    for sample in result:
        assert sample.ending is Ending.READY, sample.error
        assert [step.name for step in sample.steps] == [
            "RunPodSandbox", "CreateContainer", "StartContainer",
        ]  # fmt: skip
        spent = pods.account(sample)
        assert sum(spent.values()) == sample.latency
        assert not spent.get("unattributed")


def test_a_container_by_containerd_beside_its_runtime_alone(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = measured(out, "containerd-task", "--instances", "1", "--repetitions", "1")
    assert {sample.ending for sample in result} == {Ending.READY}, result
    spent = breakdown(store.read(out)).group_by("sample").agg(pl.col("wall").sum())
    latencies = {sample.index: sample.latency for sample in result}
    assert len(spent) == sum(sample.traced for sample in result) == 6
    assert all(latencies[index] == wall for index, wall in spent.iter_rows())


@pytest.fixture(scope="module")
def users() -> Iterator[standing.Record]:
    """A cluster that is somebody else's: known by its kubeconfig alone."""
    record = standing.up(("runc",), ("bridge",), lambda _: None)
    yield record
    standing.down()


def namespaces(record: standing.Record) -> set[str]:
    return set(kubectl(record, "get", "namespaces", "-o", "name").split())


def test_pods_of_a_user_s_cluster(users: standing.Record, tmp_path: Path) -> None:
    before = namespaces(users)
    result = measured(tmp_path / "run", "kubernetes-pods", "--kubeconfig", users.kubeconfig,
                     "--instances", "1,3", "--repetitions", "1")  # fmt: skip
    assert len(result) == 3 + 3 + 3
    assert all(sample.ending is Ending.READY for sample in result), result
    assert namespaces(users) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--image", "127.0.0.1:9/nothing:1"), "127.0.0.1:9/nothing:1"),
        (("--image", "not an image"), "image"),
    ],
)
def test_a_pod_that_cannot_start_says_why_and_is_deleted(
    users: standing.Record, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    before = namespaces(users)
    result = measured(tmp_path / "run", "kubernetes-pods", "--kubeconfig", users.kubeconfig,
                     *options, "--instances", "1", "--repetitions", "1")  # fmt: skip
    assert {sample.ending for sample in result} == {Ending.FAILED}
    assert all(words in (sample.error or "") for sample in result), result
    assert namespaces(users) == before


def test_a_pod_that_no_node_takes_says_so(users: standing.Record, tmp_path: Path) -> None:
    kubectl(users, "cordon", "firstlight")
    try:
        result = measured(tmp_path / "run", "kubernetes-pods", "--kubeconfig", users.kubeconfig,
                         "--instances", "1", "--repetitions", "1", "--deadline", "8")  # fmt: skip
    finally:
        kubectl(users, "uncordon", "firstlight")
    assert {sample.ending for sample in result} <= {Ending.FAILED, Ending.HUNG}
    assert all("unschedulable" in (sample.error or "") for sample in result), result


def test_a_cluster_that_refuses(users: standing.Record, tmp_path: Path) -> None:
    config = json.loads(Path(users.kubeconfig).read_text())
    config["users"][0]["user"]["token"] = "nobody"
    refused = tmp_path / "kubeconfig"
    refused.write_text(json.dumps(config))
    result = measured(tmp_path / "run", "kubernetes-pods", "--kubeconfig", str(refused),
                     "--instances", "1", "--repetitions", "1")  # fmt: skip
    assert all("Unauthorized" in (sample.error or "") for sample in result), result


def test_a_kubeconfig_that_is_not_there(tmp_path: Path) -> None:
    done = subprocess.run(
        [Path(sys.prefix, "bin", "firstlight"), "run", "kubernetes-pods", "--kubeconfig",
         tmp_path / "none", "--out", tmp_path / "run"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"the kubeconfig {tmp_path / 'none'} does not exist" in done.stderr
