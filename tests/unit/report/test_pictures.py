import struct
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import altair as alt
import pytest
import vl_convert
from msgspec.structs import replace as replaced
from tests.support import synthetic

from firstlight.analysis import Analysis, figures, phases
from firstlight.report import pictures
from firstlight.report.plots import palette, theme
from firstlight.report.plots.waterfall import CAUSE_LANE, values


def test_every_picture_is_written_as_png_and_svg(network: Analysis, tmp_path: Path) -> None:
    written = pictures.write(network, tmp_path / "new")
    assert {file.stem for file in written} >= {
        "network-setup-steps-time",
        "network-setup-steps-share",
        "network-setup-phases-time",
        "network-setup-cdf",
        "network-setup-scaling",
        "network-setup-waterfall-ip-parallel-50",
        "network-setup-causes-netlink-parallel",
    }
    for file in written:
        if file.suffix == ".png":
            width, height = struct.unpack(">II", file.read_bytes()[16:24])
            assert width > 500
            assert height > 100
        else:
            root = ElementTree.fromstring(file.read_text())
            assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 10


def test_phases_of_starts_without_a_latency_give_no_bars(container: Analysis) -> None:
    traced = [sample for sample in container.run.samples if sample.traced][:1]
    alone = Analysis(replace(container.run, samples=traced))
    assert any(point.parts for point in alone.points)
    assert list(pictures.bars(alone, legend=False)) == []


def test_steps_of_batches_that_each_had_a_failure_give_no_bars(network: Analysis) -> None:
    failed = [replaced(sample, stamps=replaced(sample.stamps, ready=None))
              if sample.instance == 0 else sample for sample in network.run.samples]  # fmt: skip
    held = Analysis(replace(network.run, samples=failed))
    assert "steps" not in [picture.name for picture in pictures.bars(held, legend=False)]


def test_waterfall_covers_start_and_causes_once(container: Analysis) -> None:
    point = container.lead[0]
    sample = figures.median_sample(point.traced_samples)
    rows = values(synthetic.timeline(container.run, sample), sample, {sample.pid: "runc"})
    lanes = {row["lane"] for row in rows}
    assert lanes == {f"runc {sample.pid}", f"process {sample.pid + 1}", CAUSE_LANE}
    for chosen in (
        [row for row in rows if row["lane"] == CAUSE_LANE],
        [row for row in rows if row["lane"] != CAUSE_LANE],
    ):
        spent = sum(row["end"] - row["start"] for row in chosen)
        assert spent == pytest.approx((sample.latency or 0) / 1e6)


def test_processes_are_named_by_what_they_execute(container: Analysis) -> None:
    sample = container.lead[0].traced_samples[0]
    assert container.programs(sample) == {sample.pid: "runc"}


def test_untraced_samples_execute_nothing_known(container: Analysis) -> None:
    sample = container.lead[0].untraced_samples[0]
    assert container.programs(sample) == {}


def test_every_phase_of_the_table_has_a_colour_of_its_own() -> None:
    colours = [palette.part(phase) for phase in phases.ORDER]
    assert set(phases.ORDER) <= set(palette.PHASES)
    assert len(set(colours)) == len(colours)


def test_unknown_parts_of_one_picture_differ() -> None:
    colours = palette.parts(["flannel", "portmap", "mount"])
    assert len(set(colours.values())) == 3
    assert colours["mount"] == palette.part("mount")


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        ("lock: rtnl_mutex (rtnl_newlink)", "lock"),
        ("RCU: rcu_barrier (__dev_change_net_namespace)", "RCU"),
        ("I/O (filemap_fault)", "I/O"),
        ("another process: pipe", "another process"),
        ("another thread: futex", "another process"),
        ("kernel: netlink answer (x)", "kernel worker"),
        ("kernel worker (flush_work)", "kernel worker"),
        ("load generator", "load generator"),
        ("unknown wait (x)", "other"),
    ],
)
def test_causes_have_kinds(cause: str, kind: str) -> None:
    assert palette.cause_class(cause) == kind


def test_a_legend_names_every_part_however_many() -> None:
    rows = theme.rows({"part": f"part {n}"} for n in range(40))
    chart = alt.Chart(rows).mark_bar().encode(color="part:N").to_dict()
    chart["config"] = theme.config(theme.LIGHT)
    drawn = vl_convert.vegalite_to_svg(chart)
    assert all(f">part {n}<" in drawn for n in range(40))
