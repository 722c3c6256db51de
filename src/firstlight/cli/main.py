"""The verbs; the only module that prints or exits. Figures go to stdout, talk to stderr.

What a verb needs is imported inside it, so that ``--help`` answers at once.
"""

import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.cli import agile as cli_agile
from firstlight.cli import guest as cli_guest
from firstlight.cli import options as cli_options
from firstlight.cli.output import Json, completion, examples, print_json, say
from firstlight.errors import FirstlightError, UnknownName

if TYPE_CHECKING:
    from rich.console import Console

    from firstlight.lab.runner import Batch
    from firstlight.store import Run

RUNS = Path("runs")
EXPORTS = ("perfetto", "csv", "parquet")
_FAST, _RIGOROUS = 3, 30
_FAST_INSTANCES = (1, 10, 20)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Measure and explain how containers and their networks start on this machine.",
    epilog="\b\nExamples:\n  firstlight doctor\n  firstlight run container-creation --fast\n"
    "  firstlight report runs/* --html report.html\n  firstlight trace -- runc run mine",
)

Runs = Annotated[list[Path], typer.Argument(metavar="RUN", help="Directories of runs.")]


@app.command(epilog=examples("doctor", "doctor --json"))
def doctor(*, as_json: Json = False) -> None:
    """Tell what can run here, what to install, and what makes noise.

    Exit status 1 if an experiment cannot run whole.
    """
    from firstlight.lab import doctor as checks
    from firstlight.lab.experiments import catalogue

    found = checks.run()
    answers = catalogue.probe()
    if as_json:
        print_json({"checks": found, "experiments": answers})
    else:
        from firstlight.report import terminal

        _stdout().print(terminal.doctor(found, answers))
    raise typer.Exit(any(reasons for reasons in answers.values()))


@app.command("list", epilog=examples("list"))
def list_experiments(*, as_json: Json = False) -> None:
    """List the experiments."""
    from firstlight.lab.experiments import catalogue

    if as_json:
        print_json(
            [
                {"name": one.name, "question": one.question, "figure": one.figure,
                 "axes": one.axes, "instances": one.instances}
                for one in catalogue.ALL.values()
            ]
        )  # fmt: skip
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("experiment", "question, and what varies", "paper"):
        table.add_column(column, no_wrap=column == "experiment")
    for one in catalogue.ALL.values():
        question = Text(one.question).append(f"\n{', '.join(one.axes)}", "dim")
        table.add_row(one.name, question, one.figure)
    _stdout().print(table)


@app.command(
    epilog=examples(
        "run container-creation", "run network-setup --instances 1,10,50 --repetitions 20",
        "run container-creation --runtime runc,/usr/local/bin/youki --fast", "run rootfs --cold",
        "run cni-breakdown --conf /etc/cni/net.d/10-mine.conflist",
        "run agile --until first-packet --instances 1,10",
        "run unikernel-boot --guest probe --binary /opt/qemu/bin/qemu-system-x86_64",
    )
)  # fmt: skip
def run(
    experiment: Annotated[
        str,
        typer.Argument(
            help="Its name; firstlight list shows them.",
            autocompletion=completion(cli_options.experiments),
        ),
    ],
    *,
    instances: Annotated[
        str, typer.Option(metavar="N,N", help="How many starts at once, such as 1,10,50.")
    ] = "",
    repetitions: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Of every point, and thrice that of single starts.  [default: the experiment's]",
        ),
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Few repetitions and instances.")] = False,
    rigorous: Annotated[bool, typer.Option("--rigorous", help="Many repetitions.")] = False,
    runtime: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="OCI runtimes by name or path.")
    ] = "",
    conf: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="A CNI configuration of your own, or a name of ours."),
    ] = None,
    binary: Annotated[
        list[str] | None,
        typer.Option(metavar="PROGRAM", help="A hypervisor by name or path, instead of ours."),
    ] = None,
    accel: Annotated[
        str,
        typer.Option(
            metavar="auto|kvm|tcg",
            help="What QEMU runs guests with.",
            autocompletion=completion(lambda: ("auto", "kvm", "tcg")),
        ),
    ] = "auto",
    guest: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="What to boot: probe, linux, or one you added."),
    ] = None,
    icount: Annotated[
        bool,
        typer.Option("--icount", help="Boot by counted instructions too, which repeats."),
    ] = False,
    until: Annotated[
        str,
        typer.Option(
            metavar="first-packet",
            help="End each start at its gateway's answer.",
            autocompletion=completion(lambda: ("first-packet",)),
        ),
    ] = "",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the run goes.  [default: runs/…]")
    ] = None,
    cold: Annotated[
        bool, typer.Option("--cold", help="Drop the page cache before each batch.")
    ] = False,
    trace: Annotated[bool, typer.Option(help="Also trace, to break the time down.")] = True,
    deadline: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="After which a start has hung.")
    ] = 60.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the order of the schedule.")] = 1,
    as_json: Json = False,
) -> None:
    """Measure an experiment and print its figures.

    Ctrl-C keeps what was measured and leaves nothing else behind. Exit status 1 if no start was
    ready.
    """
    from firstlight.lab import runner
    from firstlight.lab.experiments import Options, catalogue

    chosen = catalogue.find(experiment)
    if fast and rigorous:
        raise FirstlightError("--fast and --rigorous exclude one another", "leave one out")
    default = tuple(n for n in _FAST_INSTANCES if n in chosen.instances) if fast else ()
    options = Options(
        cli_options.numbers(instances) or default or chosen.instances,
        cli_options.runtimes(runtime),
        tuple(conf or ()),
        cli_options.binaries(binary or ()),
        cli_options.accelerator(accel),
        tuple(guest or ()),
        ("wall", "counted") if icount else ("wall",),
        cli_options.end_point(until),
    )
    cli_options.check_use(chosen, options)
    plan = runner.Plan(
        chosen,
        options,
        repetitions or (_FAST if fast else _RIGOROUS if rigorous else chosen.repetitions),
        seed,
        traced=trace,
        cold=cold,
        deadline=deadline,
    )
    directory = out or RUNS / f"{chosen.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    cli_options.check_space(directory)
    try:
        with _Progress(chosen.name) as progress:
            runner.run(plan, directory, progress.show)
    except KeyboardInterrupt:
        if (directory / "header.json").exists():
            say(f"interrupted: what was measured is in {directory}")
        raise
    measured = _read(directory)
    _show([measured], as_json=as_json)
    say(f"run: {directory}\nfull report: firstlight report {directory} --html report.html")
    raise typer.Exit(not any(sample.latency is not None for sample in measured.samples))


