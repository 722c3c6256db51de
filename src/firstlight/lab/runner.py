"""Runs an experiment: expands its points, shuffles the schedule, measures each batch."""

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence as Sequenced
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Protocol

import msgspec

from firstlight import __version__
from firstlight.analysis.compare import apart
from firstlight.errors import Failed, FirstlightError, Unsupported, longer
from firstlight.host import facts
from firstlight.host.netns import settle
from firstlight.host.workspace import sandbox
from firstlight.lab import stuck
from firstlight.lab.backends import Ask, Backend, Command, Execute, ending_at
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.lab.load import Generator, Outcome
from firstlight.lab.schedule import LEAST, Batch, Schedule
from firstlight.model import Ending, Footer, GuestLog, Header, Point, Sample, Stamps
from firstlight.native import checkout
from firstlight.store import Writer, read
from firstlight.trace import bpf

DEADLINE_SECONDS = longer(60.0)
_STOP_SECONDS = longer(30.0)
_LAST_LINE_CHARACTERS = 300


@dataclass(frozen=True)
class Plan:
    """What to measure and how. ``deadline`` is per start, in seconds.

    ``budget``, in seconds, ends the run; ``repetitions`` is then the most, or None.
    """

    experiment: Experiment
    options: Options
    repetitions: int | None
    seed: int
    traced: bool = True
    cold: bool = False
    deadline: float = DEADLINE_SECONDS
    budget: float | None = None


class Progress(Protocol):
    """Gets each batch before it is measured, and its samples afterwards."""

    def begin(self, batch: Batch, done: float) -> None:
        """``done`` is the share of the run's time that is behind it, as far as that is known."""

    def end(self, batch: Batch, samples: Sequenced[Sample]) -> None:
        """The samples of the batch that began last."""


class Silent:
    """Shows nothing."""

    def begin(self, batch: Batch, done: float) -> None:
        """Show nothing."""

    def end(self, batch: Batch, samples: Sequenced[Sample]) -> None:
        """Show nothing."""


def run(plan: Plan, out: Path, progress: Progress = Silent(), *, resume: bool = False) -> None:  # noqa: B008 - it has no state
    """Measure an experiment into the run directory ``out``.

    On KeyboardInterrupt the run keeps what was measured, is marked as interrupted, and re-raises.
    ``resume`` continues such a run with the same plan, or one with more repetitions. Raises
    FirstlightError if the run in ``out`` has another plan or is of another machine.
    """
    begun = time.monotonic()
    cases, skipped = _usable(plan)
    if plan.traced:
        bpf.probe()
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    head = header(plan, name, cases, skipped)
    earlier = _earlier(out, head) if resume else None
    schedule = Schedule(
        cases, plan.seed, traced=lambda case: _is_traced(plan, case), earlier=earlier or (),
        repetitions=plan.repetitions, budget=plan.budget, beside=plan.experiment.beside,
        together=plan.experiment.together, begun=begun,
    )  # fmt: skip
    warnings = (
        ["This run was interrupted and continued: its parts are of different times."]
        if earlier
        else []
    )
    if any(map(_is_untold, earlier or ())):
        warnings.append(UNTOLD)
    with Writer(out, head, earlier=earlier) as writer:
        interrupted = True
        try:
            with _Lab(plan, writer, name, earlier or (), warnings) as lab:
                _measure(lab, schedule, progress)
            interrupted = False
        finally:
            if schedule.is_given_up:
                warnings.append(
                    "No start became ready, so the run ended after one repetition of each point."
                )
            if plan.budget is not None and (short := schedule.short()):
                warnings.append(
                    f"{short} of {len(cases)} points have fewer than {LEAST} batches: "
                    f"the budget of {plan.budget:.0f} s ended before"
                )
            footer = Footer(ended=_now(), interrupted=interrupted, warnings=tuple(warnings))
            writer.finish(footer)


def _measure(lab: "_Lab", schedule: Schedule, progress: Progress) -> None:
    begun = time.monotonic()
    for batch in schedule.batches():
        at = time.monotonic()
        progress.begin(batch, schedule.done(at - begun))
        samples = lab.measure(batch)
        schedule.ended(batch, samples, time.monotonic() - at)
        progress.end(batch, samples)


