"""Chooses and captions the pictures of a run, and writes them as PNG and SVG files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import vl_convert

from firstlight.analysis import Analysis, figures
from firstlight.analysis.figures import PointFigures
from firstlight.report import views
from firstlight.report.plots import boots, palette, theme
from firstlight.report.plots.causes import causes as causes_chart
from firstlight.report.plots.cdf import cdf
from firstlight.report.plots.cdf import curves as cdf_curves
from firstlight.report.plots.container_creation import container_creation, parts
from firstlight.report.plots.network_setup import network_setup, steps
from firstlight.report.plots.scaling import scaling
from firstlight.report.plots.scaling import series as scaling_series
from firstlight.report.plots.scaling import values as scaling_values
from firstlight.report.plots.waterfall import waterfall as waterfall_chart
from firstlight.report.records import Picture
from firstlight.units import duration

_ALONG = {
    "background": "Growth with running instances",
    "rate": "Growth with starts per second",
}
_BANDS = "Bands are 95 % intervals. Tails with too few starts are left out."
MOST_STEPS = 12
"""More colours cannot be distinguished; ``--json`` has all points."""
SHADES = "Full colour: within a phase's own system calls; pale: around them."


def every(analysis: Analysis) -> Iterator[Picture]:
    """All pictures of a run, with legends."""
    yield from bars(analysis, legend=True)
    yield from curves(analysis, legend=True)
    for series in analysis.series:
        if explained := [point for point in analysis.ends(series) if point.causes()]:
            yield causes(explained, legend=True)
    for point in analysis.lead:
        if point.parts:
            yield waterfall(analysis, point, legend=True)


def bars(analysis: Analysis, *, legend: bool) -> Iterator[Picture]:
    """The stacked bars: by the backend's steps, if it stamps them, and by phase."""
    source = analysis.header.presentation.counterpart
    beside = f", as {source}" if source else ""
    if names := boots.parts(analysis):
        yield Picture(
            "boot",
            f"{analysis.header.experiment}: boot by phase{beside}",
            "Height: the sum of the phases' medians. Untraced starts only; a guest's phases are "
            "from its log, by the clock named in the table.",
            {
                "time": boots.boots(analysis, "time", legend=legend),
                "share": boots.boots(analysis, "share", legend=legend),
            },
            tuple(palette.parts(names).items()),
        )
        beside = ""
    elif 0 < len(names := steps(analysis)) <= MOST_STEPS:
        yield Picture(
            "steps",
            f"{analysis.header.experiment} by step{beside}",
            "Height: median time until the last request is done. Split: the requests' own "
            "stamps. Untraced starts only.",
            {
                "time": network_setup(analysis, "time", legend=legend),
                "share": network_setup(analysis, "share", legend=legend),
            },
            tuple(palette.parts(names).items()),
        )
        beside = ""
    if names := parts(analysis):
        yield Picture(
            "phases",
            f"{analysis.header.experiment} by phase{beside}",
            f"Height: median latency of a start to its {analysis.end_point}, "
            f"{analysis.header.presentation.headline} starts. Split: the wall time of traced ones. "
            f"{SHADES}",
            {
                "time": container_creation(analysis, "time", legend=legend),
                "share": container_creation(analysis, "share", legend=legend),
            },
            tuple(palette.parts(names).items()),
        )


def curves(analysis: Analysis, *, legend: bool) -> Iterator[Picture]:
    """The pictures of the run's view, the distribution of latencies, and their growth."""
    yield from views.of(analysis.header).pictures(analysis)
    if not any(point.headline_samples for point in analysis.lead):
        return
    grows = len({point.instances for point in analysis.points if point.latency}) > 1
    yield Picture(
        "cdf",
        "Distribution of latency",
        f"{analysis.header.presentation.headline.capitalize()} starts, from the intended arrival.",
        {"": cdf(analysis, legend=legend)},
        tuple(
            (f"{name} at once" if grows else name, colour)
            for name, colour in cdf_curves(analysis).items()
        ),
    )
    if grows:
        yield Picture(
            "scaling",
            "Growth with instances",
            f"{_BANDS} “All ready” lasts until the last start of a batch.",
            {"": scaling(analysis, legend=legend)},
            tuple(palette.series(analysis.series).items()),
        )
    for along, title in _ALONG.items():
        names = scaling_series(analysis, along)
        if len({row["at"] for row in scaling_values(analysis, along)}) > 1:
            yield Picture(
                f"by-{along}",
                title,
                _BANDS,
                {"": scaling(analysis, along=along, legend=legend)},
                tuple(palette.series(names).items()) if len(names) > 1 else (),
            )


def causes(points: Sequence[PointFigures], *, legend: bool) -> Picture:
    """What each phase's time was spent on, by point."""
    spent = {palette.cause_class(cause) for point in points for cause, _ in point.causes()}
    kinds = [kind for kind in palette.CAUSES if kind in spent]
    return Picture(
        _file_name("causes", points[0].series),
        "Causes by phase",
        "Wall time of traced starts; the table names the kernel functions.",
        {"": causes_chart(points, legend=legend)},
        tuple((kind, palette.CAUSES[kind]) for kind in kinds),
    )


def waterfall(analysis: Analysis, point: PointFigures, *, legend: bool) -> Picture:
    """The traced start of a point whose latency is closest to the median."""
    sample = figures.median_sample(point.traced_samples)
    timeline = analysis.timeline(sample)
    chart = waterfall_chart(timeline, sample, analysis.programs(sample), legend=legend)
    spent = {palette.cause_class(cause) for cause in timeline.get_column("cause").unique()}
    shown = figures.in_order(timeline.get_column("phase").unique().to_list())
    return Picture(
        _file_name("waterfall", point.series, str(point.instances)),
        f"One start of {point.name}",
        f"The median traced start: {duration(sample.latency or 0)} to its {analysis.end_point} "
        f"(batch {sample.batch}, instance {sample.instance}). {SHADES}",
        {"": chart},
        tuple((name, palette.part(name)) for name in shown)
        + tuple((kind, palette.CAUSES[kind]) for kind in palette.CAUSES if kind in spent),
    )


def write(analysis: Analysis, directory: Path) -> list[Path]:
    """Write every picture of a run as PNG (double size) and SVG; returns the files."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for picture in every(analysis):
        for key, chart in picture.charts.items():
            specification = chart.to_dict()
            specification["title"] = picture.title
            specification["config"] = theme.config(theme.LIGHT) | {"background": "white"}
            name = "-".join(filter(None, (analysis.header.experiment, picture.name, key)))
            png, svg = directory / f"{name}.png", directory / f"{name}.svg"
            png.write_bytes(vl_convert.vegalite_to_png(specification, scale=2))
            svg.write_text(vl_convert.vegalite_to_svg(specification), encoding="utf-8")
            written += [png, svg]
    return written


def _file_name(*words: str) -> str:
    kept = "".join(letter if letter.isalnum() else " " for letter in " ".join(words).lower())
    return "-".join(kept.split())