@app.command(
    context_settings={"allow_interspersed_args": False},
    epilog=examples(
        "trace -- runc run --bundle /tmp/b mine", "trace -- ip netns add test",
        "trace --until nginx -- podman run nginx", "trace -- python3 -c 'import json'",
    )
)  # fmt: skip
def trace(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND")],
    *,
    until: Annotated[
        str | None,
        typer.Option(metavar="PROGRAM", help="Stop the clock when this program is executed."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the run, for report.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show where the start of any command goes: phases, causes, waits.

    The command runs here, with your terminal, to its end. Exit status is the command's own.
    """
    from firstlight.analysis import breakdown
    from firstlight.lab.tracing import traced
    from firstlight.report import waterfall

    with traced(command, until, out) as result:
        sample = result.run.samples[0]
        timeline = breakdown.timeline(result.run, sample)
        if as_json:
            print_json(
                {
                    "latency_ns": sample.latency,
                    "end_point": result.run.header.end_point,
                    "lost_events": sample.lost,
                    "exit_status": result.exit_status,
                    "breakdown": breakdown.breakdown(result.run).drop("sample").to_dicts(),
                    "timeline": timeline.to_dicts(),
                }
            )
        else:
            console = _stderr()  # stdout is the command's
            _, spans = next(result.run.span_batches())
            console.print(waterfall.waterfall(timeline, spans, console.width))
            if sample.lost:
                say(f"warning: {sample.lost} events were lost: phases may be wrong")
        status = result.exit_status
    raise typer.Exit(status if status >= 0 else 128 - status)


@app.command(
    epilog=examples(
        "report runs/container-creation-20260101-120000", "report runs/* --html report.html",
        "report runs/* --export perfetto --out traces", "report runs/* --pictures figures",
    )
)  # fmt: skip
def report(
    runs: Runs,
    *,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one self-contained page.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write every picture as PNG and SVG.")
    ] = None,
    export: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(EXPORTS),
            help="Write the data.",
            autocompletion=completion(lambda: EXPORTS),
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where exports go.")] = Path("export"),
    as_json: Json = False,
) -> None:
    """Show runs as tables, one HTML page, pictures, or exported data."""
    read = [_read(path) for path in runs]
    if export is not None:
        _export(read, export, out)
    if pictures is not None:
        from firstlight.analysis import figures
        from firstlight.report import pictures as drawn

        experiments = [one.header.experiment for one in read]
        for one, name in zip(read, _names(read), strict=True):
            several = experiments.count(one.header.experiment) > 1
            with cli_options.writing(pictures, "--pictures"):
                for file in drawn.write(
                    figures.figures(one), pictures / name if several else pictures
                ):
                    say(f"wrote {file}")
    if html is not None:
        from firstlight.report import page

        with cli_options.writing(html, "--html"):
            page.write(read, html)
        say(f"wrote {html}")
    if export is None and pictures is None and html is None:
        _show(read, as_json=as_json)


@app.command(epilog=examples("compare runs/before runs/after", "compare a b --threshold 0.1"))
def compare(
    a: Annotated[Path, typer.Argument(help="The run to compare with.")],
    b: Annotated[Path, typer.Argument(help="The run that may be slower.")],
    *,
    threshold: Annotated[
        float, typer.Option(metavar="SHARE", min=0, help="Smallest change that counts.")
    ] = 0.05,
    across: Annotated[bool, typer.Option("--across", help="Of other machines too.")] = False,
    as_json: Json = False,
) -> None:
    """Compare two runs point by point. Exit status 1 if B is significantly slower."""
    from firstlight.analysis.compare import compare as compared

    result = compared(_read(a), _read(b), threshold=threshold, across=across)
    if as_json:
        print_json(result)
    else:
        from firstlight.report import terminal

        _stdout().print(terminal.comparison(result))
    raise typer.Exit(result.regression)


@app.command(epilog=examples("paper", "paper runs/network-setup-*"))
def paper(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN", help="[default: all of runs/]")
    ] = None,
    *,
    as_json: Json = False,
) -> None:
    """Judge the paper's claims by what was measured here."""
    from firstlight.claims.judge import judge

    paths = runs if runs else sorted(path.parent for path in RUNS.glob("*/header.json"))
    verdicts = judge([_read(path) for path in paths])
    if as_json:
        print_json(verdicts)
    else:
        from firstlight.report import terminal

        _stdout().print(terminal.claims(verdicts))


@app.command(epilog=examples("clean --dry-run", "clean"))
def clean(
    *, dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell.")] = False
) -> None:
    """Remove what a killed run left: processes, cgroups, state."""
    from firstlight.lab import clean as cleaning

    if dry_run:
        for leftover in cleaning.leftovers():
            say(f"would remove {leftover.kind} {leftover.name}")
        return
    cleaned = cleaning.clean()
    for leftover in cleaned.removed:
        say(f"removed {leftover.kind} {leftover.name}")
    for leftover, reason in cleaned.failed:
        say(f"cannot remove {leftover.kind} {leftover.name}: {reason}")
    if not cleaned.removed and not cleaned.failed:
        say("nothing was left")
    raise typer.Exit(1 if cleaned.failed else 0)


cli_agile.add(app)
cli_guest.add_to(app)


def main() -> None:
    """Run a verb; errors become a message, a hint and their exit status."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app(standalone_mode=True)
    except FirstlightError as error:
        say(f"firstlight: {error.message}")
        if error.hint:
            say(f"Hint: {error.hint}")
        sys.exit(error.exit_status)
    except BrokenPipeError:
        sys.stdout = None
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _terminate(number: int, _frame: object) -> None:
    del number
    raise KeyboardInterrupt


class _Progress:
    """A bar on stderr with the batch under way and the time left."""

    def __init__(self, title: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"),
            TimeRemainingColumn(), TextColumn("{task.fields[batch]}"), console=_stderr(),
            transient=True, disable=not sys.stderr.isatty(),
        )  # fmt: skip
        self._task = self._bar.add_task(title, total=None, batch="")

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, batch: "Batch", done: int, total: int) -> None:
        """Show the batch that starts now."""
        words = ", ".join(f"{axis} {value}" for axis, value in batch.point.items())
        traced = ", traced" if batch.traced else ""
        self._bar.update(self._task, completed=done, total=total, batch=words + traced)


def _show(runs: "list[Run]", *, as_json: bool) -> None:
    from firstlight.report import terminal

    if as_json:
        print_json(terminal.as_json(runs))
    else:
        _stdout().print(terminal.summary(runs))


def _export(runs: "list[Run]", kind: str, out: Path) -> None:
    from firstlight.report import export

    if kind not in EXPORTS:
        raise UnknownName("export", kind, EXPORTS)
    with cli_options.writing(out, "--out"):
        out.mkdir(parents=True, exist_ok=True)
        for one, name in zip(runs, _names(runs), strict=True):
            if kind == "perfetto":
                export.perfetto(one, out / f"{name}.json")
            else:
                getattr(export, kind)(one, out / name)
    say(f"wrote {out}")


def _names(runs: "list[Run]") -> list[str]:
    """What tells the files of runs apart: their directories' names, if these do."""
    names = [one.path.resolve().name for one in runs]
    return names if len(set(names)) == len(names) else [one.header.run for one in runs]


def _read(path: Path) -> "Run":
    from firstlight import store

    return store.read(path)


def _stdout() -> "Console":
    from rich.console import Console

    return Console(highlight=False)


def _stderr() -> "Console":
    from rich.console import Console

    return Console(stderr=True, highlight=False)
