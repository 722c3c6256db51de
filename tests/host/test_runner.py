"""Runs on the real kernel: of commands that behave, fail and hang, and of runs cut short.

Over 500 lines: all play the same experiment of scripts, some without root.
"""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.laboratory import laboratory, marked, returning_home

from firstlight import store
from firstlight.errors import Failed, FirstlightError, Unsupported
from firstlight.host import cgroups
from firstlight.host.workspace import Workspace
from firstlight.lab import runner
from firstlight.lab.backends import Execute, Prepared
from firstlight.lab.backends.oci import Oci
from firstlight.lab.backends.process import Process
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.lab.load import BURST, Outcome, Sequence, Shape
from firstlight.lab.runner import Plan, sample
from firstlight.lab.schedule import Batch, Schedule
from firstlight.model import Ending, EndPoint, GuestLog, Point, Sample, Step

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
MS = 1_000_000
READY = 'echo "firstlight ready 1"; cat'


@dataclass(frozen=True)
class Scripts:
    """A backend whose instances are one shell script."""

    script: str = ""
    name: str = "scripts"
    end_point: EndPoint = EndPoint.REQUEST_DONE
    note: str | None = None
    missing: str | None = None

    def probe(self) -> None:
        if self.missing:
            raise Unsupported(self.missing, "install it")

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        start = Execute(("/bin/sh", "-c", self.script), workspace.environment)
        yield Prepared([start] * instances)


def experiment(
    *scripts: str, instances: tuple[int, ...] = (2,), shape: Shape = BURST
) -> Experiment:
    cases = [
        Case({"script": script, "instances": count}, Scripts(script), shape)
        for script in scripts
        for count in instances
    ]
    return Experiment(
        name="scripts", question="?", figure="", axes=("script", "instances"),
        cases=lambda _options: cases,
    )  # fmt: skip


def plan(of: Experiment, **more: object) -> Plan:
    settings: dict[str, object] = {"repetitions": 1, "seed": 1, "traced": False, "deadline": 20}
    return Plan(of, Options((1,)), **(settings | more))  # type: ignore[arg-type]


def measured(of: Experiment, out: Path, **more: object) -> store.Run:
    with returning_home():
        runner.run(plan(of, **more), out / "run")
    return store.read(out / "run")


def by_ending(run: store.Run) -> Counter[Ending]:
    return Counter(sample.ending for sample in run.samples)


def links() -> list[str]:
    return sorted(path.name for path in Path("/sys/class/net").iterdir())


