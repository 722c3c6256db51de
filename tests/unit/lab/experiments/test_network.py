from hypothesis import given
from hypothesis import strategies as st

from firstlight.lab.backends.network import TRICKS
from firstlight.lab.backends.network_steps import GATEWAY, Container
from firstlight.lab.experiments import Options
from firstlight.lab.experiments.network_setup import NETWORK_SETUP
from firstlight.lab.experiments.network_tricks import NETWORK_TRICKS


def test_network_setup_crosses_method_order_and_instances() -> None:
    points = [case.point for case in NETWORK_SETUP.cases(Options((1, 50)))]
    assert len(points) == 8
    assert {(p["method"], p["order"], p["instances"]) for p in points} == {
        (method, order, instances)
        for method in ("ip", "netlink")
        for order in ("sequential", "parallel")
        for instances in (1, 50)
    }
    assert all(tuple(point) == NETWORK_SETUP.axes for point in points)


def test_network_tricks_measures_each_trick_at_each_number() -> None:
    points = [case.point for case in NETWORK_TRICKS.cases(Options(NETWORK_TRICKS.instances))]
    assert [p["instances"] for p in points[:3]] == [1, 10, 50]
    assert len(points) == 3 * len(TRICKS)
    assert all(tuple(point) == NETWORK_TRICKS.axes for point in points)


def test_every_trick_says_what_it_does_in_one_sentence() -> None:
    for trick in TRICKS.values():
        assert trick.sentence[0].isupper()
        assert trick.sentence.endswith(".")
        assert ". " not in trick.sentence


@given(st.sets(st.integers(0, 999), min_size=2, max_size=50))
def test_instances_have_addresses_of_their_own(indices: set[int]) -> None:
    containers = [Container(index) for index in indices]
    for own in ("name", "links", "indices", "address", "address6"):
        assert len({getattr(each, own) for each in containers}) == len(indices)
    assert GATEWAY not in {each.address for each in containers}
