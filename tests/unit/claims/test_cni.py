"""Claims C12 to C17 on runs whose answer is known."""

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest

from firstlight.analysis import Analysis
from firstlight.analysis import breakdown as breakdowns
from firstlight.analysis.breakdown import SCHEMA
from firstlight.claims import catalogue, engine
from firstlight.claims.cni import C17
from firstlight.model import (
    ComponentSpan,
    Ending,
    EndPoint,
    Header,
    Point,
    Sample,
    Stamps,
    Telemetry,
)
from firstlight.store import Run

MS = 1_000_000
SLOW = {
    "kube-router-2021": 20,
    "flannel-2021": 25,
    "weave": 50,
    "calico": 80,
    "cilium-profile": 150,
}


def run_of(experiment: str, points: dict[tuple[tuple[str, str | int], ...], float]) -> Run:
    """Ten batches of each point, traced and not, with medians in ms and a little noise."""
    draw = np.random.default_rng(1)
    samples: list[Sample] = []
    batch = 0
    for repetition in range(10):
        for axes, median in points.items():
            point: Point = dict(axes)
            for traced in (False, True):
                batch += 1
                for instance in range(int(point["instances"])):
                    end = int(median * MS * draw.normal(1, 0.02))
                    samples.append(
                        Sample(
                            index=len(samples),
                            batch=batch,
                            instance=instance,
                            repetition=repetition,
                            point=point,
                            traced=traced,
                            ending=Ending.READY,
                            stamps=Stamps(0, 0, end),
                        )
                    )
    listed: list[Point] = [dict(axes) for axes in points]
    header = Header(
        run="r",
        experiment=experiment,
        question="?",
        end_point=EndPoint.REQUEST_DONE,
        axes=tuple(listed[0]),
        points=tuple(listed),
        argv=(),
        seed=1,
        started="2026-01-01",
        revision="",
        repetitions=10,
    )
    return Run(Path("/nowhere"), header, samples, None)


def breakdown_run(monkeypatch: pytest.MonkeyPatch, shares: dict[str, dict[str, float]]) -> Run:
    """A run of cni-breakdown in which each network spends these shares in these phases."""
    run = run_of(
        "cni-breakdown", {(("cni", name), ("instances", 1)): SLOW[name] for name in shares}
    )
    rows = []
    for sample in run.samples:
        total = sample.latency or 0
        parts = shares[str(sample.point["cni"])]
        for phase, share in {**parts, "veth": 1 - sum(parts.values())}.items():
            wall = int(total * share)
            rows.append((sample.index, phase, "kernel", "on CPU", wall, wall))
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    monkeypatch.setattr(breakdowns, "breakdown", lambda _run: frame)
    return run


def of(identity: str, run: Run) -> engine.Verdict:
    return next(
        each for each in engine.judge(catalogue.ALL, [Analysis(run)]) if each.id == identity
    )


def test_a_run_to_the_first_packet_says_nothing_of_add(monkeypatch: pytest.MonkeyPatch) -> None:
    run = breakdown_run(monkeypatch, {"kube-router-2021": {}, "cilium-profile": {"ebpf": 0.7}})
    assert of("C15", run).verdict == "holds"
    header = msgspec.structs.replace(run.header, end_point=EndPoint.FIRST_PACKET)
    verdict = of("C15", replace(run, header=header))
    assert verdict.verdict == "not measured"
    assert "needs firstlight run cni-breakdown" in verdict.figure


def test_the_papers_figure_8_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    run = breakdown_run(
        monkeypatch,
        {
            "kube-router-2021": {"garp": 0.5},
            "flannel-2021": {"garp": 0.48},
            "weave": {"netns.switch": 0.4},
            "calico": {"datastore": 0.3, "ipam": 0.2},
            "cilium-profile": {"ebpf": 0.7},
        },
    )
    assert [of(each, run).verdict for each in ("C12", "C13", "C14", "C15")] == 4 * ["holds"]
    assert "cilium-profile: eBPF 70 %" in of("C15", run).figure


def test_a_small_share_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    run = breakdown_run(
        monkeypatch,
        {
            "kube-router-2021": {"garp": 0.1},
            "flannel-2021": {"garp": 0.1},
            "weave": {"netns.switch": 0.07},
            "calico": {"datastore": 0.05, "ipam": 0.1},
            "cilium-profile": {"ebpf": 0.1},
        },
    )
    verdicts = [of(each, run).verdict for each in ("C12", "C13", "C14", "C15")]
    assert verdicts == 4 * ["does not hold"]
    assert "10 % (10–10) of flannel-2021" in of("C12", run).figure


def test_another_that_spends_more_on_the_same_refutes(monkeypatch: pytest.MonkeyPatch) -> None:
    run = breakdown_run(
        monkeypatch, {"weave": {"netns.switch": 0.4}, "calico": {"netns.switch": 0.4}}
    )
    assert of("C13", run).verdict == "does not hold"


def test_claim_judges_profile_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(SLOW, "calico-profile", 60)
    monkeypatch.setitem(SLOW, "weave-profile", 40)
    shares = {"weave-profile": {"netns.switch": 0.4}, "calico-profile": {"ipam": 0.5}}
    both = {**shares, "weave": {"netns.switch": 0.5}, "calico": {"ipam": 0.6}}
    assert "calico-profile: datastore" in of("C14", breakdown_run(monkeypatch, shares)).figure
    figure = of("C14", breakdown_run(monkeypatch, both)).figure
    assert "calico-profile: datastore" in figure
    assert "calico: datastore" in figure
    assert "weave-profile" not in figure


