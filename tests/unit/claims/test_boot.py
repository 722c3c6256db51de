"""C1 to C6: each holds where its sentence is true, does not where it is turned round, and is not
measured where a run cannot tell."""

from pathlib import Path

import pytest
from tests.support.machine_runs import MS, Parts, run

from firstlight import store
from firstlight.analysis import Analysis
from firstlight.claims import catalogue
from firstlight.claims.engine import Verdict, judge
from firstlight.model import Point


def verdict(claim: str, measured: store.Run) -> Verdict:
    return next(each for each in judge(catalogue.ALL, [Analysis(measured)]) if each.id == claim)


def machines(inits: dict[str, tuple[float, float]]) -> list[tuple[Point, Parts]]:
    return [
        ({"hypervisor": name, "guest": "osv", "filesystem": "rofs", "console": console,
          "instances": 1}, {"init": init, "kernel": 20})
        for name, both in inits.items()
        for console, init in zip(("serial", "vga"), both, strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("inits", "outcome"),
    [
        ({"qemu": (90, 95), "firecracker": (9, 9)}, "holds"),
        ({"qemu": (90, 150), "firecracker": (9, 9)}, "does not hold"),
        ({"qemu": (90, 95), "firecracker": (91, 92)}, "does not hold"),
        ({"qemu": (90, 95)}, "not measured"),
    ],
)
def test_c1_init_is_the_hypervisors(
    tmp_path: Path, inits: dict[str, tuple[float, float]], outcome: str
) -> None:
    result = verdict("C1", run(tmp_path / "r", "unikernel-boot", machines(inits)))
    assert result.verdict == outcome, result


def protocols(before: dict[str, Parts]) -> list[tuple[Point, Parts]]:
    return [
        ({"hypervisor": "qemu", "guest": "osv", "protocol": name, "instances": 1},
         {"init": 80, **parts, "kernel": 20})
        for name, parts in before.items()
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "outcome"),
    [
        ({"disk": {"firmware": 70, "disk read (real mode)": 5, "uncompress lzloader.elf": 60},
          "pvh": {"firmware": 3}}, "holds"),
        ({"disk": {"firmware": 70}, "pvh": {"uncompress lzloader.elf": 1}}, "does not hold"),
        ({"disk": {"firmware": 70}, "pvh": {"firmware": 68}}, "does not hold"),
        ({"disk": {"firmware": 70}}, "not measured"),
    ],
)  # fmt: skip
def test_c2_a_direct_entry_reads_and_decompresses_nothing(
    tmp_path: Path, before: dict[str, Parts], outcome: str
) -> None:
    result = verdict("C2", run(tmp_path / "r", "boot-protocol", protocols(before)))
    assert result.verdict == outcome, result


@pytest.mark.parametrize(
    ("full", "linking", "outcome"),
    [(26, 15, "holds"), (26, 5, "does not hold"), (8, 1, "does not hold"), (7, 1, "does not hold")],
)
def test_c3_features_are_linked(tmp_path: Path, full: float, linking: int, outcome: str) -> None:
    points: list[tuple[Point, Parts]] = [
        ({"build": name, "instances": 1}, {"init": init, "kernel": 1})
        for name, init in (("full", full), ("small", 7.0))
    ]
    facts: dict[str, str | int | float | bool | list[str]] = {
        "full: features": 400, "full: shared objects": 51, "full: linker ns": linking * MS + MS,
        "small: features": 40, "small: shared objects": 9, "small: linker ns": MS,
    }  # fmt: skip
    result = verdict("C3", run(tmp_path / "r", "hypervisor-builds", points, environment=facts))
    assert result.verdict == outcome, result
    assert ("of the difference" in result.figure) == (full > 7), result


@pytest.mark.parametrize(
    ("vga", "serial", "outcome"),
    [(150, 1, "holds"), (5, 1, "does not hold"), (150, 90, "does not hold")],
)
def test_c4_the_vga_console_dominates(
    tmp_path: Path, vga: float, serial: float, outcome: str
) -> None:
    points: list[tuple[Point, Parts]] = [
        ({"guest": "osv", "console": name, "instances": 1},
         {"init": 80, "console": took, "block": 5, "net": 5})
        for name, took in (("vga", vga), ("serial", serial))
    ]  # fmt: skip
    result = verdict("C4", run(tmp_path / "r", "driver-loading", points))
    assert result.verdict == outcome, result


