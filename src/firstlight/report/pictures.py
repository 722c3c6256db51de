"""Which pictures a run has, with their words; and all of them as PNG and SVG files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import altair as alt
import polars as pl
import vl_convert

from firstlight.analysis import breakdown, figures
from firstlight.analysis.figures import Figures, PointFigures
from firstlight.model import Sample
from firstlight.report.agile import worth
from firstlight.report.plots import boots, palette, theme
from firstlight.report.plots.ablation import ablation
from firstlight.report.plots.causes import causes as causes_chart
from firstlight.report.plots.cdf import cdf
from firstlight.report.plots.cdf import curves as cdf_curves
from firstlight.report.plots.container_creation import container_creation, parts
from firstlight.report.plots.network_setup import network_setup, steps
from firstlight.report.plots.scaling import scaling
from firstlight.report.plots.scaling import series as scaling_series
from firstlight.report.plots.scaling import values as scaling_values
from firstlight.report.plots.waterfall import waterfall as waterfall_chart
from firstlight.store import Run
from firstlight.units import duration

PAPER = {
    "container-creation": "the paper's Fig. 6",
    "network-setup": "the paper's Fig. 7",
    "unikernel-boot": "the paper's Fig. 3(a)",
    "hypervisor-builds": "the paper's Fig. 3(b)",
    "driver-loading": "the paper's Fig. 4",
    "unikernel-scale": "the paper's Fig. 5",
}
_ALONG = {
    "background": "Growth with instances that are up already",
    "rate": "Growth with starts asked for a second",
}
_BANDS = "Bands are 95 % intervals. A tail that too few starts bound is left out."
MOST_STEPS = 12
"""The colours of more cannot be told apart; ``--json`` has them all."""
SHADES = "Full colour is inside a phase's own system calls, pale colour around them."


@dataclass(frozen=True)
class Picture:
    """One chart or two of the same thing; ``name`` and the charts' keys name their files.

    ``legend`` is the names and colours in it, for a page that draws its own.
    """

    name: str
    title: str
    caption: str
    charts: dict[str, alt.Chart | alt.FacetChart]
    legend: tuple[tuple[str, str], ...] = ()


def every(run: Figures) -> Iterator[Picture]:
    """All pictures of a run, the legends inside them."""
    yield from bars(run, legend=True)
    yield from curves(run, legend=True)
    for series in run.series:
        if explained := [point for point in run.ends(series) if point.parts]:
            yield causes(explained, legend=True)
    for point in run.lead:
        if point.parts:
            yield waterfall(run, point, legend=True)


def bars(run: Figures, *, legend: bool) -> Iterator[Picture]:
    """The stacked bars: by the backend's steps where it stamps them, and by phase."""
    source = PAPER.get(run.run.header.experiment)
    beside = f", as {source}" if source else ""
    if names := boots.parts(run):
        yield Picture(
            "boot",
            f"{run.run.header.experiment}: boot by phase{beside}",
            "Height: the sum of the phases' medians. Untraced starts only; a guest's phases are as "
            "it logged them, by the clock that the table names.",
            {
                "time": boots.boots(run, "time", legend=legend),
                "share": boots.boots(run, "share", legend=legend),
            },
            tuple(palette.parts(names).items()),
        )
        beside = ""
    elif 0 < len(names := steps(run)) <= MOST_STEPS:
        yield Picture(
            "steps",
            f"{run.run.header.experiment} by step{beside}",
            "Height: median time until the last of the requests is done. Split: the requests' own "
            "stamps. Untraced starts only.",
            {
                "time": network_setup(run, "time", legend=legend),
                "share": network_setup(run, "share", legend=legend),
            },
            tuple(palette.parts(names).items()),
        )
        beside = ""
    if names := parts(run):
        yield Picture(
            "phases",
            f"{run.run.header.experiment} by phase{beside}",
            f"Height: median latency of a start to its {run.end_point}, "
            f"{figures.headline_of(run.run)}. Split: the wall time of traced starts. {SHADES}",
            {
                "time": container_creation(run, "time", legend=legend),
                "share": container_creation(run, "share", legend=legend),
            },
            tuple(palette.parts(names).items()),
        )


