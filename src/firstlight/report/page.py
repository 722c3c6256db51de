"""A self-contained HTML page: answer, pictures, tables, warnings.

Nothing is fetched: Vega's JavaScript is inlined, and the page's content security policy forbids
requests. Scripts are allowed by their hashes, and Vega interprets its expressions instead of
compiling them, so ``unsafe-eval`` is not needed.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from firstlight import units as wording
from firstlight.analysis import Analysis, figures
from firstlight.analysis.figures import PointFigures
from firstlight.analysis.stats import samples_needed
from firstlight.claims import catalogue
from firstlight.claims.engine import judge
from firstlight.host.facts import home
from firstlight.model import Sample
from firstlight.report import answer, pictures, records, views
from firstlight.report.plots import palette, theme
from firstlight.report.records import Picture
from firstlight.report.views import boots

MOST_FAILURES = 20
"""More are better read in the samples file."""
MOST_WARNINGS = 6
"""The most serious come first; the rest is folded."""
_MEASURE = re.compile(r"(?<=[\d)]) (?=(?:%|s|ms|µs|ns|×)(?!\w))")


@dataclass(frozen=True)
class Figure:
    """A picture on the page: ``charts`` are indices of the page's list of specifications."""

    picture: Picture
    charts: tuple[int, ...]


class Charts:
    """The specifications of a page's charts, in order of appearance."""

    def __init__(self) -> None:
        self.specifications: list[dict[str, Any]] = []

    def place(self, picture: Picture) -> Figure:
        """Add a picture's specifications, without colours for a white background."""
        first = len(self.specifications)
        for chart in picture.charts.values():
            specification = chart.to_dict(validate=False)
            specification.pop("config", None)
            self.specifications.append(specification)
        return Figure(picture, tuple(range(first, len(self.specifications))))


def write(runs: Sequence[Analysis], file: Path) -> None:
    """Write the report of ``runs``. Raises BadRun if spans cannot be read."""
    file.write_text(render(runs), encoding="utf-8")


def render(runs: Sequence[Analysis]) -> str:
    """The page's HTML."""
    verdicts = judge(catalogue.ALL, runs)
    experiments = {run.header.experiment for run in runs}
    concerned = {
        claim.id for claim in catalogue.ALL if experiments.intersection(claim.all_experiments)
    }
    charts = Charts()
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("firstlight.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "duration": wording.duration,
        "duration_interval": wording.duration_interval,
        "percent": wording.percent,
        "percent_interval": wording.percent_interval,
        "ratio_interval": wording.ratio_interval,
        "colour": palette.part,
        "queue": answer.queue,
        "clock": wording.clock,
        "skipped": wording.skipped,
        "unbroken": unbroken,
    }
    scripts = {"vega": _bundle(), "page": _asset("page.js")}
    return environment.get_template("page.html.j2").render(
        runs=[_run(run, charts) for run in runs],
        warnings=[warning for run in runs for warning in answer.warnings(run)],
        headlines={run.header.presentation.headline for run in runs},
        MOST_WARNINGS=MOST_WARNINGS,
        measured=[verdict for verdict in verdicts if verdict.id in concerned],
        unmeasured=[verdict for verdict in verdicts if verdict.id not in concerned],
        environments=_environments(runs),
        samples_needed=samples_needed,
        light=theme.LIGHT,
        dark=theme.DARK,
        style=Markup(_asset("page.css")),  # noqa: S704  our own file
        policy=_policy(scripts.values()),
        scripts={name: Markup(script) for name, script in scripts.items()},  # noqa: S704  ours and Vega
        themes=_json({"light": theme.config(theme.LIGHT), "dark": theme.config(theme.DARK)}),
        charts=_json(charts.specifications),
    )


def _run(analysis: Analysis, charts: Charts) -> dict[str, Any]:
    failed = records.failures(analysis.run.samples)
    bars = [charts.place(picture) for picture in pictures.bars(analysis, legend=False)]
    return {
        "figures": analysis,
        "header": analysis.header,
        "answer": answer.answer(analysis),
        "bars": bars,
        "boots": _boots(analysis),
        "tables": list(views.tables(analysis)),
        "curves": [charts.place(picture) for picture in pictures.curves(analysis, legend=False)],
        "series": [
            _series(analysis, name, charts) for name in analysis.series if analysis.of(name)
        ],
        "failed": [(each, _setting(each), count - 1) for each, count in failed[:MOST_FAILURES]],
        "more_failed": sum(count for _, count in failed[MOST_FAILURES:]),
    }


def _boots(analysis: Analysis) -> dict[str, Any] | None:
    """How VMs booted: the phases of any point, and the medians of each point."""
    rows = [(point, point.boot) for point in analysis.points if point.boot]
    names = figures.in_order({name for _, boot in rows for name, _ in boot.phases})
    return {
        "names": names,
        "rows": [(point, boot, dict(boot.phases)) for point, boot in rows],
        "advice": boots.advice(analysis),
    } if rows else None  # fmt: skip


def _series(analysis: Analysis, name: str, charts: Charts) -> dict[str, Any]:
    ends = analysis.ends(name)
    explained = [point for point in ends if point.parts]
    traced = [point for point in explained if point.causes()]
    return {
        "name": name,
        "ends": ends,
        "steps": _steps(ends),
        "causes": charts.place(pictures.causes(traced, legend=False)) if traced else None,
        "waterfalls": [
            charts.place(pictures.waterfall(analysis, point, legend=False)) for point in explained
        ],
    }


def _steps(points: Iterable[PointFigures]) -> list[tuple[PointFigures, list[tuple[str, Any]]]]:
    return [(point, steps) for point in points if (steps := figures.steps(point))]


def _setting(sample: Sample) -> str:
    return ", ".join(f"{axis} {value}" for axis, value in sample.point.items())


def _environments(runs: Iterable[Analysis]) -> list[tuple[list[str], dict[str, str]]]:
    """Each machine that was measured, with its runs."""
    machines: dict[str, tuple[list[str], dict[str, str]]] = {}
    for run in runs:
        header = run.header
        worded = {name: _fact(value) for name, value in header.environment.items()}
        machines.setdefault(json.dumps(worded), ([], worded))[0].append(header.run)
    return list(machines.values())


def _fact(value: str | int | float | bool | list[str]) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, list) else str(value)


def _json(value: object) -> Markup:
    """JSON for a script element of type application/json, escaped so that it cannot end it."""
    return Markup(json.dumps(value, separators=(",", ":")).replace("<", "\\u003c"))  # noqa: S704


def unbroken(text: str) -> str:
    """Keep a figure and its unit on one line."""
    return _MEASURE.sub("\N{NO-BREAK SPACE}", text)


def _policy(scripts: Iterable[str]) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _bundle() -> str:
    """Vega's JavaScript. Bundling takes three seconds, so the result is cached for the user."""
    cache = os.environ.get("XDG_CACHE_HOME") or home() / ".cache"
    kept = Path(cache) / "firstlight" / f"vega-{version('vl-convert-python')}.js"
    with suppress(OSError):
        return kept.read_text(encoding="utf-8")
    script = str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}")  # several reports may be made at once
        part.write_text(script, encoding="utf-8")
        part.replace(kept)
    return script


def _asset(name: str) -> str:
    return files("firstlight.report").joinpath(name).read_text(encoding="utf-8")
