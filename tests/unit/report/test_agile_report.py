"""What is said of the agile runtime's runs, on runs made up so that the answer is known."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from firstlight.analysis import Analysis
from firstlight.lab.experiments import catalogue
from firstlight.model import Ending, EndPoint, Header, Point, Sample, Stamps, Step
from firstlight.report import answer, pictures, terminal, views
from firstlight.report.plots import cdf, scaling
from firstlight.report.records import Table
from firstlight.report.views import agile as agile_view
from firstlight.report.worth import worth
from firstlight.store import Run

MS = 1_000_000
BATCHES = 4
Latency = Callable[[Point], float]
Counts = Callable[[Point], dict[str, float]]


def starts(
    points: list[Point], ms: Latency, packet: Latency | None, counts: Counts | None
) -> Iterator[Sample]:
    """A batch's starts are asked for 1 ms after one another; each batch is 1 % slower."""
    batch = index = 0
    for point in points:
        for repetition in range(BATCHES):
            for instance in range(int(point["instances"])):
                request = batch * 1000 * MS + instance * MS
                took = int(ms(point) * (1 + repetition / 100) * MS)
                received = request + took + int(packet(point) * MS) if packet else 0
                yield Sample(
                    index=index, batch=batch, instance=instance, repetition=repetition, point=point,
                    traced=False, ending=Ending.READY,
                    stamps=Stamps(request, request, request + took, request + took),
                    steps=(Step("packet", request + took, received),) if packet else (),
                    counts=counts(point) if counts and not instance else {},
                )  # fmt: skip
                index += 1
            batch += 1


def run(
    experiment: str,
    axes: tuple[str, ...],
    points: list[Point],
    ms: Latency,
    *,
    packet: Latency | None = None,
    counts: Counts | None = None,
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION,
) -> Analysis:
    header = Header(
        run="r", experiment=experiment, question="?", end_point=end_point,
        axes=axes, points=tuple(points), argv=(), seed=1, started="", revision="",
        repetitions=BATCHES, presentation=catalogue.find(experiment).presentation,
    )  # fmt: skip
    samples = list(starts(points, ms, packet, counts))
    return Analysis(Run(Path("/nowhere"), header, samples, None))


def tables(of: Analysis) -> list[Table]:
    return list(views.of(of.header).tables(of))


def comparison() -> Analysis:
    took = {"runc + bridge": 30.0, "agile": 1.5, "agile-ready": 1.0}
    points: list[Point] = [
        {"backend": name, "instances": size} for name in took for size in (1, 10)
    ]
    return run(
        "agile", ("backend", "instances"), points,
        lambda p: took[str(p["backend"])] * (1 if p["instances"] == 1 else 2),
    )  # fmt: skip


def test_the_gain_over_a_runtime_is_the_answer() -> None:
    message = answer.answer(comparison())
    assert message.startswith(
        "On this machine an agile start takes 1.52 ms (1.50–1.54) to its first "
    )
    assert "instruction, 20.0× (19.4–20.6) faster than runc + bridge" in message
    assert "from a whole sandbox 1.01 ms (1.00–1.03), 30.0× (" in message
    # The last of ten is asked for after 9 ms.
    assert "With 10 at once the last is ready after 12.0 ms (" in message
    assert f"{(9 + 60.9) / (9 + 3.045):.2f}× (" in message


def test_report_shows_gain_of_pool_alone() -> None:
    took = {"runc + bridge": 30.0, "runc + pooled": 20.0, "own + a + b": 60.0, "agile": 1.5}
    points: list[Point] = [{"backend": name, "instances": 1} for name in took]
    answer = agile_view.VIEW.answer(
        run("agile", ("backend", "instances"), points, lambda p: took[str(p["backend"])])
    )
    assert answer is not None
    assert "20.0× (19.4–20.6) faster than runc + bridge; runc + pooled, 20.3 ms (" in answer
    assert "), 1.50× (1.46–1.54) faster; own + a + b, 60.9 ms (" in answer
    assert answer.endswith("), 2.00× (1.94–2.06) slower.")


def test_a_run_to_the_first_packet_says_it_once() -> None:
    points: list[Point] = [{"without": name, "instances": 1} for name in ("nothing", "sandboxes")]
    reaching = run(
        "ablation", ("without", "instances"), points, lambda _: 2.0, packet=lambda _: 0.1,
        end_point=EndPoint.FIRST_PACKET,
    )  # fmt: skip
    assert [(each.part, each.end) for each in worth(reaching)] == [("sandboxes", "first packet")]
    assert "to its first packet" in answer.answer(reaching)


def test_a_run_of_something_else_or_too_thin_says_nothing() -> None:
    first: list[Point] = [{"backend": "agile", "instances": 1}]
    alone = run("agile", ("backend", "instances"), first, lambda _: 1.0)
    assert agile_view.VIEW.answer(alone) is None
    assert answer.answer(alone).startswith("On this machine one start (")
    other = run("pod", ("backend", "instances"), first, lambda _: 1.0)
    assert views.of(other.header) is views.EMPTY
    assert views.EMPTY.answer(other) is None
    assert list(views.EMPTY.tables(other)) == []