def curves(run: Figures, *, legend: bool) -> Iterator[Picture]:
    """The distribution of latencies, and how they grow."""
    if not any(point.untraced_samples for point in run.lead):
        return
    if run.run.header.experiment == "ablation" and worth(run):
        yield Picture(
            "worth",
            "What each prepared part is worth",
            "Median of the starts without it over that of the starts with it, with 95 % intervals; "
            "grey where leaving it out may cost nothing. Untraced starts only.",
            {"": ablation(run)},
        )
    grows = len({point.instances for point in run.points if point.latency}) > 1
    yield Picture(
        "cdf",
        "Distribution of latency",
        "Untraced starts, from the intended arrival.",
        {"": cdf(run, legend=legend)},
        tuple(
            (f"{name} at once" if grows else name, colour)
            for name, colour in cdf_curves(run).items()
        ),
    )
    if grows:
        yield Picture(
            "scaling",
            "Growth with instances",
            f"{_BANDS} “All ready” is until the last start of a batch.",
            {"": scaling(run, legend=legend)},
            tuple(palette.series(run.series).items()),
        )
    for along, title in _ALONG.items():
        names = scaling_series(run, along)
        if len({row["at"] for row in scaling_values(run, along)}) > 1:
            yield Picture(
                f"by-{along}",
                title,
                _BANDS,
                {"": scaling(run, along=along, legend=legend)},
                tuple(palette.series(names).items()) if len(names) > 1 else (),
            )


def causes(points: Sequence[PointFigures], *, legend: bool) -> Picture:
    """What each phase's time was spent on, at each of the points."""
    spent = {palette.cause_class(cause) for point in points for cause, _ in point.causes()}
    kinds = [kind for kind in palette.CAUSES if kind in spent]
    return Picture(
        _file_name("causes", points[0].series),
        "Causes by phase",
        "Wall time of traced starts; the table names the kernel functions.",
        {"": causes_chart(points, legend=legend)},
        tuple((kind, palette.CAUSES[kind]) for kind in kinds),
    )


def waterfall(run: Figures, point: PointFigures, *, legend: bool) -> Picture:
    """The traced start of a point whose latency is nearest to their median."""
    sample = figures.median_sample(point.traced_samples)
    timeline = breakdown.timeline(run.run, sample)
    chart = waterfall_chart(timeline, sample, programs(run.run, sample), legend=legend)
    spent = {palette.cause_class(cause) for cause in timeline.get_column("cause").unique()}
    shown = figures.in_order(timeline.get_column("phase").unique().to_list())
    return Picture(
        _file_name("waterfall", point.series, str(point.instances)),
        f"One start of {point.name}",
        f"The median traced one: {duration(sample.latency or 0)} to its {run.end_point} "
        f"(batch {sample.batch}, instance {sample.instance}). {SHADES}",
        {"": chart},
        tuple((name, palette.part(name)) for name in shown)
        + tuple((kind, palette.CAUSES[kind]) for kind in palette.CAUSES if kind in spent),
    )


def programs(run: Run, sample: Sample) -> dict[int, str]:
    """What each process of a sample executed in turn, by its id; its parent's name before that.

    A program executed through /proc (by descriptor, or as ``exe``) keeps the name that it had.
    """
    names: dict[int, str] = {}
    own = run.spans_of(sample).filter(pl.col("kind").is_in(["exec", "fork"]))
    for kind, detail, pid, child in (
        own.sort("start")
        .select(pl.col("kind", "detail").cast(pl.String), "pid", "peer")
        .iter_rows()
    ):
        if kind == "fork":
            if pid in names:
                names.setdefault(child, names[pid].rpartition(" → ")[2])
        elif not ((program := Path(detail or "").name).isdigit() or program == "exe"):
            before = names.get(pid)
            names[pid] = program if before in (None, program) else f"{before} → {program}"
    return names


def write(run: Figures, directory: Path) -> list[Path]:
    """Every picture of a run as PNG (twice the size) and SVG; returns the files."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for picture in every(run):
        for key, chart in picture.charts.items():
            specification = chart.to_dict()
            specification["title"] = picture.title
            specification["config"] = theme.config(theme.LIGHT) | {"background": "white"}
            name = "-".join(filter(None, (run.run.header.experiment, picture.name, key)))
            png, svg = directory / f"{name}.png", directory / f"{name}.svg"
            png.write_bytes(vl_convert.vegalite_to_png(specification, scale=2))
            svg.write_text(vl_convert.vegalite_to_svg(specification), encoding="utf-8")
            written += [png, svg]
    return written


def _file_name(*words: str) -> str:
    kept = "".join(letter if letter.isalnum() else " " for letter in " ".join(words).lower())
    return "-".join(kept.split())
