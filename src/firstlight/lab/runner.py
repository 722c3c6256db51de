"""Experiment to samples: expands the points, shuffles the schedule, runs each batch."""

import os
import random
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from collections.abc import Sequence as Sequenced
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import msgspec

from firstlight import __version__
from firstlight.errors import Failed, Unsupported
from firstlight.host import facts
from firstlight.host.netns import settle
from firstlight.host.workspace import sandbox
from firstlight.lab import stuck
from firstlight.lab.backends import Backend, Command, until
from firstlight.lab.experiments import Experiment, Options
from firstlight.lab.load import Burst, Generator, Outcome, Poisson, Sequence, Shape
from firstlight.model import Ending, Footer, GuestLog, Header, Point, Sample, Stamps, Step
from firstlight.store import Writer
from firstlight.trace import bpf

DEADLINE_SECONDS = 60.0
_STOP_SECONDS = 30.0
_SAID = 300  # characters of a program's last words
_STEP = re.compile(r"^firstlight step (\S+) (\d{1,18}) (\d{1,18})\n", re.MULTILINE)
_READY = re.compile(r"^firstlight ready (\d{1,18})\n", re.MULTILINE)
_LEAST_SAMPLES = 3  # times the repetitions, for points of few instances


@dataclass(frozen=True)
class Plan:
    """How a run is to be made. ``deadline`` is for each start, in seconds."""

    experiment: Experiment
    options: Options
    repetitions: int
    seed: int
    traced: bool = True
    cold: bool = False
    deadline: float = DEADLINE_SECONDS


@dataclass(frozen=True)
class Batch:
    """One entry of the schedule."""

    point: Point
    repetition: int
    traced: bool

    @property
    def instances(self) -> int:
        """How many starts it asks for."""
        return int(self.point["instances"])


