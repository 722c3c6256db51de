"""The output of the verbs in a terminal, as rich renderables for 80 to 120 columns.

Nothing here prints. Cells wrap only between an estimate and its interval.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from firstlight import units as wording
from firstlight.analysis import Analysis, figures
from firstlight.analysis.compare import Comparison, Difference, Side
from firstlight.analysis.figures import Part, PointFigures
from firstlight.analysis.stats import samples_needed
from firstlight.claims.advice import Advice, advise
from firstlight.claims.advice.storms import STORMS
from firstlight.claims.engine import Verdict
from firstlight.model import Availability, Check, Ending, Interval, Sample
from firstlight.report import answer, records, views
from firstlight.report.plots import palette
from firstlight.report.views import boots

T = TypeVar("T")

MOST_FAILURES = 5
MOST_CAUSES = 6
MOST_POINTS = 8
MOST_BESIDE = 4
MOST_PARTS = 3
INTERVAL = 11
"""The width of an interval's bounds, which may wrap below the estimate."""
_STYLES = {"holds": "green", "does not hold": "red"}


def summary(runs: Sequence[Analysis]) -> RenderableType:
    """A summary of runs, for one or two screens."""
    return Group(*(_run(run) for run in runs))


def _run(analysis: Analysis) -> RenderableType:
    shown: list[RenderableType] = [
        Text(f"\n{analysis.header.experiment}: {analysis.header.question}", style="bold"),
        Text(answer.answer(analysis)),
        *(Text(note, style="dim") for note in analysis.header.notes),
        *(Text(f"! {warning}", style="yellow") for warning in answer.warnings(analysis)),
        Text(),
        _latencies(analysis),
        *_tails_needed(analysis),
    ]
    for own in views.tables(analysis):
        shown += [Text(), _own(own), *([Text(own.advice)] if own.advice else [])]
    shown += _boots(analysis)
    explained = [point for point in _ends(analysis) if any(part.seen for part in point.parts)]
    if len(explained) > 1:
        for some in _beside(explained):
            shown += [Text(), _shares(some)]
    for point in analysis.lead:
        if point.parts:
            shown += [Text(), _parts(point)]
            shown += [Text(), _causes(point)] if point.causes() else []
            shown += [Text(answer.queue(queued)) for queued in point.queues]
    shown += _advice(analysis)
    if failed := records.failures(analysis.run.samples):
        shown += [Text(), _failures(failed)]
    if analysis.header.skipped:
        shown += [Text("\nnot run here", style="bold")]
        shown += [Text(f"{points}: {why}") for why, points in wording.skipped(analysis.header)]
    return Group(*shown)


def _advice(analysis: Analysis) -> Iterator[RenderableType]:
    """The storms that the starts meet, each once, where its remedy gains most."""
    largest: dict[str, Advice] = {}
    for each in advise(analysis, STORMS):
        if each.storm not in largest or each.gain.value > largest[each.storm].gain.value:
            largest[each.storm] = each
    if largest:
        yield Text("\nknown storms", style="bold")
    for each in sorted(largest.values(), key=lambda each: -each.share):
        phase, cause, _ = each.evidence[0]
        gain = f"{wording.duration(each.gain.value)} of a start ({wording.percent(each.share)})"
        yield Text.assemble((each.storm, "bold"), f": {each.fact} {each.name}, {phase}: {cause}.")
        yield Text(f"  {each.remedy} Predicted gain: {gain}.", style="green")


def _tails_needed(analysis: Analysis) -> Iterable[Text]:
    """Explain the "9 of 72" in place of a tail."""
    latencies = (point.latency for point in analysis.points if point.untraced_samples)
    if any(latency and not (latency.p95 and latency.p99) for latency in latencies):
        needed = f"P95 needs {samples_needed(0.95)} starts and P99 {samples_needed(0.99)}"
        yield Text(f"{needed}: more --repetitions or --instances", style="dim")


def _ends(analysis: Analysis) -> list[PointFigures]:
    points = [point for series in analysis.series for point in analysis.ends(series)]
    if len(points) > MOST_POINTS:
        points = [point for series in analysis.series for point in analysis.ends(series)[-1:]]
    return points[:MOST_POINTS]


def _table(title: str = "") -> Table:
    return Table(
        title=Text(title) if title else None,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="dim",
    )


def _latencies(analysis: Analysis) -> Table:
    headline = analysis.header.presentation.headline
    which = "traced or not" if headline == "all" else headline
    table = _table(f"latency to {analysis.end_point}, {which}, with 95 % intervals")
    table.padding = (0, 1, 0, 0)
    table.add_column("", overflow="fold")
    table.add_column("n", justify="right", no_wrap=True)
    for name in ("median", "P95", "P99"):
        table.add_column(name, justify="right", min_width=INTERVAL)
    for name, least in (("all ready", 7), ("failed", 6), ("traced", 6)):
        table.add_column(name, justify="right", min_width=least)
    for point in analysis.points:
        latency = point.latency
        broken = point.ended[Ending.FAILED] + point.ended[Ending.HUNG]
        _row(
            table,
            point.series,
            str(point.instances),
            _interval(latency.median) if latency else Text("–", style="dim"),
            _tail(point, 0.95),
            _tail(point, 0.99),
            _kept(wording.duration(point.all_ready.value)) if point.all_ready else "–",
            Text(str(broken), style="red" if broken else "dim"),
            _kept(f"×{point.overhead.value:.2f}") if point.overhead else "–",
        )
    return table


