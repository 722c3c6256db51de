"""Which batches are measured: within a budget, and after an interrupt."""

import random
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.errors import FirstlightError
from firstlight.host.workspace import Workspace
from firstlight.lab import runner
from firstlight.lab.backends import Prepared
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.lab.schedule import LEAST, Batch, Schedule
from firstlight.model import Ending, EndPoint, Point, Sample, Stamps

MS = 1_000_000


@dataclass(frozen=True)
class Nothing:
    """A backend that is never asked."""

    name: str = "nothing"
    end_point: EndPoint = EndPoint.EXIT
    note: str | None = None

    def probe(self) -> None:
        """Needs nothing."""

    def prepared(self, instances: int, workspace: Workspace) -> AbstractContextManager[Prepared]:
        raise NotImplementedError


def sample(batch: Batch, number: int, latency: int) -> Sample:
    return Sample(
        index=0, batch=number, instance=0, repetition=batch.repetition, point=batch.point,
        traced=batch.traced, ending=Ending.READY, stamps=Stamps(0, 0, latency, latency),
    )  # fmt: skip


@dataclass
class Machine:
    """Measures a schedule: how long a batch takes, and how much its latency varies, by point."""

    seconds: dict[str, float]
    spread: dict[str, float] = field(default_factory=dict)
    now: float = 0.0
    samples: list[Sample] = field(default_factory=list)

    def schedule(self, budget: float | None, **more: object) -> Schedule:
        cases = [Case({"name": name, "instances": 3}, Nothing()) for name in self.seconds]
        return Schedule(
            cases, 1, lambda _: False, budget=budget, clock=lambda: self.now,
            **({"repetitions": None} | more),  # type: ignore[arg-type]
        )  # fmt: skip

    def measure(self, schedule: Schedule, most: int = 10_000) -> dict[str, int]:
        """How many batches each point had, of the first ``most``."""
        chance = random.Random(7)
        count = dict.fromkeys(self.seconds, 0)
        for number, batch in enumerate(schedule.batches()):
            if number == most:
                break
            name = str(batch.point["name"])
            self.now += self.seconds[name]
            spread = self.spread.get(name, 0.0)
            took = [round(MS * (1 + spread * chance.random())) for _ in range(3)]
            place = len(self.samples) // 3
            samples = [sample(batch, place, latency) for latency in took]
            self.samples += samples
            schedule.ended(batch, samples, self.seconds[name])
            count[name] += 1
        return count


@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=6), st.floats(1, 100), st.integers(1, 5))
def test_budget_is_exceeded_by_one_batch_at_most(
    seconds: list[float], budget: float, most: int
) -> None:
    machine = Machine({str(place): each for place, each in enumerate(seconds)})
    count = machine.measure(machine.schedule(budget, repetitions=most))
    assert machine.now <= budget + max(seconds)
    assert all(each <= most for each in count.values())


def test_the_first_batch_is_measured_however_small_the_budget() -> None:
    machine = Machine({"a": 1.0, "b": 1.0})
    schedule = machine.schedule(1e-4)
    machine.now = 1.0  # making the workspace took longer
    assert sum(machine.measure(schedule).values()) == 1


def test_budget_begins_with_fewest_background_instances() -> None:
    points: list[Point] = [{"background": each, "instances": 1} for each in (1000, 0, 500, 10)]
    cases = [Case(point, Nothing()) for point in points]
    schedule = Schedule(cases, 1, lambda _: False, None, budget=60.0, clock=lambda: 0.0)
    batches = schedule.batches()
    assert [next(batches).point["background"] for _ in points] == [0, 10, 500, 1000]


def test_a_budget_begins_with_each_point_once_and_then_traced() -> None:
    cases = [Case({"runtime": name, "instances": 1}, Nothing()) for name in "abc"]
    schedule = Schedule(cases, 1, lambda _: True, None, budget=60.0, clock=lambda: 0.0)
    first = list(islice(schedule.batches(), 9))
    for part, traced in (first[:3], False), (first[3:6], True), (first[6:], False):
        assert {batch.point["runtime"] for batch in part} == set("abc")
        assert all(batch.traced == traced for batch in part)