def left(run: str) -> list[str]:
    """What a run has left on the host, of all that would carry its name."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    loops = subprocess.check_output(["losetup", "--list", "--noheadings"], text=True).splitlines()
    groups = [each / cgroups.name(run) for each in cgroups.hierarchies()]
    return [
        *(line for line in (*mounts, *loops) if run in line),
        *(str(group) for group in groups if group.exists()),
        *map(str, Path("/run/firstlight").glob(run)),
        *marked(run),
    ]


# The schedule.

points_ = st.lists(
    st.integers(1, 100).map(lambda count: {"instances": count}), min_size=1, max_size=8
).map(lambda drawn: [{**point, "place": place} for place, point in enumerate(drawn)])


def scheduled(points: list[Point], repetitions: int, seed: int, traced: bool) -> list[Batch]:
    cases = [Case(point, Scripts()) for point in points]
    return list(Schedule(cases, seed, lambda _: traced, repetitions).batches())


@given(points_, st.integers(1, 6), st.integers(0, 2**32), st.booleans())
def test_every_point_is_measured_in_every_repetition_as_often(
    points: list[Point], repetitions: int, seed: int, traced: bool
) -> None:
    batches = scheduled(points, repetitions, seed, traced)
    assert [batch.repetition for batch in batches] == sorted(batch.repetition for batch in batches)
    for point in points:
        kinds = (False, True) if traced else (False,)
        for kind in kinds:
            own = [b.repetition for b in batches if b.point == point and b.traced == kind]
            counts = Counter(own)
            assert set(counts) == set(range(repetitions))
            assert len(set(counts.values())) == 1
            assert sum(
                b.case.instances for b in batches if b.point == point and b.traced == kind
            ) >= (3 * repetitions if int(point["instances"]) in (1, 3) else repetitions)
    assert scheduled(points, repetitions, seed, traced) == batches


def test_seed_changes_order_of_points() -> None:
    points: list[Point] = [{"instances": 10, "place": place} for place in range(5)]
    first = {
        tuple(b.point["place"] for b in scheduled(points, 1, seed, False)) for seed in range(20)
    }
    assert len(first) > 10
    batches = scheduled(points, 40, 7, False)
    leaders = {batches[place].point["place"] for place in range(0, len(batches), 5)}
    assert leaders == set(range(5))


# From an outcome to a sample.


def outcome(output: str, **more: object) -> Outcome:
    seen: dict[str, object] = {
        "intended": 1000,
        "spawned": 1100,
        "seen": 5000,
        "exited": 0,
        "user_ns": 0,
    }
    seen |= {"system_ns": 0, "pid": 42, "status": None, "expired": False, "output": output}
    return Outcome(**(seen | more))  # type: ignore[arg-type]


def sampled(output: str, evidence: str | None = None, **more: object) -> Sample:
    seen = outcome(output, **more)
    ended = outcome(output, exited=9000, status=0, user_ns=7, system_ns=8)
    batch = Batch(Case({"instances": 1}, Process()), 3, traced=True)
    return sample(5, 2, 0, batch, seen, ended, evidence, lost=4)


def test_a_sample_has_output_and_spans() -> None:
    sample = sampled("firstlight step netns 1200 1300\nhello\nfirstlight ready 4000\n")
    assert (sample.ending, sample.error) == (Ending.READY, None)
    assert sample.latency == 3000
    assert sample.lateness == 100
    assert sample.steps == (Step("netns", 1200, 1300),)
    assert sample.output == "hello"
    assert (sample.stamps.seen, sample.stamps.stopped) == (5000, 9000)
    assert (sample.user_ns, sample.system_ns, sample.exit_status, sample.lost) == (7, 8, 0, 4)
    assert (sample.index, sample.batch, sample.repetition, sample.traced) == (5, 2, 3, True)


@pytest.mark.parametrize("stamp", [999, 5001, 10**17, 0])
def test_stamp_of_foreign_clock_becomes_its_arrival(stamp: int) -> None:
    assert sampled(f"firstlight ready {stamp}\n").stamps.ready == 5000


@pytest.mark.parametrize(
    "printed",
    ["firstlight ready soon\n", "firstlight ready \n", "firstlight ready -5\n",
     "firstlight ready 4000 or so\n", "firstlight ready 99999999999999999999999\n"],
)  # fmt: skip
def test_malformed_stamp_is_failed_start(printed: str) -> None:
    sample = sampled(printed)
    assert (sample.ending, sample.stamps.ready, sample.error) == (Ending.FAILED, None, "not ready")


def test_a_stamp_whose_line_was_cut_is_not_believed() -> None:
    sample = sampled("firstlight ready 40", seen=0, status=0)
    assert (sample.ending, sample.latency) == (Ending.FAILED, None)
    assert sample.error == "exited with status 0 before it was ready"


@pytest.mark.parametrize(
    ("console", "words"),
    [("Booting\npanic: no init\n\n", 'last printed "panic: no init"'), ("", "printed nothing")],
)
def test_hung_machine_is_reported_with_guest_output(console: str, words: str) -> None:
    hung = outcome("", expired=True, seen=0)
    batch = Batch(Case({"instances": 1}, Process()), 0, traced=False)
    first = sample(5, 2, 0, batch, hung, hung, "hung in x", 0, GuestLog("ticks", console=console))
    assert first.error == f"hung in x; the guest {words}"


def test_a_step_that_makes_no_sense_is_left_out() -> None:
    sample = sampled("firstlight step a b c\nfirstlight step d 1 2\nfirstlight ready 4000\n")
    assert sample.steps == (Step("d", 1, 2),)


@pytest.mark.parametrize(
    ("printed", "more", "ending", "error"),
    [
        ("firstlight error cannot mount: Busy\n", {}, Ending.FAILED, "cannot mount: Busy"),
        ("words\n", {"seen": 0, "status": 9}, Ending.FAILED,
         "ended by signal 9 before it was ready"),
        ("", {"seen": 0, "status": 256}, Ending.FAILED, "exited with status 1 before it was ready"),
        ("", {"seen": 0, "expired": True}, Ending.HUNG, "hung in phase mount"),
        ("firstlight ready 4000\n", {"expired": True}, Ending.HUNG, "hung in phase mount"),
    ],
)  # fmt: skip
def test_a_start_that_was_not_ready_says_why(
    printed: str, more: dict[str, object], ending: Ending, error: str
) -> None:
    sample = sampled(printed, "hung in phase mount" if ending == Ending.HUNG else None, **more)
    assert (sample.ending, sample.error, sample.latency) == (ending, error, None)


@given(st.text())
def test_no_output_breaks_a_sample(printed: str) -> None:
    sample = sampled(printed, seen=5000 if "ready" in printed else 0)
    assert (sample.latency is not None) == (sample.ending == Ending.READY)


# Real runs.


@needs_root
def test_a_run_measures_every_batch_and_leaves_nothing(tmp_path: Path) -> None:
    before = links()
    run = measured(FLOOR_OF_TWO, tmp_path, repetitions=2, traced=True)
    assert by_ending(run) == {Ending.READY: len(run.samples)}
    assert Counter((sample.point["namespaces"], sample.traced) for sample in run.samples) == {
        (name, traced): 4 for name in ("none", "net") for traced in (False, True)
    }
    assert [sample.index for sample in run.samples] == list(range(len(run.samples)))
    assert {number for number, _ in run.span_batches()} == {
        sample.batch for sample in run.samples if sample.traced
    }
    assert run.footer is not None
    assert not run.footer.interrupted
    assert run.header.end_point == EndPoint.FIRST_INSTRUCTION
    assert left(run.header.run) == []
    assert links() == before


FLOOR_OF_TWO = Experiment(
    name="floor", question="?", figure="", axes=("namespaces", "instances"),
    cases=lambda _options: [
        Case({"namespaces": n, "instances": 2}, Process(n)) for n in ("none", "net")
    ],
)  # fmt: skip


@needs_root
def test_starts_that_fail_are_samples_and_the_run_goes_on(tmp_path: Path) -> None:
    of = experiment(
        "echo it broke >&2; exit 3", READY, "echo firstlight error no space; exit 1",
        "kill -SEGV $$",
    )  # fmt: skip
    run = measured(of, tmp_path)
    assert by_ending(run) == {Ending.FAILED: 6, Ending.READY: 2}
    errors = {str(sample.point["script"]): (sample.error, sample.output) for sample in run.samples}
    assert errors["echo it broke >&2; exit 3"] == (
        "exited with status 3 before it was ready", "it broke",
    )  # fmt: skip
    assert errors["echo firstlight error no space; exit 1"] == ("no space", "")
    assert errors["kill -SEGV $$"][0] == "ended by signal 11 before it was ready"


@needs_root
def test_a_start_that_hangs_is_a_sample_with_where_it_hung(tmp_path: Path) -> None:
    fifo = tmp_path / "exec.fifo"
    os.mkfifo(fifo)
    hanging = f"echo so far; cat {fifo}"
    run = measured(experiment(hanging, READY, instances=(1,)), tmp_path, deadline=0.5)
    hung = [sample for sample in run.samples if sample.point["script"] == hanging]
    assert {sample.ending for sample in hung} == {Ending.HUNG}
    assert {sample.output for sample in hung} == {"so far"}
    assert f"cat {fifo}" in str(hung[0].error)
    assert str(hung[0].error).startswith("hung in phase handshake: ")
    assert f"is in openat {fifo}" in str(hung[0].error)
    assert all(sample.exit_status == signal.SIGKILL for sample in hung)
    assert Counter(sample.ending for sample in run.samples)[Ending.READY] == 3


@needs_root
def test_hung_tree_names_most_telling_process(tmp_path: Path) -> None:
    os.mkfifo(fifo := tmp_path / "exec.fifo")
    run = measured(experiment(f"cat {fifo} & sleep 1000", instances=(1,)), tmp_path, deadline=0.5)
    assert str(run.samples[0].error).startswith(f"hung in phase handshake: cat {fifo}")


@needs_root
def test_a_start_that_sleeps_says_so(tmp_path: Path) -> None:
    run = measured(experiment("sleep 1000", instances=(1,)), tmp_path, deadline=0.3)
    assert "sleep 1000" in str(run.samples[0].error)
    assert str(run.samples[0].error).endswith("nanosleep")


def container(runtime: Path) -> Experiment:
    return Experiment(
        name="container-creation", question="?", figure="", axes=("runtime", "instances"),
        cases=lambda _options: [
            Case({"runtime": str(runtime), "instances": 2}, Oci(str(runtime)))
        ],
    )  # fmt: skip


@needs_root
@pytest.mark.parametrize(
    ("script", "ending", "text"),
    [
        ("echo no such luck >&2; exit 1", Ending.FAILED, "exited with status 1"),
        ("sleep 1000", Ending.HUNG, "sleep 1000"),
        ('case "$*" in *run*) runc "$@"; sleep 1000 ;; *) exec runc "$@";; esac', Ending.READY, ""),
        ('case "$*" in *run*) (runc "$@" & ) ; sleep 1000 ;; *) exec runc "$@";; esac',
         Ending.READY, ""),
    ],
)  # fmt: skip
def test_a_runtime_by_its_path_may_fail_hang_or_linger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, ending: Ending, text: str
) -> None:
    monkeypatch.setattr(runner, "_STOP_SECONDS", 1.0)
    runtime = tmp_path / "myrunc"
    runtime.write_text(f"#!/bin/sh\n{script}\n")
    runtime.chmod(0o755)
    before = links()
    run = measured(container(runtime), tmp_path, deadline=2 if ending == Ending.HUNG else 20)
    assert by_ending(run) == {ending: 2}
    assert all(text in (sample.error or "") for sample in run.samples)
    assert left(run.header.run) == []
    assert links() == before


@needs_root
def test_points_that_cannot_run_are_reported_and_the_others_run(tmp_path: Path) -> None:
    cases = [
        Case({"script": READY, "instances": 1}, Scripts(READY)),
        Case({"script": "x", "instances": 1}, Scripts("x", name="x", missing="no x here")),
    ]
    of = Experiment(
        name="scripts", question="?", figure="", axes=("script",), cases=lambda _options: cases
    )
    run = measured(of, tmp_path)
    assert dict(run.header.skipped) == {"x": "no x here (install it)"}
    assert run.header.points == ({"script": READY, "instances": 1},)


def test_experiment_that_cannot_run_makes_nothing(tmp_path: Path) -> None:
    of = Experiment(
        name="scripts", question="?", figure="", axes=(),
        cases=lambda _options: [
            Case({"script": "x", "instances": 1}, Scripts(missing="no x here"))
        ],
    )  # fmt: skip
    with pytest.raises(Unsupported, match="no x here"):
        measured(of, tmp_path)
    assert not (tmp_path / "run").exists()


@needs_root
def test_a_directory_that_is_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("precious")
    with pytest.raises(FirstlightError, match="is not empty"):
        measured(experiment(READY), tmp_path)
    assert (tmp_path / "run" / "mine").read_text() == "precious"


@needs_root
def test_in_sequence_no_two_starts_overlap(tmp_path: Path) -> None:
    run = measured(experiment(READY, instances=(4,), shape=Sequence()), tmp_path)
    starts = sorted(run.samples, key=lambda each: each.instance)
    for sooner, later in pairwise(starts):
        assert sooner.stamps.seen is not None
        assert sooner.stamps.seen <= later.stamps.intended


INTERRUPTED = """
import sys
from pathlib import Path
from firstlight.lab import runner
from firstlight.lab.experiments import Options
from firstlight.lab.experiments.container_creation import CONTAINER_CREATION

