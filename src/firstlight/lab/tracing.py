"""Traces the start of a user's command, in the user's own environment."""

import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from firstlight import store
from firstlight.errors import Failed, Unsupported
from firstlight.host import facts
from firstlight.host.ownership import scratch
from firstlight.lab.backends import Execute
from firstlight.lab.load import Generator, Outcome
from firstlight.lab.runner import revision
from firstlight.model import (
    Ending,
    EndPoint,
    Footer,
    Header,
    Point,
    Presentation,
    Sample,
    Stamps,
)
from firstlight.trace import bpf

_FOREVER_SECONDS = 1e8


@dataclass(frozen=True)
class Traced:
    """A traced command: its run of one sample, its exit status, and how events were lost, if any
    were (bpf.Tracer.losses).
    """

    run: store.Run
    exit_status: int
    losses: str


@contextmanager
def traced(argv: Sequence[str], until: str | None, out: Path | None) -> Iterator[Traced]:
    """Run a command with this process's descriptors and trace it to its exit.

    With ``until`` the end point is the first execution of the program with that name or path. The
    run is kept in ``out``, or deleted on exit. Raises Unsupported and Failed.
    """
    program = shutil.which(argv[0])
    if not program and (fact := _refused(Path(argv[0]))):
        raise Unsupported(f"{argv[0]!r} {fact[0]}", fact[1])
    if not program:
        raise Unsupported(f"command {argv[0]!r} is not found", "give its path, or install it")
    try:
        here = Path.cwd()
    except OSError as error:
        raise Unsupported(
            f"cannot run {argv[0]!r} in the working directory: {error.strerror}",
            "change to another directory",
        ) from error
    command = Execute((str(Path(program).absolute()), *argv[1:]), dict(os.environ), here)
    bpf.probe()
    point: Point = {"command": " ".join(argv), "instances": 1}
    header = _header(point, EndPoint.FIRST_INSTRUCTION if until else EndPoint.EXIT)
    with scratch() as kept:
        directory = out or kept / "run"
        with store.Writer(directory, header) as writer:  # before the command does its work
            try:
                outcome, lost, losses, spans = _run(command)
                if not lost and spans.filter(pl.col("kind") == "exec").is_empty():
                    why, remedy = _inexecutable(Path(program))
                    raise Failed(f"{argv[0]!r} cannot be executed: {why}", remedy)
                ready = _executed(spans, until) if until else outcome.exited
            except KeyboardInterrupt:
                writer.discard()
                raise
            status = os.waitstatus_to_exitcode(outcome.status or 0)
            writer.append_spans(0, spans)
            writer.append([_sample(point, outcome, ready, status, lost)])
            writer.finish(Footer(ended=datetime.now(UTC).isoformat(timespec="seconds")))
        yield Traced(store.read(directory), status, losses)


def _refused(program: Path) -> tuple[str, str] | None:
    """Why a path leads to no program, and the remedy; None where nothing is."""
    if not program.exists():
        return None
    if not program.is_file():
        return "is not executable", "give the path of a program"
    if os.statvfs(program).f_flag & os.ST_NOEXEC:
        return ("cannot be executed: its file system is mounted noexec",
                "copy it to another one, or run it by its interpreter, such as sh")  # fmt: skip
    return "is not executable", "chmod +x it, or run it by its interpreter, such as sh"


def _inexecutable(program: Path) -> tuple[str, str]:
    """Why the kernel does not execute a file that may be executed, and the remedy: execve(2)."""
    with program.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"#!"):
        words = head[2:].partition(b"\n")[0].split(b" ")
        first = next((word for word in words if word.strip()), b"")
        return (f"its interpreter {os.fsdecode(first)!r} is missing, or is no program",
                "install it, or correct the first line of the script")  # fmt: skip
    loader = re.search(rb"\0(/[^\0]*/ld[^\0]*)\0", head)
    if not head.startswith(b"\x7fELF"):
        return ("it is neither a program nor a script with #!",
                "begin a script with #! and a program that exists, or run it by sh")  # fmt: skip
    if loader and not Path(os.fsdecode(loader[1])).exists():
        return (f"its loader {os.fsdecode(loader[1])} is missing",
                "install the C library that it was built for")  # fmt: skip
    return f"it is no sound program for {os.uname().machine}", "build or install one that is"


def _run(command: Execute) -> tuple[Outcome, int, str, pl.DataFrame]:
    """The command's end, how many events were lost and how, and its spans."""
    with Generator(_inherited()) as generator, bpf.Tracer(generator.pid) as tracer:
        interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command
        try:
            tracer.start()
            outcome = generator.run(0, [command], deadline=_FOREVER_SECONDS, inherit=True)[0]
            lost = tracer.stop()
        finally:
            signal.signal(signal.SIGINT, interrupted)
        generator.stop(0, deadline=0, inherit=True)
        return outcome, lost, tracer.losses, tracer.collect({outcome.pid: 0})


def _inherited() -> list[int]:
    """The inherited descriptors above 2, which the command gets; this process's own are private."""
    numbers = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    return [number for number in numbers if number > 2 and _is_inheritable(number)]


def _is_inheritable(descriptor: int) -> bool:
    try:
        return os.get_inheritable(descriptor)
    except OSError:  # the descriptor of this listing
        return False


def _executed(spans: pl.DataFrame, program: str) -> int:
    executed = spans.filter(pl.col("kind") == "exec").with_columns(pl.col("detail").cast(pl.String))
    matching = executed.filter(
        (pl.col("detail") == program) | pl.col("detail").str.ends_with(f"/{program}")
    )
    if matching.is_empty():
        seen = ", ".join(dict.fromkeys(executed["detail"].to_list()))
        raise Failed(f"the command did not execute {program!r}", f"it executed: {seen}")
    return int(matching["start"][0])


def _header(point: Point, end_point: EndPoint) -> Header:
    now = datetime.now(UTC)
    return Header(
        run=f"trace-{now:%Y%m%dT%H%M%S}",
        experiment="trace",
        question=f"Where does the start of {point['command']} spend its time?",
        end_point=end_point,
        axes=("command", "instances"),
        points=(point,),
        argv=tuple(sys.argv),
        seed=0,
        started=now.isoformat(timespec="seconds"),
        revision=revision(),
        repetitions=1,
        environment=facts.collect(),
        presentation=Presentation(subject="{series}", headline="traced"),
    )


def _sample(point: Point, outcome: Outcome, ready: int, status: int, lost: int) -> Sample:
    return Sample(
        index=0,
        batch=0,
        instance=0,
        repetition=0,
        point=point,
        traced=True,
        ending=Ending.READY,
        stamps=Stamps(outcome.intended, outcome.spawned, ready, ready, outcome.exited),
        pid=outcome.pid,
        user_ns=outcome.user_ns,
        system_ns=outcome.system_ns,
        page_faults=outcome.page_faults,
        exit_status=status,
        lost=lost,
    )
