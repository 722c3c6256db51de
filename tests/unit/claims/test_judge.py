from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from msgspec.structs import replace

from firstlight.analysis import Analysis
from firstlight.analysis import breakdown as breakdowns
from firstlight.claims import catalogue, engine
from firstlight.model import Ending, EndPoint, Header, Point, Sample, Stamps, Step
from firstlight.store import Run

MS = 1_000_000
Plan = Callable[[Point, int, np.random.Generator], tuple[int, int, tuple[Step, ...]]]
"""Intended arrival, end and steps (ns) of the i-th start of a batch at a point."""


def run_of(
    experiment: str,
    points: list[Point],
    plan: Plan,
    *,
    repetitions: int = 10,
    traced: bool = False,
    started: str = "2026-01-01",
) -> Run:
    draw = np.random.default_rng(1)
    samples: list[Sample] = []
    places = [(point, again) for again in range(repetitions) for point in points]
    for batch, (point, repetition) in enumerate(places):
        for instance in range(int(point["instances"])):
            start, end, steps = plan(point, instance, draw)
            samples.append(
                Sample(
                    index=len(samples),
                    batch=batch,
                    instance=instance,
                    repetition=repetition,
                    point=point,
                    traced=traced,
                    ending=Ending.READY,
                    stamps=Stamps(start, start, end),
                    steps=steps,
                )
            )
    header = Header(
        run="r",
        experiment=experiment,
        question="?",
        end_point=EndPoint.REQUEST_DONE,
        axes=tuple(points[0]),
        points=tuple(points),
        argv=(),
        seed=1,
        started=started,
        revision="",
        repetitions=repetitions,
    )
    return Run(Path("/nowhere"), header, samples, None)


def requests(move_alone: float, other: float, *, serial: bool = True, **more: object) -> Run:
    """Requests of ``other`` ms of parallel work, then a move of ``move_alone`` ms in turn."""

    def plan(
        point: Point, instance: int, draw: np.random.Generator
    ) -> tuple[int, int, tuple[Step, ...]]:
        noise = draw.normal(1, 0.01)
        work, move = int(other * noise * MS), int(move_alone * noise * MS)
        if point["order"] == "sequential":
            start = instance * int((other + move_alone) * 1.1 * MS)
            moving = start + work
            end = moving + move
        else:
            start, moving = 0, work
            end = moving + move * (instance + 1 if serial else 1)
        return start, end, (Step("netns", start, moving), Step("move", moving, end))

    points: list[Point] = [
        {"method": "ip", "order": order, "instances": size}
        for order in ("sequential", "parallel")
        for size in (1, 10, 50)
    ]
    return run_of("network-setup", points, plan, **more)  # type: ignore[arg-type]


def of(identity: str, *runs: Run) -> engine.Verdict:
    return next(
        verdict
        for verdict in engine.judge(catalogue.ALL, [Analysis(run) for run in runs])
        if verdict.id == identity
    )


def test_every_claim_is_answered_in_order_without_any_run() -> None:
    result = engine.judge(catalogue.ALL, [])
    papers = [f"C{number}" for number in range(1, 19)]
    assert [verdict.id for verdict in result][:18] == papers
    assert {verdict.verdict for verdict in result} == {"not measured"}
    assert "firstlight run network-setup" in result[8].figure
    assert "unikernel-boot" in result[0].figure


def test_a_serial_move_makes_the_papers_three_claims_hold() -> None:
    run = requests(move_alone=20, other=10)
    assert [of(each, run).verdict for each in ("C9", "C10", "C11")] == ["holds"] * 3
    assert "20.0 ms" in of("C10", run).figure
    assert "50 requests" in of("C11", run).figure


def test_a_move_that_runs_at_once_is_not_serial() -> None:
    run = requests(move_alone=20, other=10, serial=False)
    assert of("C10", run).verdict == "does not hold"
    assert of("C9", run).verdict == "does not hold"
    assert "67 %" in of("C9", run).figure