@pytest.mark.parametrize(("vga", "outcome"), [(160, "holds"), (6, "does not hold")])
def test_c4_of_a_guest_that_tells_no_console(tmp_path: Path, vga: float, outcome: str) -> None:
    points: list[tuple[Point, Parts]] = [
        ({"guest": "osv", "console": name, "instances": 1}, {"init": 80, "drivers loaded": took})
        for name, took in (("vga", vga), ("serial", 6.0))
    ]
    result = verdict("C4", run(tmp_path / "r", "driver-loading", points))
    assert result.verdict == outcome, result
    assert "does not separate" in result.figure


@pytest.mark.parametrize(
    ("mounts", "outcome"),
    [
        ({"rofs": 0.7, "zfs": 175}, "holds"),
        ({"rofs": 0.7, "zfs": 5}, "does not hold"),
        ({"rofs": 100, "zfs": 175}, "does not hold"),
        ({"rofs": 1}, "not measured"),
    ],
)
def test_c5_writing_file_systems_dominate(tmp_path: Path, mounts: Parts, outcome: str) -> None:
    points: list[tuple[Point, Parts]] = [
        ({"hypervisor": "qemu", "guest": "osv", "filesystem": name, "console": "serial",
          "instances": 1}, {"init": 80, "kernel": 20, f"{name.upper()} mounted": took})
        for name, took in mounts.items()
    ]  # fmt: skip
    result = verdict("C5", run(tmp_path / "r", "unikernel-boot", points))
    assert result.verdict == outcome, result


@pytest.mark.parametrize(
    ("init", "vga", "block", "outcome"),
    [(4, 3, 1.1, "holds"), (1.1, 3, 1.0, "does not hold"), (4, 3, 5, "does not hold")],
)
def test_c6_init_and_vga_grow(
    tmp_path: Path, init: float, vga: float, block: float, outcome: str
) -> None:
    points: list[tuple[Point, Parts]] = [
        ({"guest": "osv", "filesystem": "rofs", "console": "vga", "instances": size},
         {"init": 80 * (init if size > 1 else 1), "console": 150 * (vga if size > 1 else 1),
          "block": 5 * (block if size > 1 else 1), "Network initialized": 2})
        for size in (1, 8)
    ]  # fmt: skip
    result = verdict("C6", run(tmp_path / "r", "unikernel-scale", points))
    assert result.verdict == outcome, result


def test_c5_compares_the_roots_of_one_kind_of_guest(tmp_path: Path) -> None:
    points: list[tuple[Point, Parts]] = [
        ({"hypervisor": "qemu", "guest": name, "filesystem": root, "console": "serial",
          "instances": 1}, {"init": 80, "kernel": 20, f"{root.upper()} mounted": took})
        for name, root, took in (("mine", "rofs", 0.7), ("mine-zfs", "zfs", 175.0))
    ]  # fmt: skip
    apart = run(tmp_path / "apart", "unikernel-boot", points)
    assert verdict("C5", apart).verdict == "not measured"
    kinds: dict[str, str | int | float | bool | list[str]] = {
        "guest mine": "osv", "guest mine-zfs": "osv"
    }  # fmt: skip
    together = run(tmp_path / "together", "unikernel-boot", points, environment=kinds)
    assert verdict("C5", together).verdict == "holds"


def test_a_counted_clock_is_no_wall_time(tmp_path: Path) -> None:
    points = machines({"qemu": (90, 95), "firecracker": (9, 9)})
    counted = [({**point, "clock": "counted"}, parts) for point, parts in points]
    assert verdict("C1", run(tmp_path / "r", "unikernel-boot", counted)).verdict == "not measured"


def test_two_batches_say_nothing(tmp_path: Path) -> None:
    points = machines({"qemu": (90, 95), "firecracker": (9, 9)})
    result = verdict("C1", run(tmp_path / "r", "unikernel-boot", points, repetitions=2))
    assert result.verdict == "not measured"
