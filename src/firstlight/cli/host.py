"""The verbs about this machine: ``doctor`` and ``clean``."""

from typing import Annotated

import typer

from firstlight.cli.output import Json, examples, print_json, say, stdout


def doctor(*, as_json: Json = False) -> None:
    """Show what can run here, what to install, and what adds noise.

    Exit status 1 if no container's start can be measured.
    """
    from firstlight.lab import doctor as checks
    from firstlight.lab.experiments import catalogue

    results = checks.run()
    answers = checks.with_tracer(results, catalogue.probe())
    ready = checks.ready(results, answers)
    if as_json:
        print_json({"checks": results, "experiments": answers, "ready": ready})
    else:
        from firstlight.report import terminal

        stdout().print(terminal.doctor(results, answers))
        stdout().print(checks.verdict(results, answers), highlight=False, soft_wrap=True)
    raise typer.Exit(0 if ready else 1)


def clean(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be removed.")
    ] = False,
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
        say("nothing to remove")
    raise typer.Exit(1 if cleaned.failed else 0)


def add_to(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command(epilog=examples("doctor", "doctor --json"))(doctor)
    app.command(epilog=examples("clean --dry-run", "clean"))(clean)