def test_parallel_that_is_slower_does_not_beat_sequential() -> None:
    slow = requests(move_alone=20, other=10_000)
    other = {"parallel": "sequential", "sequential": "parallel"}
    swapped = [
        replace(each, point={**each.point, "order": other[str(each.point["order"])]})
        for each in slow.samples
    ]
    assert of("C11", slow).verdict == "holds"
    backwards = Run(slow.path, slow.header, swapped, None)
    assert of("C11", backwards).verdict == "does not hold"


def test_a_share_that_straddles_the_bound_is_undecided() -> None:
    def plan(
        point: Point, instance: int, draw: np.random.Generator
    ) -> tuple[int, int, tuple[Step, ...]]:
        share = 0.9 + (0.05 if draw.random() < 0.5 else -0.05)
        return 0, 100 * MS, (Step("move", 0, int(share * 100 * MS)),)

    run = run_of("network-setup", [{"method": "ip", "order": "parallel", "instances": 10}], plan)
    assert of("C9", run).verdict == "not measured"
    assert "undecided" in of("C9", run).figure


def test_failed_and_unfinished_batches_do_not_count() -> None:
    whole = requests(move_alone=20, other=10, repetitions=4)
    cut = Run(whole.path, whole.header, whole.samples[:-1], None)
    assert of("C11", whole).verdict == "holds"
    assert "complete batches" in of("C9", cut).figure or "10 at once" in of("C9", cut).figure


def test_three_repetitions_are_too_few() -> None:
    result = of("C11", requests(move_alone=20, other=10, repetitions=3))
    assert (result.verdict, "4 complete batches" in result.figure) == ("not measured", True)


def test_claim_decides_by_ip_command() -> None:
    by_ip = requests(move_alone=20, other=10, serial=False)
    other = requests(move_alone=20, other=10)
    samples = by_ip.samples + [
        replace(each, point={**each.point, "method": "netlink"}, batch=each.batch + 1000)
        for each in other.samples
    ]
    result = of("C9", Run(by_ip.path, by_ip.header, samples, None))
    assert result.verdict == "does not hold"
    assert result.figure.index("ip:") < result.figure.index("netlink:")


def test_the_newest_run_that_can_tell_is_used() -> None:
    old = requests(move_alone=20, other=10, started="2026-01-01")
    new = requests(move_alone=20, other=10, serial=False, started="2026-02-01")
    empty = requests(move_alone=20, other=10, repetitions=1, started="2026-03-01")
    assert of("C9", old, new, empty).verdict == "does not hold"
    assert of("C9", new, old).verdict == "does not hold"
    assert of("C9", old, empty).verdict == "holds"


def creation(
    monkeypatch: pytest.MonkeyPatch,
    *,
    heavy: float,
    net: float,
    cpu: float = 1.0,
    repetitions: int = 5,
) -> Run:
    """A lone start of 100 ms: 40 cgroup, 5 ns.net; with ten at once each times its growth.

    ``cpu`` is the growth of the rest; it also adds that much waiting for a CPU to ``cgroup``.
    """

    def parts(sample: Sample) -> list[tuple[str, str, float]]:
        many = sample.point["instances"] != 1
        noise = 1 + 0.01 * (sample.index % 7)
        grown = (
            {"heavy": heavy, "net": net, "rest": cpu}
            if many
            else dict.fromkeys(("heavy", "net", "rest"), 1.0)
        )
        return [
            ("cgroup", "on CPU", 40 * grown["heavy"] * noise),
            ("cgroup", "waiting for a CPU", (cpu - 1) * 40 if many else 0),
            ("ns.net", "on CPU", 5 * grown["net"] * noise),
            ("exec", "on CPU", 55 * grown["rest"] * noise),
        ]

    def breakdown(run: Run) -> pl.DataFrame:
        return pl.DataFrame(
            [
                {"sample": each.index, "phase": phase, "cause": cause, "wall": int(wall * MS)}
                for each in run.samples
                for phase, cause, wall in parts(each)
            ],
            schema_overrides={"sample": pl.UInt32},
        )

    monkeypatch.setattr(breakdowns, "breakdown", breakdown)

    def plan(
        point: Point, instance: int, draw: np.random.Generator
    ) -> tuple[int, int, tuple[Step, ...]]:
        return 0, 100 * MS, ()

    points: list[Point] = [{"runtime": "runc", "instances": size} for size in (1, 10)]
    return run_of("container-creation", points, plan, traced=True, repetitions=repetitions)