def test_a_point_that_is_asked_for_twice_is_measured_once() -> None:
    def plan(*backends: str) -> runner.Plan:
        cases = [Case({"runtime": "runc", "instances": 1}, Nothing(name)) for name in backends]
        experiment = Experiment("e", "?", "", ("runtime", "instances"), lambda _: cases)
        return runner.Plan(experiment, Options((1,)), 1, 1, traced=False)

    cases, _ = runner._usable(plan("a", "a"))
    assert len(cases) == 1
    with pytest.raises(FirstlightError, match="two different points are called runtime runc"):
        runner._usable(plan("a", "b"))


def test_most_of_a_budget_goes_to_what_varies_most() -> None:
    machine = Machine({"steady": 1.0, "varying": 1.0}, {"varying": 5.0})
    count = machine.measure(machine.schedule(60.0))
    assert count["steady"] == LEAST
    assert count["varying"] >= 50


def test_repetitions_go_to_least_known_point() -> None:
    """Widths relative to the median: 2 % of 100 ms, 40 % and 10 % of 1 ms."""
    around = {"narrow": (100, 0.01), "wide": (1, 0.2), "middle": (1, 0.05)}
    cases = [Case({"name": name, "instances": 3}, Nothing()) for name in around]
    schedule = Schedule(cases, 1, lambda _: False, None, budget=1000.0, clock=lambda: 0.0)
    chosen: list[str] = []
    for number, batch in enumerate(schedule.batches()):
        name = str(batch.point["name"])
        ms, sway = around[name]
        took = round(ms * MS * (1 + sway * (chosen.count(name) - 1)))
        chosen.append(name)
        schedule.ended(batch, [sample(batch, number, took)], 1.0)
        if len(chosen) > 3 * LEAST:
            break
    assert sorted(chosen[:-1]) == sorted([*around] * LEAST)
    assert chosen[-1] == "wide"


def test_slow_point_leaves_budget_to_others() -> None:
    machine = Machine({"slow": 50.0, "quick": 1.0}, {"slow": 9.0, "quick": 1.0})
    schedule = machine.schedule(60.0)
    count = machine.measure(schedule)
    assert count["slow"] == 1
    assert count["quick"] >= 9
    assert schedule.short() == 1


@pytest.mark.parametrize("most", range(12))
def test_continued_run_has_all_batches(most: int) -> None:
    names = {"a": 1.0, "b": 1.0, "c": 1.0}
    whole = list(Machine(names).schedule(None, repetitions=4).batches())
    machine = Machine(names)
    machine.measure(machine.schedule(None, repetitions=4), most)
    rest = list(machine.schedule(None, repetitions=4, earlier=machine.samples).batches())
    assert rest == whole[most:]


def test_a_run_can_be_continued_with_more_repetitions() -> None:
    machine = Machine({"a": 1.0, "b": 1.0})
    machine.measure(machine.schedule(None, repetitions=2))
    rest = list(machine.schedule(None, repetitions=5, earlier=machine.samples).batches())
    assert {batch.repetition for batch in rest} == {2, 3, 4}
    assert len(rest) == 6


@pytest.mark.parametrize("budget", [None, 100.0])
@pytest.mark.parametrize("ready", [0, 1])
def test_a_run_without_a_ready_start_ends_after_one_repetition(
    budget: float | None, ready: int
) -> None:
    machine = Machine({"one": 1.0, "two": 1.0})
    schedule = machine.schedule(budget, repetitions=4)
    measured = []
    for number, batch in enumerate(schedule.batches()):
        machine.now += 1.0
        stamps = Stamps(0, 0, 5 if number < ready else None, 5)
        ended = msgspec.structs.replace(sample(batch, number, 1), stamps=stamps)
        schedule.ended(batch, [ended], 1.0)
        measured.append(ended)
    assert (len(measured), schedule.is_given_up) == ((8, False) if ready else (2, True))
    # Once its cause is mended, the rest of the run can be measured.
    again = machine.schedule(budget, repetitions=4, earlier=measured)
    assert len(list(again.batches())) == 8 - len(measured)


def test_a_budget_that_ends_early_is_the_reason() -> None:
    machine = Machine({"one": 60.0, "two": 60.0})
    schedule = machine.schedule(60.0)
    for batch in schedule.batches():
        machine.now += 60.0
        failed = msgspec.structs.replace(sample(batch, 0, 1), stamps=Stamps(0, 0, None, 5))
        schedule.ended(batch, [failed], 60.0)
    assert (schedule.short(), schedule.is_given_up) == (2, False)