def background(growth: dict[str, float]) -> Run:
    return run_of(
        "cni-background",
        {
            (("cni", name), ("background", up), ("instances", 1)): SLOW[name] * (by if up else 1)
            for name, by in growth.items()
            for up in (0, 100)
        },
    )


def test_background_pods_are_free_only_if_they_are_for_all() -> None:
    assert of("C16", background({"weave": 1.0, "calico": 1.1})).verdict == "holds"
    assert of("C16", background({"weave": 1.0, "calico": 1.6})).verdict == "does not hold"
    assert "calico 1.6×" in of("C16", background({"weave": 1.0, "calico": 1.6})).figure


def burst(growth: dict[str, float]) -> Run:
    return run_of(
        "cni-burst",
        {
            (("cni", name), ("instances", size)): SLOW[name] * (by if size > 1 else 1)
            for name, by in growth.items()
            for size in (1, 10)
        },
    )


def test_cilium_must_degrade_fastest_and_the_two_least() -> None:
    paper = {"kube-router-2021": 5, "flannel-2021": 5.1, "weave": 8, "calico": 9}
    assert of("C17", burst({**paper, "cilium-profile": 20})).verdict == "holds"
    assert of("C17", burst({**paper, "cilium-profile": 7})).verdict == "does not hold"
    worse = {**paper, "flannel-2021": 12, "cilium-profile": 20}
    assert of("C17", burst(worse)).verdict == "does not hold"


def test_what_is_missing_is_reported() -> None:
    run = run_of("cni-burst", {(("cni", "bridge"), ("instances", 1)): 10})
    result = of("C17", run)
    assert result.verdict == "not measured"
    assert result.figure == "none of the paper's CNIs has 4 complete batches"


def pods_run(experiment: str, points: dict[tuple[tuple[str, str | int], ...], float]) -> Run:
    """Pods of runc whose network takes these times, in the middle of a start that takes more."""
    run = run_of(experiment, points)
    for place, sample in enumerate(run.samples):
        assert sample.stamps.ready
        network = sample.stamps.ready
        span = ComponentSpan("sandbox cni.setup_pod_network", MS, MS + network)
        run.samples[place] = msgspec.structs.replace(
            sample,
            point={**sample.point, "runtime": "runc"},
            stamps=Stamps(0, 0, 2 * MS + network),
            telemetry=Telemetry((span,), 1),
        )
    return run


def pods_burst(growth: dict[str, float]) -> Run:
    return pods_run(
        "kubernetes-pods",
        {
            (("network", name), ("instances", size)): SLOW[name] * (by if size > 1 else 1)
            for name, by in growth.items()
            for size in (1, 10)
        },
    )


def test_pods_decide_and_the_plugins_verdict_is_beside() -> None:
    growth = {"kube-router-2021": 5.0, "flannel-2021": 5.1, "cilium-profile": 20.0}
    plugins, pods = Analysis(burst(growth)), Analysis(pods_burst({**growth, "cilium-profile": 2}))
    [verdict] = engine.judge([C17], [plugins, pods])
    assert verdict.verdict == "does not hold"
    assert verdict.figure.startswith("pods: 10 at once: kube-router-2021 5.0")
    assert "; without: holds: 10 at once: " in verdict.figure


def test_pods_that_cannot_tell_leave_the_plugins_verdict() -> None:
    growth = {"kube-router-2021": 5.0, "flannel-2021": 5.1, "cilium-profile": 20.0}
    pods = Analysis(pods_burst({"flannel-2021": 3.0}))
    [verdict] = engine.judge([C17], [Analysis(burst(growth)), pods])
    assert verdict.verdict == "holds"
    assert verdict.figure.endswith("pods: not measured: needs cilium, flannel and kube-router")


def test_background_pods_of_a_cluster() -> None:
    run = pods_run(
        "kubernetes-background",
        {
            (("network", "flannel-2021"), ("background", up), ("instances", 1)): time
            for up, time in ((0, 20.0), (30, 40.0))
        },
    )
    assert "pods: flannel-2021 2.0× (" in of("C16", run).figure
    assert of("C16", run).verdict == "does not hold"


def test_claim_counts_kernel_share_of_pod_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("kube-router-2021", "flannel-2021", "cilium-profile")
    alone: dict[tuple[tuple[str, str | int], ...], float] = {
        (("network", name), ("instances", 1)): SLOW[name] for name in names
    }
    run = pods_run("kubernetes-pods", alone)

    def stages(run: Run) -> pl.DataFrame:
        rows = [
            (sample.index, stage, phase, "kernel", "on CPU", (sample.latency or 0) // 4)
            for sample in run.samples
            for stage, phase in (("cni", "garp"), ("cni", "ebpf"), ("shim", "mount"))
        ]
        return pl.DataFrame(rows, schema=breakdowns.STAGES, orient="row")

    monkeypatch.setattr(breakdowns, "stages", stages)
    assert of("C12", run).verdict == "holds"
    assert of("C15", run).verdict == "holds"
    assert "gratuitous ARP" in of("C12", run).figure