def ablation() -> Analysis:
    took = {"nothing": 1.0, "sandboxes": 2.0, "networks": 5.0, "cgroups": 2.5, "neighbours": 2.0,
            "everything": 8.0}  # fmt: skip
    points: list[Point] = [{"without": part, "instances": size} for part in took for size in (1, 2)]
    return run(
        "ablation", ("without", "instances"), points, lambda p: took[str(p["without"])],
        packet=lambda p: 1.0 if p["without"] in ("neighbours", "everything") else 0.1,
    )  # fmt: skip


def test_part_is_compared_with_start_lacking_only_it() -> None:
    result = {(each.part, each.instances, each.end): each for each in worth(ablation())}
    gains = {
        part: (round(each.longer.value, 3), round(each.extra / MS, 2))
        for (part, size, end), each in result.items()
        if (size, end) == (1, "first instruction")
    }
    assert gains == {
        "sandboxes": (2.0, 1.01),
        "networks": (2.5, 3.04),
        "cgroups": (1.25, 0.51),
        "neighbours": (1.0, 0.0),
        "everything": (8.0, 7.11),
    }
    packet = result["neighbours", 1, "first packet"]
    assert packet.extra == pytest.approx(0.9 * MS)
    assert packet.longer.low > 1


def test_gaining_parts_are_listed_in_order() -> None:
    message = answer.answer(ablation())
    assert "from parts 2.00× (" in message
    assert "with nothing prepared 8.00× (" in message
    assert message.index("networks 3.04 ms, 2.50×") < message.index("cgroups 508 µs, 1.25×")
    assert message.endswith("No gain is certain for neighbours.")


def churn(hits: dict[float, float]) -> Analysis:
    points: list[Point] = [
        {"pools": pools, "rate": rate, "instances": 100}
        for pools in ("full", "refilling")
        for rate in hits
    ]

    def counts(point: Point) -> dict[str, float]:
        result = hits[float(point["rate"])] if point["pools"] == "refilling" else 100.0
        return {"hits": result, "misses": 100 - result, "made": 9, "fill": 500.0, "refill": 300.0}

    return run(
        "churn", ("pools", "rate", "instances"), points,
        lambda p: 1.2 if p["pools"] == "refilling" else 1.0, counts=counts,
    )  # fmt: skip


def test_churn_is_shown_at_the_rate_that_the_pool_keeps_up_with() -> None:
    message = answer.answer(churn({50: 100, 100: 98, 200: 20}))
    assert "at 100 starts and stops a second, a start takes 1.2" in message
    assert "its P99 is 1.20× (" in message
    assert "filled with 500 sandboxes a second before, and refilled with 300 a second" in message
    assert message.endswith("at 200 per second it runs empty: 20 % find a waiting sandbox.")


def test_churn_beyond_pools_shows_highest_rate() -> None:
    message = answer.answer(churn({50: 40, 100: 10}))
    assert "at 100 starts and stops a second" in message
    assert "runs empty" not in message


def test_the_table_of_churn_has_a_row_a_point() -> None:
    [result] = tables(churn({50: 100}))
    assert [row[0] for row in result.rows] == ["full · 50/s", "refilling · 50/s"]
    full, refilling = result.rows
    assert full[1] == "1000", "100 starts, each 1 ms after the one before, in 100 ms"
    assert full[2:] == ("100 %", "500", "300", "–")
    assert refilling[5].startswith("1.20× (")


def test_a_full_host_is_compared_with_an_empty_one() -> None:
    points: list[Point] = [{"background": up, "instances": 1} for up in (10, 1000)]
    message = answer.answer(
        run("density", ("background", "instances"), points,
            lambda p: 1.0 if p["background"] == 10 else 1.5)
    )  # fmt: skip
    assert "1.01 ms (1.00–1.03) to its first instruction with 10 instances running" in message
    assert "with 1000: 1.50× (" in message


def test_kinds_of_functions_are_compared_with_a_container() -> None:
    took = {"python3 in runc": 60.0, "zygote": 3.0, "wasm": 0.1}
    points: list[Point] = [{"function": name, "instances": 1} for name in took]
    kinds = run(
        "functions", ("function", "instances"), points, lambda p: took[str(p["function"])],
    )  # fmt: skip
    message = answer.answer(kinds)
    assert "its handler's first line after 3.04 ms (3.00–3.09), 20.0× (19." in message
    assert "faster than python3 in runc (60.9 ms (60.0–61.8)); a WebAssembly function" in message
    [result] = tables(kinds)
    assert [row[0] for row in result.rows] == ["python3 in runc", "zygote", "wasm"]
    assert result.rows[0][2] == "–"
    assert result.rows[2][2].startswith("600× (")


def test_an_ablation_is_drawn_by_part_and_end() -> None:
    result = {picture.name: picture for picture in pictures.every(ablation())}
    [chart] = result["worth"].charts.values()
    [rows] = chart.to_dict()["datasets"].values()
    assert list(dict.fromkeys(row["facet"] for row in rows)) == [
        "first instruction, 1 at once",
        "first instruction, 2 at once",
        "first packet, 1 at once",
    ]
    assert [row["part"] for row in rows if row["facet"].startswith("first packet")] == [
        "sandboxes", "networks", "cgroups", "neighbours", "everything"
    ]  # fmt: skip
    assert all(row["low"] <= row["times"] <= row["high"] for row in rows)


