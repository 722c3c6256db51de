"""No sentence ranks what its intervals cannot tell apart; every view, on runs made up for it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
from msgspec.structs import replace
from rich.console import Console

from firstlight.analysis import Analysis
from firstlight.analysis.compare import compare
from firstlight.lab.experiments import catalogue
from firstlight.model import Ending, EndPoint, Header, Point, Presentation, Sample, Stamps, Step
from firstlight.report import answer, page, terminal
from firstlight.report.points import apart, in_groups
from firstlight.report.worth import worth
from firstlight.store import Run

MS = 1_000_000
RANKS = re.compile(
    r"fastest|slowest|faster|slower|quick|\bbest\b|saves|largest|as long|gains are", re.IGNORECASE
)
ALIKE = ((1.00, 1.42, 0.95, 1.31, 1.12), (1.38, 1.02, 1.29, 0.97, 1.15), (1.1, 1.4, 0.9, 1.3, 1.2))
EQUAL = ((1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0))
ONE_BATCH = ((1.0,), (30.0,), (60.0,))
TWO_BATCHES = ((1.0, 1.1), (30.0, 31.0), (60.0, 61.0))
APART = (
    (1.0, 1.1, 1.05, 1.02, 1.04), (30.0, 31.0, 30.5, 30.2, 30.1), (60.0, 61.0, 60.5, 60.2, 60.1)
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """An experiment's axis, with three of its settings."""

    experiment: str
    axis: str
    settings: tuple[str | int, ...]
    view: str = ""


KINDS = (
    Kind("agile", "backend", ("agile", "agile-ready", "runc + bridge")),
    Kind("functions", "function", ("wasm", "zygote", "python3 in runc")),
    Kind("ablation", "without", ("nothing", "sandboxes", "networks")),
    Kind("density", "background", (10, 100, 1000)),
    Kind("platforms", "platform", ("a", "b", "c")),
    Kind("container-creation", "runtime", ("runc", "crun", "youki")),
    Kind("cni-breakdown", "cni", ("bridge", "ptp", "flannel")),
    Kind("container-creation", "node", ("a", "b", "c"), view="nodes"),
)


def run(kind: Kind, latencies: Sequence[Sequence[float]], *, sizes: Sequence[int] = (1,)) -> Run:
    """A run whose points have batches of these latencies, in ms, whatever their size."""
    points: list[Point] = [
        {kind.axis: setting, "instances": size}
        for size in sizes
        for setting, _ in zip(kind.settings, latencies, strict=False)
    ]
    presentation = catalogue.find(kind.experiment).presentation
    if kind.view:
        presentation = Presentation(subject=presentation.subject, view=kind.view)
    header = Header(
        run="r", experiment=kind.experiment, question="?", end_point=EndPoint.FIRST_INSTRUCTION,
        axes=(kind.axis, "instances"), points=tuple(points), argv=(), seed=1, started="",
        revision="", repetitions=len(latencies[0]), presentation=presentation,
    )  # fmt: skip
    samples: list[Sample] = []
    for place, point in enumerate(points):
        for repetition, ms in enumerate(latencies[place % len(latencies)]):
            for instance in range(int(point["instances"])):
                end = round(ms * MS)
                samples.append(
                    Sample(
                        index=len(samples), batch=place * 1000 + repetition, instance=instance,
                        repetition=repetition, point=point, traced=False, ending=Ending.READY,
                        stamps=Stamps(0, 0, end, end), steps=(Step("packet", end, end + MS),),
                    )
                )  # fmt: skip
    return Run(Path("/nowhere"), header, samples, None)


def words(of: Run) -> str:
    """The answer, and all that the terminal shows."""
    console = Console(width=200, file=StringIO())
    with console.capture() as capture:
        console.print(terminal.summary([Analysis(of)]))
    return answer.answer(Analysis(of)) + capture.get()


@pytest.mark.parametrize("latencies", [ALIKE, APART], ids=["alike", "apart"])
def test_traced_starts_rank_where_headline_is_traced(
    latencies: Sequence[Sequence[float]],
) -> None:
    untraced = run(KINDS[4], latencies)
    header = replace(
        untraced.header, presentation=replace(untraced.header.presentation, headline="traced")
    )
    samples = [replace(sample, traced=True) for sample in untraced.samples]
    analysis = Analysis(Run(untraced.path, header, samples, None))
    assert answer.answer(analysis).split(";") == answer.answer(Analysis(untraced)).split(";")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.view or kind.experiment)
