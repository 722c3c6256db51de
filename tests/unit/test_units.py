import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight import units as wording
from firstlight.model import Interval

UNITS = {"s": 1e9, "ms": 1e6, "µs": 1e3, "ns": 1.0}


@pytest.mark.parametrize(
    ("ns", "words"),
    [
        (0, "0 ns"),
        (850, "850 ns"),
        (310_400, "310 µs"),
        (1_000_000, "1.00 ms"),
        (31_204_000, "31.2 ms"),
        (1_240_000_000, "1.24 s"),
        (12_340_000_000_000, "12\N{NARROW NO-BREAK SPACE}340 s"),
    ],
)
def test_durations_have_three_digits_and_the_unit_that_suits(ns: float, words: str) -> None:
    assert wording.duration(ns) == words


@given(st.floats(min_value=1, max_value=1e15))
def test_a_worded_duration_is_within_a_hundredth(ns: float) -> None:
    number, unit = wording.duration(ns).rsplit(" ", 1)
    read = float(number.replace("\N{NARROW NO-BREAK SPACE}", "")) * UNITS[unit]
    assert read == pytest.approx(ns, rel=0.5 if ns < 1e3 else 0.01)


def test_an_interval_is_in_the_unit_of_its_estimate() -> None:
    words = wording.duration_interval(Interval(990e6, 870e6, 1_200e6))
    assert words == "990 ms (870–1200)"


def test_an_interval_of_no_width_is_not_shown() -> None:
    assert wording.duration_interval(Interval(175e6, 175e6, 175e6)) == "175 ms"
    assert wording.ratio_interval(Interval(1.38, 1.38, 1.38)) == "1.38×"
    assert wording.percent_interval(Interval(0.24, 0.24, 0.24)) == "24 %"


@pytest.mark.parametrize(
    ("share", "words"),
    [(0, "0.0 %"), (0.0004, "<0.1 %"), (0.0994, "9.9 %"), (0.0996, "10 %"), (1, "100 %")],
)
def test_shares_never_read_as_nothing(share: float, words: str) -> None:
    assert wording.percent(share) == words


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("waiting for a CPU", "waiting for a CPU"),
        ("lock: rtnl_mutex (rtnl_newlink)", "waiting for the lock rtnl_mutex (rtnl_newlink)"),
        ("RCU: rcu_barrier", "waiting for RCU in rcu_barrier"),
        ("another process: pipe", "another process: pipe"),
    ],
)
def test_causes_read_as_part_of_a_sentence(cause: str, words: str) -> None:
    assert wording.cause(cause) == words
