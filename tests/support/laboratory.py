"""A lab of the tests' own: namespaces that play the host, a load generator and a tracer in them."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from firstlight import store
from firstlight.analysis.breakdown import breakdown
from firstlight.host import workspace as workspaces
from firstlight.host.workspace import Workspace
from firstlight.lab.backends import Backend, Command, Execute
from firstlight.lab.backends.process import Process
from firstlight.lab.experiments import Case
from firstlight.lab.load import BURST, Generator, Outcome, Shape
from firstlight.lab.runner import sample, traced_daemons
from firstlight.lab.schedule import Batch
from firstlight.model import EndPoint, Header, Sample
from firstlight.trace import bpf

NATIVE = Path(__file__).parent.parent / "native"
CLONE_FS = 0x200
ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "6"))
"""How many seeds a fuzzed program gets; ``make fuzz`` sets more."""
_STRICT = ("-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror")


def sanitized(directory: Path, *sources: str, options: tuple[str, ...] = ()) -> Path:
    """A native program, of sources below native/, that its first wrong access stops."""
    root = NATIVE.parent.parent
    first, *others = [root / "native" / source for source in sources]
    json = root / "subprojects" / "cjson"
    return compiled(
        first, directory / first.stem, *map(str, others), str(json / "cJSON.c"),
        f"-I{root / 'native'}", f"-I{json}",
        "-fsanitize=address,undefined", "-fno-sanitize-recover=all", *options,
    )  # fmt: skip


def compiled(source: Path, to: Path, *flags: str) -> Path:
    """A C program, or a failure that shows the compiler's words."""
    done = subprocess.run(
        ["gcc", *_STRICT, "-o", to, source, *flags], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return to


@contextmanager
def returning_home() -> Iterator[None]:
    """Whatever namespaces a block moves this thread to, it is back where it was afterwards."""
    cwd = Path.cwd()
    with namespaces("thread-self") as home:
        try:
            yield
        finally:
            enter(home, cwd)


@contextmanager
def inside(pid: int) -> Iterator[None]:
    """A block in a process's namespaces."""
    cwd = Path.cwd()
    with returning_home(), namespaces(str(pid)) as there:
        enter(there, cwd)
        yield


@contextmanager
def namespaces(process: str) -> Iterator[list[tuple[int, int]]]:
    """Descriptors of a process's namespaces, each with its kind, for ``enter``."""
    with ExitStack() as files:
        yield [
            (files.enter_context(Path(f"/proc/{process}/ns/{kind}").open()).fileno(), flag)
            for kind, flag in (("net", 0x40000000), ("mnt", 0x00020000))
        ]


def enter(there: list[tuple[int, int]], cwd: Path) -> None:
    """Move this thread, and then to a directory: of another mount namespace it is in the root."""
    assert workspaces._libc.unshare(CLONE_FS) == 0  # setns asks for it, if threads were started
    for descriptor, flag in there:
        assert workspaces._libc.setns(descriptor, flag) == 0
    os.chdir(cwd)


@contextmanager
def laboratory(name: str) -> Iterator[Workspace]:
    """A lab around a block."""
    with returning_home(), workspaces.sandbox(name) as place:
        yield place


@contextmanager
def commands_of(backend: Backend, instances: int, workspace: Workspace) -> Iterator[list[Any]]:
    """The commands of a prepared batch."""
    with backend.prepared(instances, workspace) as prepared:
        yield list(prepared.commands)


@dataclass
class Bench:
    """A traced lab. ``starts`` runs one batch and reads it back as a run would be."""

    workspace: Workspace
    generator: Generator
    tracer: bpf.Tracer
    directory: Path
    batches: int = field(default=0)

    def starts(
        self,
        commands: Sequence[Command],
        *,
        shape: Shape = BURST,
        end_point: EndPoint = EndPoint.REQUEST_DONE,
        deadline: float = 30,
        to_exit: bool = False,
    ) -> "Seen":
        """Traced until all are ready, as a run does it, or until all have exited."""
        self.batches += 1
        daemons = traced_daemons(commands)
        self.tracer.start(daemons)
        outcomes = self.generator.run(self.batches, commands, shape, deadline=deadline)
        lost = 0 if to_exit else self.tracer.stop()
        ended = self.generator.stop(self.batches, deadline=10)
        lost = self.tracer.stop() if to_exit else lost
        batch = Batch(Case({"instances": len(commands)}, Process()), 0, traced=True)
        samples = [
            sample(index, self.batches, index, batch, outcome, end, None, lost)
            for index, (outcome, end) in enumerate(zip(outcomes, ended, strict=True))
        ]
        roots = {each.pid: each.index for each in samples}
        spans = self.tracer.collect(roots | dict.fromkeys(daemons, 0))
        path = self.directory / str(self.batches)
        with store.Writer(path, header(end_point)) as writer:
            writer.append_spans(self.batches, spans)
            writer.append(samples)
        return Seen(store.read(path), spans.with_columns(pl.col(pl.Categorical).cast(pl.String)),
                    lost, ended)  # fmt: skip

    def start(
        self,
        *argv: str | Path,
        end_point: EndPoint = EndPoint.REQUEST_DONE,
        to_exit: bool = True,
    ) -> "Seen":
        """One command, traced to its exit."""
        return self.starts([self.command(*argv)], end_point=end_point, to_exit=to_exit)

    def command(self, *argv: str | Path) -> Execute:
        return Execute(tuple(map(str, argv)), self.workspace.environment)


@dataclass(frozen=True)
class Seen:
    """One traced batch, its spans with plain strings."""

    run: store.Run
    spans: pl.DataFrame
    lost: int
    outcomes: list[Outcome]

    @property
    def sample(self) -> Sample:
        """The only one, and it was ready."""
        [samples] = self.run.samples
        assert samples.latency is not None, samples
        return samples

    def calls(self, name: str, detail: str | None = None) -> pl.DataFrame:
        """The spans of one system call."""
        rows = self.spans.filter((pl.col("kind") == "call") & (pl.col("name") == name))
        return rows if detail is None else rows.filter(pl.col("detail") == detail)

    def breakdown(self) -> pl.DataFrame:
        """As ``breakdown``; that it partitions each latency is checked in passing."""
        table = breakdown(self.run)
        for each in self.run.samples:
            rows = table.filter(pl.col("sample") == each.index)
            assert rows["wall"].sum() == each.latency
            assert (rows["wall"] >= 0).all()
            assert (rows["summed"] >= rows["wall"]).all()
        return table

    def wall(self, phase: str | None = None, cause: str | None = None) -> int:
        """The time on the critical path in a phase, of a cause, in ns."""
        table = self.breakdown()
        if phase is not None:
            table = table.filter(pl.col("phase") == phase)
        if cause is not None:
            table = table.filter(pl.col("cause").str.starts_with(cause))
        return int(table["wall"].sum())


def header(end_point: EndPoint) -> Header:
    return Header(
        run="test",
        experiment="test",
        question="Is it seen?",
        end_point=end_point,
        axes=("instances",),
        points=({"instances": 1},),
        argv=(),
        seed=0,
        started="",
        revision="",
        repetitions=1,
    )


def marked(run: str) -> list[str]:
    """The command lines of processes that carry a run's name."""
    mark = f"FIRSTLIGHT_RUN={run}\0".encode()
    result = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes() + b"\0":
                result.append((process / "cmdline").read_text())
        except OSError:
            continue
    return result