@pytest.mark.parametrize("earlier", [0, 7])
def test_time_of_run_is_foreseen_from_its_first_round(earlier: int) -> None:
    """Points of other paces; of a continued run, only what is left counts."""
    machine = Machine({"a": 1.0, "b": 8.0, "c": 0.2})
    machine.measure(machine.schedule(None, repetitions=10), earlier)
    schedule = machine.schedule(None, repetitions=10, earlier=machine.samples)
    begun, foreseen = machine.now, []
    assert schedule.done(5.0) == 0.0
    for number, batch in enumerate(schedule.batches()):
        if number > 3:
            foreseen.append((machine.now - begun) / schedule.done(machine.now - begun))
        seconds = machine.seconds[str(batch.point["name"])]
        machine.now += seconds
        schedule.ended(batch, [sample(batch, number, MS)], seconds)
    assert schedule.done(machine.now - begun) == 1.0
    assert foreseen == pytest.approx([machine.now - begun] * len(foreseen))


@pytest.mark.parametrize(("budget", "takes"), [(75.0, 36.8), (20.0, 20.0)])
def test_time_of_a_run_that_may_end_before_its_budget(budget: float, takes: float) -> None:
    """As of --fast, which has both repetitions and a budget."""
    machine = Machine({"a": 1.0, "b": 8.0, "c": 0.2})
    schedule = machine.schedule(budget, repetitions=4)
    machine.measure(schedule, 3)
    assert machine.now / schedule.done(machine.now) == pytest.approx(takes)


def test_a_budget_is_counted_from_the_beginning_of_the_run() -> None:
    """To try what can run took a part of it."""
    machine = Machine({"a": 1.0}, now=40.0)
    schedule = machine.schedule(20.0, begun=30.0)
    assert machine.measure(schedule) == {"a": 9}
    assert schedule.done(9.0) == 0.9


def test_what_could_not_be_traced_is_not_measured_again() -> None:
    point: Point = {"instances": 3}
    untraced = [
        Sample(index=batch, batch=batch, instance=0, repetition=0, point=point, traced=False,
               ending=Ending.READY, stamps=Stamps(0, 0, 5, 5))
        for batch in range(2)
    ]  # fmt: skip
    schedule = Schedule([Case(point, Nothing())], 1, lambda _: True, 1, earlier=untraced)
    assert list(schedule.batches()) == []


@pytest.mark.parametrize("budget", [None, 200.0])
def test_what_is_compared_by_pairs_is_measured_side_by_side(budget: float | None) -> None:
    states = [(storm, state) for storm in ("veth", "mounts") for state in ("met", "mended")]
    cases = [
        Case({"storm": storm, "state": state, "instances": 1}, Nothing())
        for storm, state in states
    ]  # fmt: skip
    now = 0.0
    schedule = Schedule(
        cases, 1, lambda _: True, None if budget else 4, budget=budget, clock=lambda: now,
        beside="state",
    )  # fmt: skip
    batches = []
    for number, batch in enumerate(schedule.batches()):
        now += 1.0
        batches.append(batch)
        schedule.ended(batch, [sample(batch, number, MS)], 1.0)
    assert len(batches) >= 48
    if budget:
        batches = batches[24:]  # in the first round, each point comes once before any again
    blocks = [batches[at : at + 4] for at in range(0, len(batches) - 3, 4)]
    for block in blocks:
        assert len({batch.point["storm"] for batch in block}) == 1
        assert len({(batch.point["state"], batch.traced) for batch in block}) == 4
    assert len({block[0].point["state"] for block in blocks}) == 2


def test_what_takes_long_to_prepare_is_measured_together() -> None:
    cases = [Case({"background": each, "instances": 1}, Nothing()) for each in (0, 10, 100)]
    schedule = Schedule(cases, 1, lambda _: True, 4, together=True)
    batches = list(schedule.batches())
    assert len(batches) == 4 * 3 * 6
    for at in range(0, len(batches), 6):
        block = batches[at : at + 6]
        assert len({batch.point["background"] for batch in block}) == 1
        assert [batch.traced for batch in block].count(True) == 3
