"""The verbs ``run`` and ``list``: experiments."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from firstlight.cli import options as opt
from firstlight.cli.output import RUNS, Json, examples, print_json, say, stdout
from firstlight.cli.report import analyse, show
from firstlight.errors import FirstlightError

if TYPE_CHECKING:
    from firstlight.analysis import Analysis
    from firstlight.lab.experiments import Experiment
    from firstlight.lab.runner import Plan

_FAST, _RIGOROUS = 4, 30
_FAST_INSTANCES = (1, 10, 20)
_FAST_SECONDS = 75.0


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
    instances: opt.Instances = None,
    repetitions: opt.Repetitions = None,
    fast: opt.Fast = False,
    rigorous: opt.Rigorous = False,
    budget: opt.Budget = "",
    runtime: opt.Runtime = None,
    cni: opt.Cni = None,
    hypervisor: opt.Hypervisor = None,
    accel: opt.Accel = "auto",
    guest: opt.Guest = None,
    icount: opt.Icount = False,
    kubeconfig: opt.Kubeconfig = "",
    context: opt.Context = "",
    nodes: opt.Nodes = "",
    in_turn: opt.InTurn = False,
    cri: opt.Cri = "",
    image: opt.Image = "",
    end_point: opt.EndPointName = "",
    out: opt.Out = None,
    resume: opt.Resume = False,
    cold: opt.Cold = False,
    trace: opt.Trace = True,
    deadline: opt.Deadline = None,
    seed: opt.Seed = 1,
    as_json: Json = False,
) -> None:
    """Measure an experiment and print its figures.

    Ctrl-C keeps what was measured and cleans up. Exit status 1 if no start became ready: such a run
    ends after one repetition of each point.

    With --nodes each node measures in a Job (make lab-image builds its --image), and the report has
    the node as an axis. A node that fails is a failed start. Ctrl-C removes the Jobs.
    """
    from firstlight.lab import runner
    from firstlight.lab.experiments import Options, catalogue

    chosen = catalogue.find(experiment)
    _check_pairs(
        ("--fast", fast, "excludes", "--rigorous", rigorous),
        ("--nodes", bool(nodes), "excludes", "--resume", resume),
        ("--nodes", bool(nodes), "excludes", "--cri", bool(cri)),
        ("--in-turn", in_turn, "needs", "--nodes", bool(nodes)),
        ("--resume", resume, "needs", "--out", out is not None),
    )
    if context and not (kubeconfig or nodes):
        raise FirstlightError("--context needs a kubeconfig", "give its file with --kubeconfig")
    options = Options(
        opt.instances(instances) or _instances(chosen, fast=fast),
        opt.runtimes(runtime or (), installed=bool(nodes) or not (kubeconfig or cri)),
        tuple(cni or ()),
        opt.hypervisors(hypervisor or ()),
        opt.accelerator(accel),
        tuple(guest or ()),
        ("wall", "counted") if icount else ("wall",),
        opt.end_point(end_point),
        kubeconfig="" if nodes else opt.kubeconfig(kubeconfig),
        context="" if nodes else context,
        image="" if nodes else image,
        cri=cri.removeprefix("unix://"),  # as crictl's configuration names it
        deadline=deadline or runner.DEADLINE_SECONDS,
    )
    opt.check_use(chosen, options)
    seconds = opt.budget(budget) or (_FAST_SECONDS if fast else None)
    default = _FAST if fast else _RIGOROUS if rigorous else None if seconds else chosen.repetitions
    plan = runner.Plan(
        chosen, options, repetitions or default, seed, traced=trace, cold=cold,
        deadline=options.deadline, budget=seconds,
    )  # fmt: skip
    directory = out or RUNS / f"{chosen.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    if nodes:
        from firstlight.lab.nodes.measure import Where, measure

        where = Where(nodes, kubeconfig, context, image, in_turn)
        opt.check_space(directory)
        try:
            measure(plan, directory, where, say)
        except KeyboardInterrupt:
            if (directory / "header.json").exists():
                say(f"interrupted: what was measured is in {directory}")
            raise
        measured = analyse(directory)
    else:
        measured = _measure(plan, directory, resume=resume)
    show([measured], as_json=as_json)
    say(f"run: {directory}\nfull report: firstlight report {directory} --html report.html")
    if any(sample.latency is not None for sample in measured.run.samples):
        return
    first = measured.run.samples[0]
    last = f": {lines[-1]}" if (lines := first.output.strip().splitlines()) else ""
    hint = (
        "firstlight doctor tries to start a container by each runtime"
        if "runtimes" in chosen.options and not (kubeconfig or cri)
        else f"the error of each start is in {directory / 'samples.jsonl'}"
    )
    say(f"firstlight: no start became ready; the first {first.error}{last}\nHint: {hint}")
    raise typer.Exit(1)


def add_to(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("list", epilog=examples("list", "list --json"))(list_experiments)
    app.command(
        epilog=examples(
            "run container-creation", "run network-setup --instances 1,10,50 --repetitions 20",
            "run container-creation --runtime runc,/usr/local/bin/youki --fast",
            "run container-creation --budget 60s",
            "run container-creation --rigorous --out mine --resume",
            "run rootfs --cold", "run cni-breakdown --cni /etc/cni/net.d/10-mine.conflist",
            "run agile --end-point first-packet --instances 1,10",
            "run kubernetes-pods --kubeconfig ~/.kube/config --context mine",
            "run network-setup --kubeconfig ~/.kube/config --nodes pool=new --in-turn",
            "run unikernel-boot --guest probe --hypervisor /opt/qemu/bin/qemu-system-x86_64",
        )
    )(run)  # fmt: skip


def _check_pairs(*pairs: tuple[str, bool, str, str, bool]) -> None:
    """Raise FirstlightError for the first option that is given with another that it excludes, or
    without one that it needs.
    """
    for option, is_given, how, other, other_is_given in pairs:
        if is_given and other_is_given == (how == "excludes"):
            hint = "leave one of them out" if other_is_given else f"give {other} too"
            raise FirstlightError(f"{option} {how} {other}", hint)


def _instances(experiment: "Experiment", *, fast: bool) -> tuple[int, ...]:
    few = experiment.fast_instances or tuple(
        count for count in _FAST_INSTANCES if count in experiment.instances
    )
    return few if fast and few else experiment.instances


def _measure(plan: "Plan", directory: Path, *, resume: bool) -> "Analysis":
    from firstlight.cli.progress import Progress
    from firstlight.lab import runner

    opt.check_space(directory)
    try:
        all_of_it = plan.repetitions is None
        with Progress(plan.experiment.name, plan.budget, all_of_it=all_of_it) as progress:
            runner.run(plan, directory, progress, resume=resume)
    except KeyboardInterrupt:
        if (directory / "header.json").exists():
            say(
                f"interrupted: what was measured is in {directory}\n"
                f"continue with the same command and --out {directory} --resume"
            )
        raise
    return analyse(directory)
