"""The verb ``trace``: the start of any command."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from firstlight.cli.output import Json, examples, print_json, say, stderr


def trace(
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND...", help="The command and its arguments.")
    ],
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
    """Show where a command's start-up time goes, and why.

    The command runs here, with your terminal and every descriptor that you open for it, to its
    end. With --json its standard output goes to standard error. The exit status is the command's
    own.
    """
    from firstlight.analysis import breakdown
    from firstlight.lab.tracing import traced
    from firstlight.report import waterfall

    with ExitStack() as stack:
        with _stdout_for_json() if as_json else nullcontext():
            result = stack.enter_context(traced(command, until, out))
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
            console = stderr()  # stdout is the command's
            _, spans = next(result.run.span_batches())
            console.print(waterfall.waterfall(timeline, spans, console.width))
            if sample.lost:
                say(
                    f"warning: {sample.lost} events were lost ({result.losses}): "
                    "phases may be wrong"
                )
            if "io_uring_enter" in spans["name"]:
                say("note: the command uses io_uring: what it does there is in no phase of its own")
        status = result.exit_status
    raise typer.Exit(status if status >= 0 else 128 - status)


@contextmanager
def _stdout_for_json() -> Iterator[None]:
    """Point standard output at standard error meanwhile, for children too."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def add_to(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(
        context_settings={"allow_interspersed_args": False},
        epilog=examples(
            "trace -- runc run --bundle /tmp/b mine", "trace -- ip netns add test",
            "trace --until nginx -- podman run nginx", "trace -- python3 -c 'import json'",
        ),
    )(trace)  # fmt: skip
