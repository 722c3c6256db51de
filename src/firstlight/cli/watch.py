"""The verb ``watch``: container starts on a node in use."""

import json
import select
import signal
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstlight.cli.output import Json, examples, say

if TYPE_CHECKING:
    import polars as pl

    from firstlight.model import Sample


NEEDED = ("CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_SYSLOG", "CAP_DAC_READ_SEARCH")
"""For the tracer, for other users' bundles, and for the kernel's own names of its functions."""


def watch(
    *,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the starts as runs, for report.")
    ] = None,
    duration: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Stop after this time.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Watch the container starts of this node.

    Prints a line per start: its total, its names, and its longest phases. Nothing is restarted or
    reconfigured. Between starts only forks, execs and exits are traced. Ctrl-C stops it. With
    --json each start is a line of JSON.
    """
    from firstlight.host import capabilities
    from firstlight.lab.watch import programs
    from firstlight.lab.watch.follow import Follower
    from firstlight.lab.watch.keep import Keeper, Limits
    from firstlight.trace import bpf

    capabilities.keep_only(NEEDED)
    bpf.probe()
    names = programs.watched()
    until = None if duration is None else time.monotonic() + duration
    with tempfile.TemporaryDirectory(prefix="firstlight-watch-") as scratch:
        directory = out or Path(scratch)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with Follower(names) as follower, Keeper(directory, Limits()) as keeper:
                say(f"watching {', '.join(programs.RUNTIMES)}: {len(names)} program names")
                while _wait(follower.descriptor, until):
                    for sample, spans in keeper.add(follower.read()):
                        _print(sample, spans, as_json=as_json)
        except KeyboardInterrupt:
            pass
        if out:
            say(f"runs: {out}\nfull report: firstlight report {out}/watch-* --html report.html")


def _wait(descriptor: int, until: float | None) -> bool:
    """Wait until a start has ended; False when the time is up."""
    seconds = None if until is None else max(0.0, until - time.monotonic())
    return bool(select.select([descriptor], [], [], seconds)[0])


def _print(sample: "Sample", spans: "pl.DataFrame", *, as_json: bool) -> None:
    phases = _phases(sample, spans)
    if as_json:
        record: dict[str, Any] = {
            "labels": sample.labels, "point": sample.point, "latency_ns": sample.latency,
            "lost_events": sample.lost, "error": sample.error, "phases_ns": phases,
        }  # fmt: skip
        print(json.dumps(record), flush=True)
        return
    from firstlight.units import duration, percent

    labels = sample.labels
    pod = "/".join(labels[key] for key in ("namespace", "pod", "container") if labels.get(key))
    total = "failed" if sample.latency is None else duration(sample.latency)
    largest = sorted(phases.items(), key=lambda item: -item[1])[:4]
    shares = ", ".join(f"{name} {percent(ns / sample.latency)}" for name, ns in largest
                       if sample.latency)  # fmt: skip
    lost = f"  ({sample.lost} events lost)" if sample.lost else ""
    print(
        f"{datetime.now().astimezone():%H:%M:%S}  {total:>8}  {labels['runtime']:<6} "
        f"{labels.get('engine', '-'):<10} {pod or labels['id'][:40]}  {shares}{lost}",
        flush=True,
    )


def _phases(sample: "Sample", spans: "pl.DataFrame") -> dict[str, int]:
    """The time of each phase on the critical path, in ns."""
    from firstlight.analysis import breakdown
    from firstlight.model import EndPoint

    if sample.latency is None:
        return {}
    summary = breakdown.of_sample(spans, sample, EndPoint.FIRST_INSTRUCTION)
    phases: dict[str, int] = {}
    for phase, wall in summary.select("phase", "wall").rows():
        phases[phase] = phases.get(phase, 0) + wall
    return {phase: wall for phase, wall in phases.items() if wall}


def add_to(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(
        epilog=examples("watch", "watch --out /var/lib/firstlight", "watch --json --duration 60")
    )(watch)
