"""A guest's clock on the host's line."""

from dataclasses import dataclass

from hypothesis import assume, given
from hypothesis import strategies as st

from firstlight.lab.guests import Reading
from firstlight.lab.guests.clock import HOST, Offset, place
from firstlight.model import Step

NS = st.integers(0, 10**12)
SHORT = st.integers(0, 10**9)


@dataclass(frozen=True)
class World:
    """A boot that really was: when the machine was entered, and each event on both clocks."""

    entered: int
    zero: int  # the guest's clock read 0 then, on the host's line
    events: list[tuple[int, int]]  # guest's stamp; how much later the host saw it

    @property
    def reading(self) -> Reading:
        spans = tuple(Step("a", guest, guest) for guest, _ in self.events)
        anchors = tuple((guest + self.zero + late, guest) for guest, late in self.events)
        return Reading("guest", spans, anchors)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    entered = draw(NS)
    zero = entered + draw(st.integers(-(10**9), 10**9))
    times = draw(st.lists(SHORT, min_size=1, max_size=20).map(sorted))
    events = [(entered - zero + time, draw(SHORT)) for time in times]
    return World(entered, zero, events)


@given(worlds())
def test_the_true_offset_is_within_the_uncertainty(world: World) -> None:
    result = place(world.reading, world.entered)
    assert result is not None
    assert abs(result.value - world.zero) <= result.uncertainty


@given(worlds(), st.floats(0.5, 2.0))
def test_guest_events_precede_host_sight(world: World, rate: float) -> None:
    true = world.reading
    drifting = Reading(
        "guest",
        tuple(Step(s.name, round(s.start * rate), round(s.end * rate)) for s in true.spans),
        tuple((host, round(guest * rate)) for host, guest in true.anchors),
    )
    result = place(drifting, world.entered)
    assert result is not None
    assert result.uncertainty >= 0
    assert all(guest + result.value <= host for host, guest in drifting.anchors)


@given(worlds())
def test_clock_uncertainty_is_bounded_by_quickest_line(
    world: World,
) -> None:
    assume(world.zero == world.entered or world.zero < world.entered)
    began = World(world.zero, world.zero, world.events)
    reading = Reading(
        "guest", (Step("firmware", 0, 1), *began.reading.spans), began.reading.anchors
    )
    result = place(reading, began.entered)
    assert result is not None
    assert result.uncertainty <= min(late for _, late in began.events) // 2 + 1


def test_the_middle_is_taken() -> None:
    reading = Reading("guest", (Step("a", 100, 150),), ((1_300, 200), (1_250, 210)))
    assert place(reading, 1_000) == Offset(970, 70)  # between 900 and 1040


def test_crossed_bounds_tell_by_how_much() -> None:
    reading = Reading("guest", (Step("a", 0, 50),), ((1_040, 50),))
    assert place(reading, 1_000) == Offset(990, 10)


def test_nothing_ties_the_clocks() -> None:
    assert place(Reading("guest", (Step("a", 0, 1),)), 1_000) is None
    assert place(Reading("guest", (), ((10, 5),)), None) is None


def test_the_hosts_own_stamps_stay() -> None:
    assert place(Reading(HOST, (Step("a", 5, 6),)), None) == Offset(0, 0)