def test_growth_is_drawn_along_the_axis_that_varies() -> None:
    assert "by-rate" in {picture.name for picture in pictures.every(churn({50: 100, 100: 98}))}
    points: list[Point] = [{"background": up, "instances": 1} for up in (0, 10, 100)]
    density = run("density", ("background", "instances"), points, lambda _: 1.0)
    assert "by-background" in {picture.name for picture in pictures.every(density)}
    rows = scaling.values(density, "background")
    assert [(row["series"], row["at"], row["quantity"]) for row in rows] == [
        ("all", 10, "median"), ("all", 100, "median")
    ]  # fmt: skip
    rows = scaling.values(churn({50: 100, 100: 98}), "rate")
    assert {(row["series"], row["at"]) for row in rows} == {
        (pools, rate) for pools in ("full", "refilling") for rate in (50, 100)
    }
    assert "all ready" not in {row["quantity"] for row in rows}


def test_more_curves_than_colours_are_spread_over_facets() -> None:
    few, many = churn({50: 100, 100: 100}), churn(dict.fromkeys((1, 2, 5, 10, 20), 100))
    assert cdf.curves(few).keys() == {
        f"{pools} · {rate}/s" for pools in ("full", "refilling") for rate in (50, 100)
    }
    assert {row["facet"] for row in cdf.values(few)} == {"instances: 100"}
    assert list(cdf.curves(many)) == [f"{rate}/s" for rate in (1, 2, 5, 10, 20)]
    assert len(set(cdf.curves(many).values())) == 5
    assert {row["facet"] for row in cdf.values(many)} == {"full", "refilling"}


def test_more_steps_than_colours_are_not_drawn() -> None:
    points: list[Point] = [{"backend": "x", "instances": 1}]
    few, many = (run("pod", ("backend", "instances"), points, lambda _: 1.0) for _ in range(2))
    for shown, count in ((few, 3), (many, pictures.MOST_STEPS + 1)):
        steps = tuple(Step(f"step-{n}", n, n + 1) for n in range(count))
        samples = [msgspec.structs.replace(sample, steps=steps) for sample in shown.run.samples]
        names = {p.name for p in pictures.every(Analysis(replace(shown.run, samples=samples)))}
        assert ("steps" in names) is (count == 3)


@pytest.mark.parametrize("made", [comparison, ablation, lambda: churn({50: 100})])
def test_the_terminal_shows_it(made: Callable[[], Analysis]) -> None:
    shown = made()
    console = Console(width=110, file=StringIO())
    console.print(terminal.summary([shown]))
    assert isinstance(console.file, StringIO)
    text = " ".join(console.file.getvalue().split())
    assert " ".join(answer.answer(shown).split()) in text
    assert all(own.title in text for own in tables(shown))


def test_calls_of_a_replayed_trace_are_not_made_at_once() -> None:
    points: list[Point] = [{"pool": pool, "instances": 20} for pool in ("follows", "fixed 0")]
    message = answer.answer(
        run("trace-replay", ("pool", "instances"), points,
            lambda p: 2.0 if p["pool"] == "follows" else 4.0)
    )  # fmt: skip
    assert message.startswith(
        "In a replay of 20 calls on this machine, a call reaches its first instruction in 2.03 ms ("
    )
    assert ") where the pool follows the demand, 4.06 ms (" in message
    assert message.endswith(") where the pool is fixed 0 (medians).")


def test_replay_compares_cheapest_fixed_size_of_equal_tail() -> None:
    took = {"follows": 2.0, "fixed 0": 4.0, "fixed 4": 1.5, "fixed 8": 1.0}
    held = {"follows": 100.0, "fixed 0": 50.0, "fixed 4": 400.0, "fixed 8": 900.0}
    day = {"functions": 40.0, "day": 1.0, "fixed day": 5.0, "size": 10.0, "p99": 1e6,
           "fixed p99": 1e6, "ready": 1e5, "made": 1e6}  # fmt: skip

    def replayed(pools: list[str]) -> Analysis:
        return run(
            "trace-replay", ("pool", "instances"),
            [{"pool": pool, "instances": 20} for pool in pools], lambda p: took[str(p["pool"])],
            counts=lambda p: {"idle": held[str(p["pool"])], **(
                day if p["pool"] == "follows" else {})},
        )  # fmt: skip

    shown = replayed(list(took))
    assert answer.answer(shown).endswith(
        "In the hour that was played they hold 75 % fewer than pools of fixed 4, the cheapest "
        "whose P99 was not higher in these calls: 1.54 ms against 2.06 ms."
    )
    assert ("follows", "2.03 ms", "2.06 ms (2.00 ms–2.06 ms)", "–", "100") in tables(shown)[0].rows
    assert answer.answer(replayed(["follows", "fixed 0"])).endswith(
        "In the hour that was played, no fixed size has as low a P99 as theirs, 2.06 ms."
    )