def _boots(analysis: Analysis) -> Iterable[RenderableType]:
    """How the VMs booted, a column per point."""
    booted = [(point, point.boot) for point in analysis.points if point.boot]
    for some in _beside(booted):
        table = _table("boot by phase, untraced, median")
        table.add_column("", no_wrap=True)
        for point, _ in some:
            table.add_column(Text(point.name), justify="right")
        spent = [dict(boot.phases) for _, boot in some]
        for name in figures.in_order({name for each in spent for name in each}):
            took = [each.get(name) for each in spent]
            _row(table, _phase(name),
                 *(_kept(wording.duration(m.value)) if m else "–" for m in took))  # fmt: skip
        _row(table, "placed to ±", *(_bound(boot) for _, boot in some), style="dim")
        yield Text()
        yield table
    for clock in dict.fromkeys(boot.clock for _, boot in booted):
        yield Text(f"a guest's phases are by {clock}", style="dim")
    if advice := boots.advice(analysis):
        yield Text(f"\n{advice}")


def _beside(points: Sequence[T]) -> Iterator[Sequence[T]]:
    """Groups of columns that fit a terminal of 80 columns."""
    return (points[at : at + MOST_BESIDE] for at in range(0, len(points), MOST_BESIDE))


def _bound(boot: figures.Boot) -> str:
    return "–" if boot.uncertainty is None else _kept(wording.duration(boot.uncertainty)).plain


def _own(own: records.Table) -> Table:
    """A table of a view, in its full or its narrow form."""
    table = _table(own.title)
    headings, rows = own.brief or (own.headings, own.rows)
    if own.brief:
        table.padding = (0, 1, 0, 0)
    for place, heading in enumerate(headings):
        table.add_column(
            heading,
            justify="right" if place else "left",
            overflow="ellipsis" if place else "fold",
            no_wrap=bool(place and own.brief),
        )
    for name, *cells in rows:
        _row(table, name, *(cells if own.brief else map(_worded, cells)))
    return table


def _worded(cell: str) -> Text:
    """A figure that wraps only before its interval."""
    value, _, bounds = cell.partition(" (")
    return Text.assemble(_kept(value), " (", _kept(bounds)) if bounds else _kept(value)


def _tail(point: PointFigures, quantile: float) -> Text:
    if point.latency is None:
        return Text("–", style="dim")
    tail = point.latency.p95 if quantile == 0.95 else point.latency.p99
    if tail:
        return _interval(tail)
    missing = _kept(f"{point.latency.count} of {samples_needed(quantile)}")
    missing.stylize("dim")
    return missing


def _shares(points: Sequence[PointFigures]) -> Table:
    table = _table(
        "share of a start by phase"
        + (", traced" if any(point.causes() for point in points) else "")
    )
    table.add_column("", no_wrap=True)
    for point in points:
        table.add_column(Text(point.name), justify="right")
    names = figures.in_order({p.phase for point in points for p in point.parts if p.seen})
    for name in names:
        _row(table, _phase(name), *(_share(point, name) for point in points))
    return table


def _share(point: PointFigures, phase: str) -> Text:
    part = next((part for part in point.parts if part.phase == phase and part.seen), None)
    return _kept(wording.percent(part.share.value)) if part else Text("–", style="dim")


def _parts(point: PointFigures) -> Table:
    what = "traced starts" if point.causes() else "starts, as their components report them"
    table = _table(f"{point.name}: phases of {point.traced} {what}")
    table.padding = (0, 1, 0, 0)
    table.add_column("phase", no_wrap=True)
    table.add_column("share", no_wrap=True)
    for name, least in (("wall", 7), ("summed", 7), ("kernel", 6)):
        table.add_column(name, justify="right", min_width=least)
    table.add_column("mostly")
    for part in point.parts:
        if part.seen:
            _row(
                table,
                _phase(part.phase),
                wording.percent_interval(part.share),
                _kept(wording.duration(part.wall.value)),
                _kept(wording.duration(part.summed.value)),
                _kept(wording.percent(part.kernel)),
                _mostly(part),
            )
    return table


def _mostly(part: Part) -> Text:
    """The largest cause, truncated; the table below has it in full."""
    words = " ".join((wording.percent(part.causes[0][1]), part.causes[0][0])) if part.causes else ""
    return Text(words, no_wrap=True, overflow="ellipsis")


def _causes(point: PointFigures) -> Table:
    table = _table(f"{point.name}: what the time was spent on")
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("cause", overflow="fold")
    table.add_column("mostly in", no_wrap=True)
    for cause, share in point.causes()[:MOST_CAUSES]:
        where = max(
            point.parts, key=lambda part: part.share.value * dict(part.causes).get(cause, 0.0)
        )
        colour = palette.CAUSES[palette.cause_class(cause)]
        _row(
            table, wording.percent(share), Text.assemble(("█ ", colour), cause), _phase(where.phase)
        )
    return table