def schedule(points: list[Point], plan: Plan) -> list[Batch]:
    """Every batch of a run in a seeded random order, repetition by repetition.

    Shuffling within repetitions interleaves the points: a drift of the machine meets all of them.
    Points of few instances get more batches, so that their quantiles rest on as many samples.
    """
    order = random.Random(plan.seed)  # noqa: S311 - a schedule, not a secret
    batches = []
    for repetition in range(plan.repetitions):
        part = []
        for point in points:
            for _ in range(max(1, _LEAST_SAMPLES // int(point["instances"]))):
                part.append(Batch(point, repetition, traced=False))
                if plan.traced:
                    part.append(Batch(point, repetition, traced=True))
        order.shuffle(part)
        batches += part
    return batches


def run(plan: Plan, out: Path, progress: Callable[[Batch, int, int], None]) -> None:
    """Measure an experiment into the run directory ``out``.

    ``progress`` is told each batch before it, with the work done and in all (see ``work``). On
    KeyboardInterrupt what was measured stays, marked interrupted, and the interrupt goes on.
    """
    points, backends, skipped = _usable(plan)
    if plan.traced:
        bpf.probe()
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    header = Header(
        run=name,
        experiment=plan.experiment.name,
        question=plan.experiment.question,
        end_point=backends[0].end_point,
        axes=plan.experiment.axes,
        points=tuple(points),
        argv=tuple(sys.argv),
        seed=plan.seed,
        started=_now(),
        revision=revision(),
        repetitions=plan.repetitions,
        cold=plan.cold,
        environment={**facts.collect(), **plan.experiment.facts(plan.options)},
        notes=tuple(
            dict.fromkeys(
                line for backend in backends for line in (backend.note or "").splitlines()
            )
        ),
        skipped=tuple(skipped.items()),
    )
    with Writer(out, header) as writer:
        interrupted = True
        try:
            with _Lab(plan, writer, name) as lab:
                for batch in (batches := schedule(points, plan)):
                    lab.measure(batch, progress, sum(map(work, batches)))
            interrupted = False
        finally:
            writer.finish(Footer(ended=_now(), interrupted=interrupted))


def work(batch: Batch) -> int:
    """How much of a run's time a batch takes, roughly, in no unit."""
    return batch.instances + 4


def _usable(plan: Plan) -> tuple[list[Point], list[Backend], dict[str, str]]:
    """The points that can run here, their backends, and why others cannot."""
    points: list[Point] = []
    usable: dict[Backend, None] = {}
    skipped: dict[str, str] = {}
    for point in plan.experiment.points(plan.options):
        backend = plan.experiment.backend(point)
        try:
            backend = until(backend, plan.options.until, point)
            if backend not in usable:
                backend.probe()
        except Unsupported as error:
            skipped[backend.name] = f"{error.message} ({error.hint})"
            continue
        usable[backend] = None
        points.append(point)
    if not points:
        raise Unsupported(
            f"{plan.experiment.name} cannot run here: {_reasons(skipped)}",
            "see all that is missing: firstlight doctor",
        )
    return points, list(usable), skipped


def _reasons(skipped: dict[str, str]) -> str:
    """Each reason once, with the first that it kept from running."""
    kept: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        kept.setdefault(reason, []).append(name)
    return "; ".join(
        f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {reason}"
        for reason, names in kept.items()
    )


class _Lab:
    """A run under way: its place, load generator and tracer."""

    def __init__(self, plan: Plan, writer: Writer, name: str) -> None:
        self._plan, self._writer, self._name = plan, writer, name
        self._batches = self._samples = self._done = 0

    def __enter__(self) -> "_Lab":
        with ExitStack() as stack:
            self._workspace = stack.enter_context(sandbox(self._name, on_disk=self._plan.cold))
            self._generator = stack.enter_context(Generator())
            if self._plan.traced:
                self._tracer = stack.enter_context(
                    bpf.Tracer(self._generator.pid, self._workspace.directory)
                )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def measure(self, batch: Batch, progress: Callable[[Batch, int, int], None], all_: int) -> None:
        """Run one batch and store its samples and spans."""
        progress(batch, self._done, all_)
        self._done += work(batch)
        own = self._plan.experiment.backend(batch.point)
        backend = until(own, self._plan.options.until, batch.point)
        with ExitStack() as prepared:
            try:
                commands = prepared.enter_context(
                    backend.prepared(batch.point, batch.instances, self._workspace)
                )
            except Failed as error:
                self._keep(unprepared(batch, self._batches, self._samples, error.message))
                return
            batch = replace(batch, traced=batch.traced and can_trace(commands))
            if self._plan.cold:
                drop_caches()
            try:
                outcomes, lost = self._start(batch, commands)
                evidence = {o.pid: stuck.describe(o.pid) for o in outcomes if o.expired and o.pid}
                ended = self._generator.stop(self._batches, deadline=_STOP_SECONDS)
                guests = [command.guest() if command.guest else None for command in commands]
            except BaseException:
                self._generator.close()  # what it started must end before what that used
                raise
        settle()
        samples = [
            sample(self._samples + place, self._batches, place, batch, outcome, end,
                   evidence.get(outcome.pid), lost, guest)
            for place, (outcome, end, guest) in enumerate(zip(outcomes, ended, guests, strict=True))
        ]  # fmt: skip
        if self._workspace.counts:
            samples[0] = msgspec.structs.replace(samples[0], counts=dict(self._workspace.counts))
            self._workspace.counts.clear()
        if batch.traced:
            roots = {one.pid: one.index for one in samples}
            roots |= dict.fromkeys(traced_daemons(commands), self._samples)
            self._writer.append_spans(self._batches, self._tracer.collect(roots))
        self._keep(samples)

    def _keep(self, samples: list[Sample]) -> None:
        self._writer.append(samples)
        self._batches += 1
        self._samples += len(samples)

    def _start(self, batch: Batch, commands: list[Command]) -> tuple[list[Outcome], int]:
        shape = shape_of(batch.point, self._plan.seed + self._batches)
        if batch.traced:
            self._tracer.start(traced_daemons(commands))
        outcomes = self._generator.run(self._batches, commands, shape, deadline=self._plan.deadline)
        return outcomes, self._tracer.stop() if batch.traced else 0


def can_trace(commands: Sequenced[Command]) -> bool:
    """Whether tracing would say whose start it saw: of one among many in a daemon it would not."""
    return len(commands) == 1 or not any(command.request for command in commands)


def shape_of(point: Point, seed: int) -> Shape:
    """How the starts of a point are asked for, by its axes ``rate`` and ``order``."""
    if "rate" in point:
        return Poisson(float(point["rate"]), seed)
    return Sequence() if point.get("order") == "sequential" else Burst()


def unprepared(batch: Batch, number: int, first: int, why: str) -> list[Sample]:
    """The samples of a batch whose host could not be prepared: none was started, and so it says."""
    now = time.monotonic_ns()
    return [
        Sample(
            index=first + instance,
            batch=number,
            instance=instance,
            repetition=batch.repetition,
            point=batch.point,
            traced=False,
            ending=Ending.FAILED,
            stamps=Stamps(now, now),
            error=f"not started: {why}",
        )
        for instance in range(batch.instances)
    ]


def traced_daemons(commands: Sequenced[Command]) -> tuple[int, ...]:
    """The daemons that are traced: only of a single start is it plain whose request they serve."""
    return commands[0].daemons if len(commands) == 1 else ()


def sample(
    index: int,
    batch_number: int,
    instance: int,
    batch: Batch,
    outcome: Outcome,
    ended: Outcome,
    evidence: str | None,
    lost: int,
    guest: GuestLog | None = None,
) -> Sample:
    """What the load generator saw of one start when it was ready, and when it had ended.

    A stamp of the instance's own that is not between the start and its arrival here comes from a
    clock that is not the host's (gVisor's): then the arrival stands for it. One that came after
    the deadline is no better than none.
    """
    steps = tuple(
        Step(name, int(start), int(end)) for name, start, end in _STEP.findall(outcome.output)
    )
    said = _READY.search(outcome.output)
    ready = int(said[1]) if said and not outcome.expired else None
    if ready is not None and not outcome.intended <= ready <= outcome.seen:
        ready = outcome.seen
    fault = guest.fault if guest and ready else None
    ready = None if fault else ready
    lines = outcome.output.split("\n")
    other = [line for line in lines if not line.startswith("firstlight ")]
    failure = _hung(evidence, guest, other) if evidence else _complaint(outcome)
    ending = Ending.READY if ready else Ending.HUNG if outcome.expired else Ending.FAILED
    return Sample(
        index=index,
        batch=batch_number,
        instance=instance,
        repetition=batch.repetition,
        point=batch.point,
        traced=batch.traced,
        ending=ending,
        stamps=Stamps(
            outcome.intended, outcome.spawned, ready, outcome.seen or None, ended.exited or None
        ),
        steps=steps,
        pid=outcome.pid,
        user_ns=ended.user_ns,
        system_ns=ended.system_ns,
        exit_status=ended.status,
        error=None if ready else fault or failure,
        output="\n".join(other).rstrip("\n"),
        lost=lost,
        guest=guest,
    )


def _hung(evidence: str, guest: GuestLog | None, other: Sequenced[str]) -> str:
    """Where it is stuck, and what it said last; of a machine, its guest."""
    who = "it" if guest is None else "the guest"
    lines = other if guest is None else guest.console.split("\n")
    said = [line.strip() for line in lines if line.strip()]
    if not said and guest is None:
        return evidence
    words = f'last said "{said[-1][:_SAID]}"' if said else "said nothing"
    return f"{evidence}; {who} {words}"


def _complaint(outcome: Outcome) -> str:
    for line in outcome.output.split("\n"):
        if line.startswith("firstlight error "):
            return line.removeprefix("firstlight error ")
    if outcome.status is None:
        return "not ready"
    if os.WIFSIGNALED(outcome.status):
        return f"ended by signal {os.WTERMSIG(outcome.status)} before it was ready"
    return f"exited with status {os.WEXITSTATUS(outcome.status)} before it was ready"


def drop_caches() -> None:
    """Empty the page cache, dentries and inodes, so that the next start reads from disk."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def revision() -> str:
    """firstlight's version, and the git revision where it runs from a checkout."""
    described = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
        capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    return f"{__version__}+{described}" if described else __version__
