"""What is said of machines: the quickest, the slowest, what each part is worth, by which clock."""

import re
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from tests.support.machine_runs import MS, Parts, run

from firstlight import units as wording
from firstlight.analysis import Analysis
from firstlight.report import data
from firstlight.report.page import render
from firstlight.report.plots import boots as bars
from firstlight.report.terminal import summary
from firstlight.report.views import boots, builds

if TYPE_CHECKING:
    from firstlight.model import Point


def machines(tmp_path: Path) -> Analysis:
    points: list[tuple[Point, Parts]] = [
        ({"hypervisor": hypervisor, "guest": "probe", "console": console, "instances": instances},
         {"init": init, "console": drawn, "block": 2.0})
        for instances in (1, 4)
        for hypervisor, init in (("qemu pc", 80.0 * instances), ("qemu microvm", 40.0 * instances))
        for console, drawn in (("serial", 1.0), ("vga", 30.0))
    ]  # fmt: skip
    return Analysis(run(tmp_path / "run", "unikernel-boot", points, repetitions=5))


def test_the_quickest_and_the_slowest_are_named(tmp_path: Path) -> None:
    answer = boots.answer(machines(tmp_path))
    assert answer is not None
    assert "the fastest boot, qemu microvm · serial, takes 43." in answer
    assert re.search(r", 40\.\S* ms of it in hypervisor\.init", answer)
    assert "the slowest, qemu pc · vga × 1, takes 11" in answer
    assert ". With 4 at once, qemu microvm · serial takes 16" in answer


def test_machines_that_differ_by_chance_alone_are_not_ranked(tmp_path: Path) -> None:
    points: list[tuple[Point, Parts]] = [
        ({"hypervisor": hypervisor, "guest": "probe", "console": "serial", "instances": 1},
         {"init": 40.0, "console": 1.0, "block": 2.0})
        for hypervisor in ("qemu pc", "qemu microvm")
    ]  # fmt: skip
    sentence = boots.answer(Analysis(run(tmp_path / "run", "unikernel-boot", points)))
    assert sentence is not None
    assert "fastest" not in sentence
    assert "slowest" not in sentence
    assert "no difference seen between it and qemu " in sentence


def test_machines_of_one_batch_are_neither_ranked_nor_advised(tmp_path: Path) -> None:
    points: list[tuple[Point, Parts]] = [
        ({"hypervisor": hypervisor, "guest": "probe", "console": "serial", "instances": 1},
         {"init": init, "console": 1.0, "block": 2.0})
        for hypervisor, init in (("qemu pc", 80.0), ("qemu microvm", 40.0))
    ]  # fmt: skip
    first = Analysis(run(tmp_path / "run", "unikernel-boot", points, repetitions=1))
    sentence = boots.answer(first)
    assert sentence is not None
    assert "too few repetitions to compare with qemu pc" in sentence
    assert boots.advice(first) == ""


def test_a_machine_alone_is_not_called_the_fastest(tmp_path: Path) -> None:
    point: Point = {"hypervisor": "qemu pc", "guest": "probe", "console": "vga", "instances": 1}
    sentence = boots.answer(Analysis(run(tmp_path / "r", "unikernel-boot", [(point, {"init": 5})])))
    assert sentence is not None
    assert "fastest" not in sentence


def test_each_part_alone_is_worth_what_it_takes_off(tmp_path: Path) -> None:
    message = boots.advice(machines(tmp_path))
    machine, console = (
        message.index("hypervisor qemu microvm instead of qemu pc"),
        message.index("console serial instead of vga"),
    )
    assert machine < console  # 83 to 43 is more than 72 to 43
    assert "(probe, serial)" in message
    assert "(probe, qemu microvm)" in message