def header(plan: Plan, name: str, cases: list[Case], skipped: dict[str, str]) -> Header:
    """The header of a run of these cases on this machine."""
    backends = [case.backend for case in cases]
    return Header(
        run=name,
        experiment=plan.experiment.name,
        question=plan.experiment.question,
        end_point=backends[0].end_point,
        axes=plan.experiment.axes,
        points=tuple(case.point for case in cases),
        argv=tuple(sys.argv),
        seed=plan.seed,
        started=_now(),
        revision=revision(),
        repetitions=plan.repetitions or 0,
        cold=plan.cold,
        environment={**facts.collect(), **plan.experiment.facts(plan.options)},
        notes=tuple(
            dict.fromkeys(
                line for backend in backends for line in (backend.note or "").splitlines()
            )
        ),
        skipped=tuple(skipped.items()),
        presentation=plan.experiment.presentation,
    )


def _is_traced(plan: Plan, case: Case) -> bool:
    """Many at once are traced only where the kernel's events explain a start."""
    return plan.traced and (case.instances == 1 or plan.experiment.explained_by == "kernel")


def _earlier(out: Path, header: Header) -> list[Sample]:
    """The samples of the run to continue, without those of a batch that was cut off."""
    if not (out / "header.json").exists():
        raise FirstlightError(f"there is no run in {out} to continue", "leave out --resume")
    run = read(out)
    unlike = apart(run.header, header)
    if run.header.seed != header.seed:
        unlike.append(f"seed {run.header.seed} and {header.seed}")
    if run.header.points != header.points:
        unlike.append("different points")
    if unlike:
        raise FirstlightError(
            f"{out} cannot be continued: {'; '.join(unlike)}",
            "give the experiment and the options that it was started with",
        )
    count = Counter(sample.batch for sample in run.samples)
    return [each for each in run.samples if count[each.batch] == each.point["instances"]]


def _usable(plan: Plan) -> tuple[list[Case], dict[str, str]]:
    """The cases that can run here to the requested end point, and why the others cannot."""
    cases: list[Case] = []
    probed: set[Backend] = set()
    refused: dict[str, Unsupported] = {}
    for case in plan.experiment.cases(plan.options):
        try:
            backend = ending_at(case.backend, plan.options.end_point)
            if backend not in probed:
                backend.probe()
        except Unsupported as error:
            refused[case.backend.name] = error
            continue
        probed.add(backend)
        if not _is_repeated(case.point, backend, cases):
            cases.append(replace(case, backend=backend))
    skipped = {name: f"{error.message} ({error.hint})" for name, error in refused.items()}
    if not cases:
        hint, *others = {error.hint for error in refused.values()}
        if others:
            reasons, hint = _reasons(skipped), "firstlight doctor shows what else is missing"
        else:
            reasons = _reasons({name: error.message for name, error in refused.items()})
        raise Unsupported(f"{plan.experiment.name} cannot run here: {reasons}", hint)
    return cases, skipped


def _is_repeated(point: Point, backend: Backend, cases: Sequenced[Case]) -> bool:
    """Whether the cases have this one, as for ``--runtime runc,runc``. Raises FirstlightError if
    they have another of the same name, whose figures could not be told from its own.
    """
    same = next((case for case in cases if case.point == point), None)
    if same and same.backend != backend:
        name = ", ".join(f"{axis} {setting}" for axis, setting in point.items())
        raise FirstlightError(f"two different points are called {name}",
                              "measure them in runs of their own, or rename a file")  # fmt: skip
    return same is not None


def _reasons(skipped: dict[str, str]) -> str:
    """Each reason once, with the first point that it concerns."""
    kept: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        kept.setdefault(reason, []).append(name)
    return "; ".join(
        f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {reason}"
        for reason, names in kept.items()
    )


UNTOLD = (
    "Some starts have no phases: the host's clock was set while they ran, or their components "
    "reported nothing."
)