class Progress(runner.Silent):
    def begin(self, batch, done):
        print("batch", done, flush=True)

try:
    runner.run(runner.Plan(CONTAINER_CREATION, Options((6,), ("runc",)), 50, 1),
               Path(sys.argv[1]), Progress())
except KeyboardInterrupt:
    sys.exit(130)
"""


@needs_root
@pytest.mark.parametrize("at", ["before", "amid", "later"])
def test_interrupt_keeps_measurements_and_cleans_up(tmp_path: Path, at: str) -> None:
    before = links()
    script = textwrap.dedent(INTERRUPTED)
    process = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "run"], stdout=subprocess.PIPE, text=True,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    batches = {"before": 1, "amid": 2, "later": 4}[at]
    for _ in range(batches):
        assert process.stdout.readline().startswith("batch")
    if at == "amid":  # the batch's runtimes are at work now
        while not any("run" in line for line in marked(name_of(tmp_path / "run"))):
            assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 130, complaints
    assert complaints == ""
    run = store.read(tmp_path / "run")
    assert run.footer is not None
    assert run.footer.interrupted
    assert len(run.samples) in ((batches - 1) * 6, batches * 6)
    assert left(run.header.run) == []
    assert links() == before


class Impatient(runner.Silent):
    """Interrupts a run after some batches."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def begin(self, batch: Batch, done: float) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1


