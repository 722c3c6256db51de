"""The verb ``gate``: whether a change makes starts do more, for continuous integration."""

from pathlib import Path
from typing import Annotated

import typer

from firstlight.cli.output import Json, examples, finite, print_json, say, stdout, writing


def gate(
    baseline: Annotated[
        Path, typer.Argument(metavar="BASELINE", help="The baseline run, or a run of both.")
    ],
    candidate: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="The run to judge.")
    ] = None,
    *,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COUNT", help="A count that may change, such as 'call mount'; * matches all."
        ),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Also fail if a start does less.")] = False,
    time: Annotated[
        bool, typer.Option("--time", help="Also fail if starts are significantly slower.")
    ] = False,
    threshold: Annotated[
        float,
        typer.Option(
            metavar="SHARE", min=0, callback=finite, help="Smallest change of the time that counts."
        ),
    ] = 0.05,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append the result as Markdown.")
    ] = None,
    allow_different_hosts: Annotated[
        bool, typer.Option("--allow-different-hosts", help="Allow runs from different hosts.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Judge whether starts do more than those of a baseline.

    Compares what the traced starts did: system calls, netlink requests, processes, programs,
    waits for RCU and for locks, bytes. Load changes how long a start takes, not what it does. The
    time is shown, and judged with --time.

    With one run of two runtimes (run container-creation --runtime OLD,NEW), the second is judged
    by the first.

    A pattern of --allow that matches no count is a warning, and changes no exit status.

    Exit status: 0 no more, 1 more, 2 cannot be judged.
    """
    from firstlight.analysis import compare as times
    from firstlight.analysis import gate as counting
    from firstlight.analysis import sides
    from firstlight.cli.report import read

    if candidate is None:
        a, b = sides.of_run(read(baseline))
    else:
        a, b = sides.of_runs(read(baseline), read(candidate))
    latency = times.compare(a, b, threshold=threshold, across=allow_different_hosts)
    verdict = counting.compare(a, b, allow=allow or ())
    if as_json:
        print_json({"counts": verdict, "times": latency})
    else:
        from firstlight.report import counts, terminal

        stdout().print(counts.terminal(verdict), terminal.comparison(latency), sep="\n\n")
    if markdown is not None:
        from firstlight.report import counts

        with writing(markdown, "--markdown"), markdown.open("a") as file:
            file.write(counts.markdown(verdict, latency))
    for pattern in verdict.unmatched:
        say(f"warning: --allow '{pattern}' matches no count of these runs")
    failed = verdict.outcome == "more" or (exact and verdict.changed)
    raise typer.Exit(failed or (time and latency.regression))


def add_to(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(
        epilog=examples(
            "gate runs/before runs/after", "gate runs/both --json",
            "gate a b --allow 'call mount' --allow 'netlink *'",
            "gate a b --exact --markdown $GITHUB_STEP_SUMMARY",
        )
    )(gate)  # fmt: skip
