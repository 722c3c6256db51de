"""The verbs that read stored runs: ``report``, ``compare`` and ``claims``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.cli.output import (
    RUNS,
    Json,
    completion,
    examples,
    finite,
    print_json,
    say,
    stdout,
    writing,
)
from firstlight.errors import BadRun, UnknownName

if TYPE_CHECKING:
    from firstlight.analysis import Analysis
    from firstlight.store import Run

EXPORTS = ("perfetto", "csv", "parquet")

Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Directories of runs.")]
Html = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write one self-contained HTML page.")
]
Pictures = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Write all pictures as PNG and SVG.")
]
Export = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(EXPORTS),
        help="Export the data in this format.",
        autocompletion=completion(lambda: EXPORTS),
    ),
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Directory for exported data.")]


def report(
    runs: Runs,
    *,
    html: Html = None,
    pictures: Pictures = None,
    export: Export = None,
    out: Out = Path("export"),
    as_json: Json = False,
) -> None:
    """Show runs as tables, one HTML page, pictures, or exported data."""
    stored = [analyse(path) for path in runs]
    if export is not None:
        _export(stored, export, out)
    if pictures is not None:
        _draw(stored, pictures)
    if html is not None:
        from firstlight.report import page

        with writing(html, "--html"):
            page.write(stored, html)
        say(f"wrote {html}")
    if export is None and pictures is None and html is None:
        show(stored, as_json=as_json)


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="The baseline run.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The run that may be slower.")],
    *,
    threshold: Annotated[
        float,
        typer.Option(metavar="SHARE", min=0, callback=finite, help="Smallest change that counts."),
    ] = 0.05,
    allow_different_hosts: Annotated[
        bool, typer.Option("--allow-different-hosts", help="Allow runs from different hosts.")
    ] = False,
    counts: Annotated[
        bool, typer.Option("--counts", help="Compare what the starts did, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare two runs point by point. Exit status 1 if B is significantly slower.

    With --counts, also if B does more: system calls, requests, processes, waits for RCU.
    """
    from firstlight.analysis import compare as comparing
    from firstlight.analysis import gate, sides

    runs = read(a), read(b)
    result = comparing.compare(*runs, threshold=threshold, across=allow_different_hosts)
    verdict = gate.compare(*sides.of_runs(*runs)) if counts else None
    if as_json:
        print_json({"times": result, "counts": verdict} if verdict else result)
    else:
        from firstlight.report import counts as changed_counts
        from firstlight.report import terminal

        stdout().print(terminal.comparison(result))
        if verdict:
            stdout().print()
            stdout().print(changed_counts.terminal(verdict))
    raise typer.Exit(result.regression or (verdict is not None and verdict.outcome == "more"))


def claims(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="[default: all of runs/]")
    ] = None,
    *,
    as_json: Json = False,
) -> None:
    """Judge the 2021 paper's claims by stored runs."""
    from firstlight import store
    from firstlight.analysis import Analysis
    from firstlight.claims import catalogue
    from firstlight.claims.engine import judge

    paths = runs if runs else sorted(path.parent for path in RUNS.glob("*/header.json"))
    if not paths:
        say(f"no runs in {RUNS}/: give their directories, or measure: firstlight run")
    verdicts = judge(catalogue.ALL, [Analysis(store.read(path)) for path in paths])
    if as_json:
        print_json(verdicts)
    else:
        from firstlight.report import terminal

        stdout().print(terminal.claims(verdicts))


def add_to(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command(
        epilog=examples(
            "report runs/container-creation-20260101-120000", "report runs/* --html report.html",
            "report runs/* --export perfetto --out traces", "report runs/* --pictures figures",
        )
    )(report)  # fmt: skip
    app.command(
        epilog=examples(
            "compare runs/before runs/after", "compare a b --threshold 0.1", "compare a b --counts"
        )
    )(compare)  # fmt: skip
    app.command(epilog=examples("claims", "claims runs/network-setup-*"))(claims)


def read(path: Path) -> "Run":
    """A stored run with a start. Raises BadRun."""
    from firstlight import store

    run = store.read(path)
    if not run.samples:
        raise BadRun(f"{path} has no starts",
                     "leave it out; run continues it with --out and --resume")  # fmt: skip
    return run


def analyse(path: Path) -> "Analysis":
    """The analysis of a stored run. Raises BadRun."""
    from firstlight.analysis import Analysis

    return Analysis(read(path))


def show(runs: "list[Analysis]", *, as_json: bool) -> None:
    """Print the tables of runs, or their figures as JSON."""
    if as_json:
        from firstlight.report import data

        print_json(data.as_json(runs))
    else:
        from firstlight.report import terminal

        stdout().print(terminal.summary(runs))


def _draw(runs: "list[Analysis]", directory: Path) -> None:
    from firstlight.cli import memory
    from firstlight.report import pictures

    memory.allow_pictures()
    experiments = [run.header.experiment for run in runs]
    for run, name in zip(runs, _names(runs), strict=True):
        several = experiments.count(run.header.experiment) > 1
        with writing(directory, "--pictures"):
            for file in pictures.write(run, directory / name if several else directory):
                say(f"wrote {file}")


def _export(runs: "list[Analysis]", kind: str, out: Path) -> None:
    from firstlight.report import export

    if kind not in EXPORTS:
        raise UnknownName("export", kind, EXPORTS)
    with writing(out, "--out"):
        out.mkdir(parents=True, exist_ok=True)
        for run, name in zip(runs, _names(runs), strict=True):
            if kind == "perfetto":
                export.perfetto(run, out / f"{name}.json")
            else:
                getattr(export, kind)(run, out / name)
    say(f"wrote {out}")


def _names(runs: "list[Analysis]") -> list[str]:
    """Distinct file names for runs: their directories' names where those differ."""
    names = [run.run.path.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [run.header.run for run in runs]
