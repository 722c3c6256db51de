"""The verb ``watch``: container starts on a node in use."""

import json
import os
import select
import signal
import socket
import time
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstlight.cli.output import YEAR, Json, examples, finite, say
from firstlight.errors import FirstlightError, Unsupported, install_extra, longer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from firstlight.lab.watch.follow import Window
    from firstlight.report.live.watched_start import WatchedStart


NEEDED = ("CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_SYSLOG", "CAP_DAC_READ_SEARCH")
"""For the tracer, for other users' bundles, and for the kernel's own names of its functions."""

_STOP_SECONDS, _REST_SECONDS = 30, 15
_TOO_BUSY = "the last starts are not shown: this machine is too busy to analyse them"
_LATE = "{} starts have a total alone: those before them were not analysed yet"
_GENTLE = 5
"""How nice the analysis of starts is to the node's own work."""


def watch(
    *,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the starts as runs, for report.")
    ] = None,
    max_size: Annotated[
        int, typer.Option(metavar="MIB", min=1, help="Size of all kept runs together.")
    ] = 1024,
    max_age: Annotated[
        float,
        typer.Option(
            metavar="DAYS", min=0.01, callback=finite, help="Age at which runs are removed."
        ),
    ] = 7.0,
    http: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT",
            help="Serve a live page and /metrics; at 127.0.0.1 unless HOST is given.",
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="[HOST:]PORT", help="Serve /metrics alone, for Prometheus."),
    ] = None,
    otlp: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Send each start as a trace to this OTLP collector."),
    ] = None,
    runtime: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME", help="File names of other OCI runtimes that are run by hand."
        ),
    ] = "",
    sample: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Trace one start in N, whatever --budget allows; 1: each."
        ),
    ] = None,
    budget: Annotated[
        float,
        typer.Option(
            metavar="PERCENT",
            min=0.0,
            max=100.0,
            callback=finite,
            help="CPU time of the node that tracing may take; starts beyond it have only a total.",
        ),
    ] = 0.5,
    duration: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=0, max=YEAR, callback=finite, help="Stop after this time."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Watch the container starts of this node.

    Prints a line per start: when it began, its total, its names, and its longest phases, or the
    total alone where tracing it was beyond --budget. Nothing is restarted or reconfigured. Between
    starts only forks, execs and exits are traced. Ctrl-C stops it. With --json each start is a line
    of JSON.
    """
    from firstlight.host import capabilities
    from firstlight.lab.watch import programs
    from firstlight.lab.watch.follow import Follower
    from firstlight.lab.watch.keep import Keeper, Limits, Samples
    from firstlight.lab.watch.unseen import unseen
    from firstlight.report.live.watched_start import watched_start
    from firstlight.trace import bpf, kallsyms

    capabilities.keep_only(NEEDED)
    bpf.probe(bpf.HINT)
    others = tuple(filter(None, runtime.split(",")))
    names = programs.watched(others)
    until = None if duration is None else time.monotonic() + duration
    with ExitStack() as stack:
        stop = stack.enter_context(_stop_signals())
        show = _print_json if as_json else _print
        takers = [show, *_serve(stack, http, metrics), *_send_traces(stack, otlp)]
        share = budget / 100
        follower = stack.enter_context(Follower(names, sample or 0, share))
        os.nice(_GENTLE)  # not the tracer, which must not lose events
        kallsyms.load()  # the first traced start would wait for it
        limits = Limits(total=max_size << 20, days=max_age)
        samples = stack.enter_context(Keeper(out, limits)) if out else Samples()
        watched = ", ".join((*programs.RUNTIMES, *others))
        say("\n".join((f"watching {watched}: {len(names)} program names", *unseen())))

        late = 0

        def report(window: "Window") -> None:
            nonlocal late
            for start, spans in samples.add(window):
                shown = watched_start(start, spans)
                for take in takers:
                    take(shown)
            if late and not window.late:
                say(_LATE.format(late))
            late = late + window.late if window.late else 0

        while _wait(follower.descriptor, stop, until):
            began = time.process_time_ns()
            report(follower.read())
            follower.answer(time.process_time_ns() - began)
        try:
            for window in follower.rest(time.monotonic() + _REST_SECONDS):
                report(window)
        except TimeoutError:
            say(_TOO_BUSY)
        if late:
            say(_LATE.format(late))
    if out:
        say(f"runs: {out}\nfull report: firstlight report {out}/watch-* --html report.html")


def _serve(
    stack: ExitStack, http: str | None, metrics: str | None
) -> "list[Callable[[WatchedStart], None]]":
    """Serve the page and the metrics; returns the functions to call with each start."""
    if http is None and metrics is None:
        return []
    try:
        from firstlight.report.live import server
        from firstlight.report.live.board import Board
        from firstlight.report.live.metrics import Metrics
    except ModuleNotFoundError as error:
        raise Unsupported(
            f"--http and --metrics need the Python package {error.name}",
            install_extra("http"),
        ) from error
    counted, board = Metrics(), Board(socket.gethostname())
    if http is not None:
        routes = [*server.page(board), *server.metrics(counted)]
        say(f"page: {stack.enter_context(server.serving(http, routes, board.end))}")
    if metrics is not None:
        url = stack.enter_context(server.serving(metrics, server.metrics(counted)))
        say(f"metrics: {url}metrics")
    return [counted.add, board.add] if http is not None else [counted.add]


def _send_traces(stack: ExitStack, collector: str | None) -> "list[Callable[[WatchedStart], None]]":
    """Send traces to a collector; returns the functions to call with each start."""
    if collector is None:
        return []
    if not collector.startswith(("http://", "https://")):
        raise FirstlightError(f"--otlp {collector!r} is not a URL", "such as http://127.0.0.1:4318")
    try:
        from firstlight.report.live import traces
    except ModuleNotFoundError as error:
        raise Unsupported(
            f"--otlp needs the Python package {error.name}", install_extra("telemetry")
        ) from error
    provider = traces.provider(collector, say)
    stack.callback(provider.shutdown)
    return [traces.Traces(provider).add]


@contextmanager
def _stop_signals() -> "Iterator[int]":
    """A descriptor that is readable once SIGINT, SIGTERM or SIGHUP has come.

    An exception raised by the signal could be lost in code that discards exceptions. A second
    signal ends the process at once; so does an alarm, because its output may have no reader.
    SIGHUP stays ignored under nohup.
    """

    def stop(number: int, _: "FrameType | None") -> None:
        signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, give_up)
        signal.setitimer(signal.ITIMER_REAL, longer(_STOP_SECONDS))

    def give_up(number: int, _: "FrameType | None") -> None:
        signal.signal(number, signal.SIG_DFL)
        signal.alarm(1)
        say(_TOO_BUSY)
        os.kill(os.getpid(), number)

    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield reading
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        os.close(reading)
        os.close(writing)


def _wait(descriptor: int, stop: int, until: float | None) -> bool:
    """Wait until a window is readable; False when the time is up or the process should end."""
    seconds = None if until is None else max(0.0, until - time.monotonic())
    ready, _, _ = select.select([descriptor, stop], [], [], seconds)
    return ready == [descriptor]


def _print_json(start: "WatchedStart") -> None:
    record = {
        "labels": start.labels, "point": start.point, "latency_ns": start.latency,
        "lost_events": start.lost, "error": start.error, "phases_ns": start.phases,
        "causes_ns": start.causes,
    }  # fmt: skip
    print(json.dumps(record), flush=True)


def _print(start: "WatchedStart") -> None:
    from firstlight.units import duration, percent

    total = "failed" if start.latency is None else duration(start.latency)
    shares = ", ".join(
        f"{name} {percent(ns / start.latency)}"
        for name, ns in list(start.phases.items())[:4]
        if start.latency
    )
    what = shares or start.error or "(total alone)"
    lost = f"  ({start.lost} events lost)" if start.lost else ""
    print(
        f"{datetime.fromisoformat(start.time).astimezone():%H:%M:%S}  {total:>8}  "
        f"{start.labels['runtime']:<6} {start.labels.get('engine', '-'):<10} {start.name}  "
        f"{what}{lost}",
        flush=True,
    )


def add_to(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(
        epilog=examples(
            "watch", "watch --out /var/lib/firstlight --max-size 500", "watch --http 9100",
            "watch --metrics 0.0.0.0:9101", "watch --otlp http://127.0.0.1:4318",
            "watch --sample 10", "watch --json --duration 60",
        )
    )(watch)  # fmt: skip