def _failures(failed: Sequence[tuple[Sample, int]]) -> Table:
    table = _table("starts that failed or hung")
    for name in ("start", "", "error and last output"):
        table.add_column(name, overflow="fold")
    for sample, count in failed[:MOST_FAILURES]:
        setting = ", ".join(f"{axis} {value}" for axis, value in sample.point.items() if value)
        alike = f", and {count - 1} alike" if count > 1 else ""
        words = "\n".join(filter(None, (sample.error, sample.output.strip())))
        _row(table, f"{setting}, batch {sample.batch}{alike}", str(sample.ending), Text(words))
    if more := sum(count for _, count in failed[MOST_FAILURES:]):
        _row(table, f"and {more} more", "", "see samples.jsonl")
    return table


def claims(verdicts: Sequence[Verdict]) -> RenderableType:
    """The measured claims with figures; below them the others with reasons."""
    table = _table()
    for name in ("", "claim", "verdict", "here", "paper"):
        table.add_column(name, overflow="fold")
    table.columns[2].no_wrap = True
    missing = _table("not measured by these runs")
    missing.show_header = False
    for _ in range(2):
        missing.add_column("", overflow="fold")
    for verdict in verdicts:
        if verdict.verdict == "not measured":
            _row(missing, verdict.id, f"{verdict.claim}: {verdict.figure}", style="dim")
        else:
            judged = Text(verdict.verdict, style=_STYLES[verdict.verdict])
            _row(table, verdict.id, verdict.claim, judged, verdict.figure, verdict.paper)
    return Group(*(part for part in (table, missing) if part.row_count))


def comparison(result: Comparison) -> RenderableType:
    """The points of both runs, and whether B is slower."""
    table = _table("B over A: medians of untraced starts, with 95 % intervals")
    table.add_column("", overflow="fold")
    for name in ("A", "B", "B ÷ A", "p"):
        table.add_column(name, justify="right")
    table.add_column("", no_wrap=True)
    for difference in result.differences:
        setting = ", ".join(f"{axis} {value}" for axis, value in difference.point.items())
        _row(
            table,
            setting,
            _side(difference.a),
            _side(difference.b),
            wording.ratio_interval(difference.ratio) if difference.ratio else "–",
            f"{difference.p:.3f}" if difference.p is not None else "–",
            _news(difference),
        )
    warnings = (Text(f"! {warning}", style="yellow") for warning in result.warnings)
    return Group(table, *warnings)


def _side(side: Side) -> Text:
    failed = f" {side.failed} of {side.starts} failed" if side.failed else ""
    return Text.assemble(_interval(side.median) if side.median else "–", (failed, "red"))


def _news(difference: Difference) -> Text:
    regression, improvement = difference.regression, difference.improvement
    style = "bold red" if regression else "green" if improvement else "dim"
    return Text(difference.word, style=style)


def doctor(checks: Iterable[Check], experiments: Mapping[str, Availability]) -> RenderableType:
    """The checks, and which experiments can run; each remedy is shown once."""
    table = _table("this machine")
    for _ in range(3):
        table.add_column("", overflow="fold")
    for check in checks:
        mark = {True: ("✓", "green"), False: ("✗", "red"), None: ("!", "yellow")}[check.ok]
        hint = (f"\n{check.hint}", "yellow") if check.hint and not check.ok else ""
        _row(table, Text(*mark), check.name, Text.assemble(check.fact, hint))
    runnable = _table("\nexperiments")
    for _ in range(3):
        runnable.add_column("", overflow="fold")
    shown: set[str | None] = {None}
    for name, available in experiments.items():
        lacks = available.missing
        mark = ("!", "yellow") if lacks else ("✓", "green")
        words = Text("" if lacks else "can run in full")
        for lack in lacks:
            words.append("\n" if words else "").append(f"{_parted(lack.parts)}: {lack.fact}")
            if lack.hint not in shown:
                words.append(f"\n{lack.hint}", "yellow")
            shown.add(lack.hint)
        _row(runnable, Text(*mark), name, words)
    return Group(Padding(table, 0), runnable)


def _parted(parts: Sequence[str]) -> str:
    return ", ".join(parts) if len(parts) <= MOST_PARTS else f"{len(parts)} starts ({parts[0]}, …)"


def _row(table: Table, *cells: str | Text, style: str = "") -> None:
    """A row whose text is never interpreted as markup."""
    plain = (cell if isinstance(cell, Text) else Text(cell) for cell in cells)
    table.add_row(*plain, style=style)


def _phase(name: str) -> Text:
    return Text.assemble(("█ ", palette.part(name)), name)


def _interval(interval: Interval) -> Text:
    return _worded(wording.duration_interval(interval))


def _kept(words: str) -> Text:
    return Text(words.replace(" ", "\N{NO-BREAK SPACE}"))
