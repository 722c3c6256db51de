import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace as changed
from rich.console import Console
from tests.support import synthetic

from firstlight import units as wording
from firstlight.analysis import Analysis
from firstlight.analysis.figures import Queue
from firstlight.lab.experiments.pod import POD
from firstlight.model import EndPoint, Footer, Interval, Presentation
from firstlight.report import answer, page, terminal


def median(run: Analysis, **point: object) -> float:
    return float(
        np.median(
            [
                sample.latency
                for sample in run.run.samples
                if sample.point == point and not sample.traced and sample.latency
            ]
        )
    )


def test_the_answer_says_how_long_where_and_why(container: Analysis) -> None:
    sentence = answer.answer(container)
    alone = wording.duration(median(container, runtime="runc", instances=1))
    many = wording.duration(median(container, runtime="runc", instances=50))
    assert f"a runc container takes {alone} (median, 95 % interval " in sentence
    assert " to its first instruction, 24 % of it in mount; " in sentence
    assert f"with 50 at once it takes {many} (" in sentence
    assert "52 % of it waiting for the lock pernet_ops_rwsem (copy_net_ns)." in sentence


def test_the_answer_is_one_sentence_for_each_run(network: Analysis) -> None:
    sentence = answer.answer(network)
    assert sentence.count(". ") == 0
    assert "a network set-up request (ip · parallel)" in sentence
    assert "of it waiting for RCU in rcu_barrier." in sentence


def test_a_pod_to_its_first_packet_is_called_that(container: Analysis) -> None:
    header = changed(
        container.run.header, axes=("runtime", "network", "instances"),
        end_point=EndPoint.FIRST_PACKET, presentation=POD.presentation,
    )  # fmt: skip
    sentence = answer.answer(replace(container, run=replace(container.run, header=header)))
    assert "On this machine a pod (runc) takes " in sentence
    assert " of it in " in sentence


def test_one_point_is_explained_by_itself(container: Analysis) -> None:
    alone = synthetic.with_points(container, container.points[:1])
    sentence = answer.answer(alone)
    assert "24 % of it in mount, " in sentence
    assert "% of it on CPU." in sentence


def test_one_batch_has_no_interval(known_phases: None, tmp_path: Path) -> None:
    run = Analysis(synthetic.container_creation(tmp_path, repetitions=1))
    sentence = answer.answer(run)
    alone = wording.duration(median(run, runtime="runc", instances=1))
    assert f"a runc container takes {alone} (one batch, so no interval) to its first" in sentence
    assert "interval)," in sentence.partition("with 50 at once")[2]
    assert "Only one repetition: too few to tell" in " ".join(answer.warnings(run))
    for point in run.points:
        assert point.latency
        shown = [point.latency.median, point.latency.p95, point.latency.p99, point.all_ready]
        shown += [each for part in point.parts for each in (part.share, part.wall, part.summed)]
        assert {each.high - each.low for each in shown if each} == {0}
    with StringIO() as text:
        Console(file=text, width=200).print(terminal.summary([run]))
        assert not re.search(r"\(\d[\d.]*–", text.getvalue())


def test_a_run_without_a_ready_start_says_so(known_phases: None, tmp_path: Path) -> None:
    run = Analysis(synthetic.nothing_ready(tmp_path))
    assert answer.answer(run) == "No start became ready, so there is no latency to explain."
    warnings = answer.warnings(run)
    assert warnings[0].startswith("This run was killed")
    assert any("2 starts failed and 0 hung of 2" in warning for warning in warnings)


def test_failed_and_hung_starts_are_warned_of(container: Analysis) -> None:
    assert any(
        warning.startswith("runc × 10: 2 starts failed and 2 hung of 200")
        for warning in answer.warnings(container)
    )


def test_what_the_run_itself_warned_of_is_repeated(container: Analysis) -> None:
    footer = Footer(ended="now", interrupted=True, warnings=("The clock was set.",))
    warned = replace(container, run=replace(container.run, footer=footer))
    assert answer.warnings(warned)[0].startswith("This run was interrupted")
    assert answer.warnings(warned)[1] == "The clock was set."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"late": 0.12}, "runc × 1: the load generator was late by 12 % of the median"),
        ({"lost": 3}, "runc × 1: the tracer lost events in 3 of 10 traced starts"),
        (
            {"overhead": Interval(1.3, 1.2, 1.4)},
            "runc × 1: tracing makes starts 1.30× (1.20–1.40) as long",
        ),
    ],
)
def test_what_spoils_a_figure_is_warned_of(
    container: Analysis, change: dict[str, object], words: str
) -> None:
    clean = synthetic.with_points(container, container.points[:1])
    spoilt = synthetic.with_points(clean, (replace(clean.points[0], **change),))  # type: ignore[arg-type]
    assert not any(words in warning for warning in answer.warnings(clean))
    assert any(warning.startswith(words) for warning in answer.warnings(spoilt))


def test_a_slow_load_generator_is_found_in_the_stamps(
    known_phases: None, container: Analysis
) -> None:
    late = [
        changed(sample, stamps=changed(sample.stamps, spawned=sample.stamps.spawned + 9_000_000))
        for sample in container.run.samples
    ]
    run = Analysis(replace(container.run, samples=late))
    assert any("crun × 1: the load generator was late" in line for line in answer.warnings(run))


def test_unexplained_time_is_warned_of(container: Analysis) -> None:
    point = container.points[0]
    parts = tuple(
        replace(part, share=Interval(0.08, 0.07, 0.09)) if part.phase == "unattributed" else part
        for part in point.parts
    )
    run = synthetic.with_points(container, (replace(point, parts=parts),))
    assert any("8.0 % (7.0–9.0) of the time belongs to no" in line for line in answer.warnings(run))


def test_a_warning_for_many_points_is_shown_once(container: Analysis) -> None:
    late = tuple(replace(point, late=0.5) for point in container.points)
    result = [
        line for line in answer.warnings(synthetic.with_points(container, late)) if "late" in line
    ]
    assert len(result) == 1
    assert result[0].startswith("6 points (runc × 1 to crun × 50):")
    few = tuple(replace(point, late=0.5) for point in container.points[:2])
    result = [
        line for line in answer.warnings(synthetic.with_points(container, few)) if "late" in line
    ]
    assert [line.partition(":")[0] for line in result] == ["runc × 1, runc × 10"]


def test_a_queue_is_shown_with_what_its_holder_did() -> None:
    held = (("RCU: rcu_barrier (move)", 0.73), ("running", 0.2), ("RCU: a moment", 0.0004))
    result = Queue("rtnl_mutex", 0.87, held)
    assert answer.queue(result) == (
        "Queues for rtnl_mutex take 87 % of the starts' time. "
        "Meanwhile the lock's holder was waiting for RCU in rcu_barrier (move) 73 %; running 20 %."
    )


def test_a_traced_command_is_answered_by_its_trace(known_phases: None, tmp_path: Path) -> None:
    run = synthetic.container_creation(tmp_path / "run")
    header = changed(
        run.header, experiment="trace", axes=("command", "instances"), end_point=EndPoint.EXIT,
        points=({"command": "ls", "instances": 1},),
        presentation=Presentation(subject="{series}", headline="traced"),
    )  # fmt: skip
    each = next(each for each in run.samples if each.traced and each.latency)
    assert each.latency
    sample = changed(each, point=header.points[0])
    traced = Analysis(replace(run, header=header, samples=[sample]))
    took = wording.duration(each.latency)
    assert answer.answer(traced).startswith(f"On this machine ls takes {took}, traced, to its exit")
    assert page.render([Analysis(traced.run)]).count("as is all of a command") == 1