class _Lab:
    """A run in progress: its workspace, load generator and tracer."""

    def __init__(
        self, plan: Plan, writer: Writer, name: str, earlier: Sequenced[Sample],
        warnings: list[str],
    ) -> None:  # fmt: skip
        self._plan, self._writer, self._name, self._warnings = plan, writer, name, warnings
        self._batches = max((sample.batch + 1 for sample in earlier), default=0)
        self._samples = max((sample.index + 1 for sample in earlier), default=0)

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

    def measure(self, batch: Batch) -> list[Sample]:
        """Run one batch, and store its samples and spans."""
        case = batch.case
        with ExitStack() as stack:
            try:
                prepared = stack.enter_context(
                    case.backend.prepared(case.instances, self._workspace)
                )
            except Failed as error:
                failed = unprepared(batch, self._batches, self._samples, error.message)
                self._keep(failed)
                return failed
            commands = prepared.commands
            batch = replace(batch, traced=batch.traced and can_trace(commands))
            if self._plan.cold:
                drop_caches()
            try:
                outcomes, lost = self._start(batch, commands)
                evidence = {o.pid: stuck.describe(o.pid) for o in outcomes if o.expired and o.pid}
                ended = self._generator.stop(self._batches, deadline=_STOP_SECONDS)
                guests = [_guest_log(command) for command in commands]
                counts = dict(prepared.counts())
                telemetry = prepared.telemetry()
            except BaseException:
                self._generator.close()  # instances end before the parts that they use
                raise
            samples = [
                sample(self._samples + place, self._batches, place, batch, outcome, end,
                       evidence.get(outcome.pid), lost, guest)
                for place, (outcome, end, guest) in
                enumerate(zip(outcomes, ended, guests, strict=True))
            ]  # fmt: skip
            for place, reported in telemetry.items():
                samples[place] = msgspec.structs.replace(samples[place], telemetry=reported)
            if UNTOLD not in self._warnings and any(map(_is_untold, samples)):
                self._warnings.append(UNTOLD)
            if counts:
                samples[0] = msgspec.structs.replace(samples[0], counts=counts)
            if batch.traced:
                roots = {sample.pid: sample.index for sample in samples}
                roots |= dict.fromkeys(traced_daemons(commands), self._samples)
                self._writer.append_spans(self._batches, self._tracer.collect(roots))
            self._keep(samples)
        settle()
        return samples

    def _keep(self, samples: list[Sample]) -> None:
        self._writer.append(samples)
        self._batches += 1
        self._samples += len(samples)

    def _start(self, batch: Batch, commands: Sequenced[Command]) -> tuple[list[Outcome], int]:
        if batch.traced:
            self._tracer.start(traced_daemons(commands))
        outcomes = self._generator.run(
            self._batches,
            commands,
            batch.case.shape,
            deadline=self._plan.deadline,
            seed=self._plan.seed + self._batches,
        )
        return outcomes, self._tracer.stop() if batch.traced else 0


def _is_untold(sample: Sample) -> bool:
    return bool(sample.latency and sample.telemetry and not sample.telemetry.spans)


def can_trace(commands: Sequenced[Command]) -> bool:
    """Whether events can be assigned to a start. In a daemon that serves many, they cannot."""
    requests = [command for command in commands if isinstance(command, Ask)]
    return not requests or (len(commands) == 1 and bool(requests[0].daemons))


def _guest_log(command: Command) -> GuestLog | None:
    return command.guest() if isinstance(command, Execute) and command.guest else None


def unprepared(batch: Batch, number: int, first: int, why: str) -> list[Sample]:
    """The failed samples of a batch whose preparation failed."""
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
        for instance in range(batch.case.instances)
    ]


def traced_daemons(commands: Sequenced[Command]) -> tuple[int, ...]:
    """The daemons to trace: only with a single start is it known whose request they serve."""
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
    """Combine the generator's records of a start, at its readiness and at its end.

    An instance's stamp that is not between the start and its arrival here comes from another
    clock than the host's (gVisor's); the arrival replaces it. A stamp after the deadline is
    ignored.
    """
    reply = outcome.reply
    ready = None if outcome.expired else reply.ready
    if ready is not None and not outcome.intended <= ready <= outcome.seen:
        ready = outcome.seen
    fault = guest.fault if guest and ready else None
    ready = None if fault else ready
    failure = _hung(evidence, guest, reply.output) if evidence else _complaint(outcome)
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
        steps=reply.steps,
        pid=outcome.pid,
        user_ns=ended.user_ns,
        system_ns=ended.system_ns,
        page_faults=ended.page_faults,
        exit_status=ended.status,
        error=None if ready else fault or failure,
        output=reply.output,
        lost=lost,
        guest=guest,
    )


def _hung(evidence: str, guest: GuestLog | None, output: str) -> str:
    """Where a start hangs, and its last line of output; for a VM, its guest's."""
    who, text = ("it", output) if guest is None else ("the guest", guest.console)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines and guest is None:
        return evidence
    last = f'last printed "{lines[-1][:_LAST_LINE_CHARACTERS]}"' if lines else "printed nothing"
    return f"{evidence}; {who} {last}"


def _complaint(outcome: Outcome) -> str:
    if outcome.reply.error is not None:
        return outcome.reply.error
    if outcome.status is None:
        return "not ready"
    if os.WIFSIGNALED(outcome.status):
        return f"ended by signal {os.WTERMSIG(outcome.status)} before it was ready"
    return f"exited with status {os.WEXITSTATUS(outcome.status)} before it was ready"


def drop_caches() -> None:
    """Drop the page cache, dentries and inodes, so that the next start reads from disk."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def revision() -> str:
    """firstlight's version, with the Git revision when run from a checkout."""
    root = checkout()
    if root is None or not shutil.which("git"):
        return __version__
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    described = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return f"{__version__}+{described}" if described else __version__