def test_heavy_phases_that_stay_as_long_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    result = of("C7", creation(monkeypatch, heavy=1, net=1))
    assert result.verdict == "holds"
    assert "40 %" in result.figure


def test_claim_excludes_cpu_wait_from_growth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = of("C7", creation(monkeypatch, heavy=1, net=1, cpu=6))
    assert result.verdict == "holds"
    assert "without waiting for a CPU" in result.figure
    assert "5.9" in result.figure


def test_heavy_phases_that_grow_do_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    assert of("C7", creation(monkeypatch, heavy=2, net=1)).verdict == "does not hold"


def test_a_network_namespace_that_outgrows_the_rest_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert of("C8", creation(monkeypatch, heavy=2, net=9, cpu=2)).verdict == "holds"


def test_claim_rejects_proportional_netns_growth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert of("C8", creation(monkeypatch, heavy=3, net=2, cpu=3)).verdict == "does not hold"


def test_lost_events_leave_a_batch_out(monkeypatch: pytest.MonkeyPatch) -> None:
    run = creation(monkeypatch, heavy=1, net=1, repetitions=4)
    lossy = [*run.samples[:-1], replace(run.samples[-1], lost=4)]
    assert of("C7", run).verdict == "holds"
    assert of("C7", Run(run.path, run.header, lossy, None)).verdict == "not measured"


def test_c18_compares_full_pools_with_empty_ones() -> None:
    points: list[Point] = [
        {"backend": backend, "instances": size}
        for backend in ("agile", "agile-cold", "runc + bridge")
        for size in (1, 50)
    ]

    def plan(point: Point, _: int, draw: np.random.Generator) -> tuple[int, int, tuple[Step, ...]]:
        slow = 4 if point["backend"] == "agile-cold" else 1
        return 0, round((slow + draw.uniform(0, 0.1)) * MS), ()

    def verdict(points: list[Point], plan: Plan) -> tuple[str, str]:
        judged = of("C18", run_of("agile", points, plan))
        assert judged.id == "C18"
        return judged.verdict, judged.figure

    assert verdict(points, plan)[0] == "holds"
    assert "50 at once: 3.8" in verdict(points, plan)[1]
    assert (
        verdict(points, lambda point, i, draw: plan({**point, "backend": ""}, i, draw))[0]
        != "holds"
    )
    assert verdict(points[:2], plan)[0] == "not measured"


def test_c18_is_judged_by_ablation_of_networks() -> None:
    points: list[Point] = [
        {"without": part, "instances": size}
        for part in ("nothing", "sandboxes", "networks", "everything")
        for size in (1, 20)
    ]

    def plan(point: Point, _: int, draw: np.random.Generator) -> tuple[int, int, tuple[Step, ...]]:
        slow = {"nothing": 1, "sandboxes": 2, "networks": 6, "everything": 30}
        return 0, round((slow[str(point["without"])] + draw.uniform(0, 0.1)) * MS), ()

    judged = of("C18", run_of("ablation", points, plan))
    assert (judged.id, judged.verdict) == ("C18", "holds")
    assert judged.figure.startswith("a new network over a pooled one: 1 at once: 2.9")
    assert "20 at once: 2.9" in judged.figure