@needs_root
def test_a_run_that_was_interrupted_or_killed_is_continued(tmp_path: Path) -> None:
    out, of = tmp_path / "run", experiment("echo firstlight ready 1", "exit 1")
    with returning_home(), pytest.raises(KeyboardInterrupt):
        runner.run(plan(of, repetitions=3), out, Impatient(3))
    samples = out / "samples.jsonl"
    whole = [msgspec.json.decode(line) for line in samples.read_bytes().splitlines()]
    ready = next(each for each in whole if each["stamps"]["ready"])
    ready["telemetry"] = {"spans": [], "uncertainty": 0}  # as where the clock was set meanwhile
    written = b"".join(msgspec.json.encode(each) + b"\n" for each in whole)
    samples.write_bytes(written[:-9])  # as killed amid a batch
    (out / "footer.json").unlink()
    with returning_home():
        runner.run(plan(of, repetitions=3), out, resume=True)
    run = store.read(out)
    assert [each.index for each in run.samples] == list(range(12))
    batches = {(each.batch, each.point["script"], each.repetition) for each in run.samples}
    assert len(batches) == 6
    assert Counter(script for _, script, _ in batches) == {
        "echo firstlight ready 1": 3,
        "exit 1": 3,
    }
    assert run.footer is not None
    assert not run.footer.interrupted
    assert "continued" in run.footer.warnings[0]
    assert run.footer.warnings[1] == runner.UNTOLD


