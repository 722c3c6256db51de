"""The verbs that measure: ``run``, and ``list`` for what there is to run."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from firstlight.cli import options as opt
from firstlight.cli.output import RUNS, Json, examples, print_json, say, stderr, stdout
from firstlight.cli.report import analyse, show
from firstlight.errors import FirstlightError

if TYPE_CHECKING:
    from firstlight.analysis import Analysis
    from firstlight.lab.experiments import Experiment
    from firstlight.lab.runner import Batch, Plan

_FAST, _RIGOROUS = 3, 30
_FAST_INSTANCES = (1, 10, 20)


def list_experiments(*, as_json: Json = False) -> None:
    """List the experiments."""
    from firstlight.lab.experiments import catalogue

    if as_json:
        print_json(
            [
                {"name": experiment.name, "question": experiment.question,
                 "figure": experiment.figure, "axes": experiment.axes,
                 "instances": experiment.instances}
                for experiment in catalogue.ALL.values()
            ]
        )  # fmt: skip
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("experiment", "question, and what varies", "paper"):
        table.add_column(column, no_wrap=column == "experiment")
    for experiment in catalogue.ALL.values():
        question = Text(experiment.question).append(f"\n{', '.join(experiment.axes)}", "dim")
        table.add_row(experiment.name, question, experiment.figure)
    stdout().print(table)


def run(
    experiment: opt.ExperimentName,
    *,
    instances: opt.Instances = "",
    repetitions: opt.Repetitions = None,
    fast: opt.Fast = False,
    rigorous: opt.Rigorous = False,
    runtime: opt.Runtime = "",
    cni: opt.Cni = None,
    hypervisor: opt.Hypervisor = None,
    accel: opt.Accel = "auto",
    guest: opt.Guest = None,
    icount: opt.Icount = False,
    kubeconfig: opt.Kubeconfig = "",
    context: opt.Context = "",
    cri: opt.Cri = "",
    image: opt.Image = "",
    end_point: opt.EndPointName = "",
    out: opt.Out = None,
    cold: opt.Cold = False,
    trace: opt.Trace = True,
    deadline: opt.Deadline = 60.0,
    seed: opt.Seed = 1,
    as_json: Json = False,
) -> None:
    """Measure an experiment and print its figures.

    Ctrl-C keeps what was measured and cleans up. Exit status 1 if no start became ready.
    """
    from firstlight.lab import runner
    from firstlight.lab.experiments import Options, catalogue

    chosen = catalogue.find(experiment)
    if fast and rigorous:
        raise FirstlightError("--fast and --rigorous exclude each other", "give one of them")
    options = Options(
        opt.instances(instances) or _instances(chosen, fast=fast),
        opt.runtimes(runtime),
        tuple(cni or ()),
        opt.hypervisors(hypervisor or ()),
        opt.accelerator(accel),
        tuple(guest or ()),
        ("wall", "counted") if icount else ("wall",),
        opt.end_point(end_point),
        kubeconfig=kubeconfig and str(Path(kubeconfig).absolute()),
        context=context,
        image=image,
        cri=cri,
        deadline=deadline,
    )
    opt.check_use(chosen, options)
    default = _FAST if fast else _RIGOROUS if rigorous else chosen.repetitions
    plan = runner.Plan(
        chosen, options, repetitions or default, seed, traced=trace, cold=cold, deadline=deadline
    )
    directory = out or RUNS / f"{chosen.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    measured = _measure(plan, directory)
    show([measured], as_json=as_json)
    say(f"run: {directory}\nfull report: firstlight report {directory} --html report.html")
    raise typer.Exit(not any(sample.latency is not None for sample in measured.run.samples))


def add_to(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("list", epilog=examples("list", "list --json"))(list_experiments)
    app.command(
        epilog=examples(
            "run container-creation", "run network-setup --instances 1,10,50 --repetitions 20",
            "run container-creation --runtime runc,/usr/local/bin/youki --fast",
            "run rootfs --cold", "run cni-breakdown --cni /etc/cni/net.d/10-mine.conflist",
            "run agile --end-point first-packet --instances 1,10",
            "run kubernetes-pods --kubeconfig ~/.kube/config --context mine",
            "run unikernel-boot --guest probe --hypervisor /opt/qemu/bin/qemu-system-x86_64",
        )
    )(run)  # fmt: skip


def _instances(experiment: "Experiment", *, fast: bool) -> tuple[int, ...]:
    few = tuple(count for count in _FAST_INSTANCES if count in experiment.instances)
    return few if fast and few else experiment.instances


def _measure(plan: "Plan", directory: Path) -> "Analysis":
    from firstlight.lab import runner

    opt.check_space(directory)
    try:
        with _Progress(plan.experiment.name) as progress:
            runner.run(plan, directory, progress.show)
    except KeyboardInterrupt:
        if (directory / "header.json").exists():
            say(f"interrupted: what was measured is in {directory}")
        raise
    return analyse(directory)


class _Progress:
    """A bar on stderr with the current batch and the time left."""

    def __init__(self, title: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"),
            TimeRemainingColumn(), TextColumn("{task.fields[batch]}"), console=stderr(),
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
        settings = ", ".join(f"{axis} {value}" for axis, value in batch.point.items())
        traced = ", traced" if batch.traced else ""
        self._bar.update(self._task, completed=done, total=total, batch=settings + traced)