def test_boots_compares_roots_and_names_protocols(tmp_path: Path) -> None:
    points: list[tuple[Point, Parts]] = [
        ({"hypervisor": hypervisor, "guest": guest, "filesystem": root, "protocol": protocol,
          "accel": accel, "instances": 1}, {"init": init, "mount": mount})
        for hypervisor, guest, root, protocol, accel, init, mount in (
            ("qemu pc", "mine", "rofs", "pvh", "tcg", 40.0, 1.0),
            ("qemu pc", "mine-zfs", "zfs", "pvh", "tcg", 40.0, 250.0),
            ("firecracker", "mine", "rofs", "direct", "kvm", 10.0, 1.0),
        )
    ]  # fmt: skip
    kinds: dict[str, str | int | float | bool | list[str]] = {
        "guest mine": "osv", "guest mine-zfs": "osv"
    }  # fmt: skip
    measured = run(tmp_path / "r", "unikernel-boot", points, repetitions=5, environment=kinds)
    message = boots.advice(Analysis(measured))
    assert "filesystem rofs instead of zfs" in message
    assert "hypervisor firecracker instead of qemu pc" in message
    assert "under kvm instead of tcg" in message


def test_nothing_is_advised_where_nothing_differs(tmp_path: Path) -> None:
    point: Point = {"hypervisor": "qemu pc", "guest": "probe", "console": "vga", "instances": 1}
    first = Analysis(run(tmp_path / "r", "unikernel-boot", [(point, {"init": 5.0})]))
    assert boots.advice(first) == ""


def test_a_bar_is_the_sum_of_its_phases(tmp_path: Path) -> None:
    rows = [row for row in bars.values(machines(tmp_path)) if row["instances"] == 1]
    of_one = [row for row in rows if row["series"] == "qemu pc · vga"]
    assert {row["part"] for row in of_one} == {"hypervisor.init", "driver.console", "driver.block"}
    total = sum(row["ms"] for row in of_one)
    assert 112 < total < 115
    assert abs(sum(row["share"] for row in of_one) - 1) < 1e-9


def test_the_clock_and_its_bound_are_in_the_data(tmp_path: Path) -> None:
    result = data.as_json([Analysis(machines(tmp_path).run)])["runs"][0]
    assert result["points"][0]["boot"]["clock"] == "TSC"
    assert result["points"][0]["boot"]["uncertainty_ns"] == 0
    parts = {part["phase"]: part for part in result["points"][0]["boot"]["phases"]}
    assert abs(parts["hypervisor.init"]["median_ns"]["value"] - 80 * MS) < 3 * MS
    assert result["advice"].startswith("What a single change gains")


def test_page_and_terminal_show_boots(tmp_path: Path) -> None:
    measured = machines(tmp_path).run
    page = render([Analysis(measured)])
    assert "Boot by phase" in page
    assert "TSC, ± 0 ns" in page
    console = Console(file=StringIO(), width=120)
    with console.capture() as capture:
        console.print(summary([Analysis(measured)]))
    words = capture.get()
    assert "boot by phase, untraced, median" in words
    assert "a guest's phases are by TSC" in words


def test_points_skipped_for_one_reason_are_shown_once(tmp_path: Path) -> None:
    header = machines(tmp_path).run.header
    reasons = (("a vga", "no VGA"), ("b", "not here"), ("c vga", "no VGA"))
    assert wording.skipped(msgspec.structs.replace(header, skipped=reasons)) == [
        ("no VGA", "a vga, c vga"),
        ("not here", "b"),
    ]


def test_builds_stand_beside_what_they_are_made_of(tmp_path: Path) -> None:
    points: list[tuple[Point, Parts]] = [
        ({"build": name, "instances": 1}, {"init": init, "console": 1.0})
        for name, init in (("full", 26.0), ("small", 7.0))
    ]
    facts: dict[str, str | int | float | bool | list[str]] = {
        "full: features": 388, "full: shared objects": 50, "full: relocations": 248125,
        "full: linker ns": 9_400_000, "small: features": "many", "small: linker ns": [],
    }  # fmt: skip
    measured = run(tmp_path / "r", "hypervisor-builds", points, environment=facts)
    [result] = builds.VIEW.tables(Analysis(measured))
    rows = {row[0]: row[1:] for row in result.rows}
    assert rows["full"][:4] == ("388", "50", "248,125", "9.40 ms")
    assert rows["full"][4].startswith("26.")
    assert rows["small"][0] == "0"