@pytest.mark.parametrize(
    "latencies", [ALIKE, EQUAL, ONE_BATCH, TWO_BATCHES, APART[:1]],
    ids=["alike", "equal", "one batch", "two batches", "one point"],
)  # fmt: skip
@pytest.mark.parametrize("sizes", [(1,), (1, 10)], ids=["alone", "alone and at once"])
def test_nothing_is_ranked_that_is_not_told_apart(
    kind: Kind, latencies: Sequence[Sequence[float]], sizes: tuple[int, ...]
) -> None:
    result = words(run(kind, latencies, sizes=sizes))
    assert not RANKS.findall(result), result


def test_the_page_does_not_rank_either() -> None:
    text = page.render([Analysis(run(KINDS[0], ALIKE))])
    visible = re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL)
    assert not re.findall(r"\) (?:faster|slower)|slowest", visible)
    assert "no difference seen from runc + bridge" in visible


@pytest.mark.parametrize(
    ("kind", "ranked"),
    [
        (KINDS[0], "57.9× (54.5–61.0) faster than runc + bridge"),
        (KINDS[1], "faster than python3 in runc"),
        (KINDS[2], "from parts 29.0× ("),
        (KINDS[3], "with 1000: 57.9"),
        (KINDS[4], "starts in 1.04 ms by a; 30.2 ms by b; 60.2 ms by c (medians)"),
        (KINDS[7], "c is the slowest node"),
    ],
    ids=lambda value: value.experiment if isinstance(value, Kind) else "",
)
def test_what_is_told_apart_is_ranked(kind: Kind, ranked: str) -> None:
    assert ranked in answer.answer(Analysis(run(kind, APART)))


def test_platforms_that_are_not_told_apart_are_one_group() -> None:
    sentence = answer.answer(Analysis(run(KINDS[4], ALIKE)))
    assert re.fullmatch(
        r"[^,;]+ ms by \w, [^,;]+ ms by \w and [^,;]+ \(.*\) \(medians\)\.", sentence
    )


def test_a_failed_start_is_no_repetition() -> None:
    whole = run(KINDS[0], APART)
    samples = [
        replace(sample, ending=Ending.FAILED, stamps=replace(sample.stamps, ready=None))
        if sample.repetition
        else sample
        for sample in whole.samples
    ]
    failed = Run(whole.path, whole.header, samples, None)
    assert "too few repetitions to compare" in answer.answer(Analysis(failed))


@pytest.mark.parametrize("kind", KINDS[4:5] + KINDS[7:], ids=lambda kind: kind.axis)
def test_four_repetitions_of_three_points_are_too_few(kind: Kind) -> None:
    """Two comparisons each need p of 0.025, and four repetitions a side have 2/70 at best."""
    four = tuple(each[:4] for each in APART)
    result = answer.answer(Analysis(run(kind, four)))
    assert not RANKS.findall(result), result
    assert "too few repetitions to compare" in result
    assert "no difference seen" not in result


def test_a_start_that_is_slower_is_called_so() -> None:
    assert " slower than runc + bridge" in answer.answer(Analysis(run(KINDS[0], APART[::-1])))


CHAIN = (
    (10.0, 10.2, 10.4, 10.1, 10.5), (10.0, 10.3, 12.3, 12.1, 10.6), (12.0, 12.2, 12.4, 12.3, 12.1)
)  # fmt: skip
"""The first is like the second, the second like the third, and the first unlike the third."""


def test_one_in_the_middle_keeps_both_ends_from_being_ranked() -> None:
    points = Analysis(run(KINDS[4], CHAIN)).points
    first, second, third = points
    assert not apart(second, first, 2)
    assert not apart(third, second, 2)
    assert apart(third, first, 2)
    assert in_groups(points) == [[first, second, third]]
    assert "(no difference seen from one to the next)" in words(run(KINDS[4], CHAIN))
    nodes = answer.answer(Analysis(run(KINDS[7], CHAIN)))
    assert nodes.startswith("On c ")
    assert "slowest" not in nodes
    assert "as long as on a" in nodes


def test_parts_of_one_batch_gain_nothing_for_certain() -> None:
    assert not any(gain.is_certain for gain in worth(Analysis(run(KINDS[2], ONE_BATCH))))
    assert all(gain.is_certain for gain in worth(Analysis(run(KINDS[2], APART))))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.view or kind.experiment)
@pytest.mark.parametrize(
    "latencies", [((0.0,) * 4,) * 3, (*APART[:2], (0.0,) * 4), ((0.0,), (1.0,), (2.0,))]
)
def test_starts_that_take_no_time_are_shown(
    kind: Kind, latencies: Sequence[Sequence[float]]
) -> None:
    """Such as in a damaged file: nothing is divided by them."""
    assert words(run(kind, latencies, sizes=(1, 2)))
    assert compare(run(kind, latencies), run(kind, latencies[::-1])).differences