@needs_root
def test_what_an_interrupt_leaves_half_entered_ends_in_place() -> None:
    """As between a context manager's own code and the ``with`` of its caller."""
    there = []

    def part(place: Workspace) -> Iterator[None]:
        try:
            yield
        finally:
            there.append(place.directory.is_mount())

    def interrupted(place: Workspace) -> None:
        made = part(place)
        next(made)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), laboratory("half-entered") as place:
        interrupted(place)
    assert there == [True]


@needs_root
@pytest.mark.parametrize("more", [{"seed": 2}, {"cold": True}])
def test_a_run_is_continued_only_with_its_own_plan(tmp_path: Path, more: dict[str, object]) -> None:
    of = experiment("echo firstlight ready 1")
    measured(of, tmp_path)
    before = (tmp_path / "run/samples.jsonl").read_bytes()
    with returning_home(), pytest.raises(FirstlightError, match="cannot be continued"):
        runner.run(plan(of, **more), tmp_path / "run", resume=True)
    assert (tmp_path / "run/samples.jsonl").read_bytes() == before


def name_of(directory: Path) -> str:
    return store.read(directory).header.run


@dataclass(frozen=True)
class Dying(Scripts):
    """A backend that cannot clean up, as when a component of its cluster has ended."""

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        with super().prepared(instances, workspace) as prepared:
            yield prepared
        raise Failed("kubelet of the cluster has ended")


@needs_root
def test_starts_before_a_failed_removal_are_kept(tmp_path: Path) -> None:
    of = replace(
        experiment("echo firstlight ready 1"),
        cases=lambda _: [Case({"script": "", "instances": 2}, Dying("echo firstlight ready 1"))],
    )
    with pytest.raises(Failed, match="kubelet"):
        measured(of, tmp_path)
    assert len(store.read(tmp_path / "run").samples) == 2


@dataclass(frozen=True)
class Watched(Scripts):
    """A backend that looks, when it cleans up, for what may still use what it removes."""

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        try:
            with super().prepared(instances, workspace) as prepared:
                yield prepared
        finally:
            assert marked(workspace.run) == []


@needs_root
def test_an_interrupted_start_ends_before_its_backend_cleans_up(tmp_path: Path) -> None:
    script = "kill -INT ${FIRSTLIGHT_LAB%:*}; sleep 1000"
    of = Experiment(
        name="scripts", question="?", figure="", axes=("script", "instances"),
        cases=lambda _options: [Case({"script": script, "instances": 1}, Watched(script))],
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        measured(of, tmp_path)
    run = store.read(tmp_path / "run")
    assert run.footer is not None
    assert run.footer.interrupted


@needs_root
def test_an_error_amid_a_run_leaves_nothing_either(tmp_path: Path) -> None:
    before = links()
    script = f"if mkdir {tmp_path}/first; then {READY}; else kill -KILL $PPID; cat; fi"
    with pytest.raises(FirstlightError, match="the load generator has ended"):
        measured(experiment(script, instances=(1,)), tmp_path, repetitions=2)
    run = store.read(tmp_path / "run")
    assert len(run.samples) == 1
    assert run.footer is not None
    assert run.footer.interrupted
    assert links() == before
    deadline = time.monotonic() + 10
    while left(run.header.run) and time.monotonic() < deadline:
        os.sched_yield()  # its input has ended with the generator
    assert left(run.header.run) == []
