"""The simulation of pools: known cases, and what must hold of any."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import synthetic

from firstlight.analysis import provision
from firstlight.analysis.provision import Demand, Pool
from firstlight.errors import FirstlightError
from firstlight.store import Writer, read

MAKE = 0.01


def test_burst_takes_ready_parts_and_the_rest_queues() -> None:
    outcome = provision.simulate(Pool(2, 4, 100.0), MAKE, [1.0] * 6)
    assert (outcome.pods, outcome.missed) == (6, 2)
    # The pool's own network, wanted when the third pod left one, is made first.
    assert outcome.waits == pytest.approx((0, 0, 0, 0, 2 * MAKE, 3 * MAKE))


def test_no_pod_waits_for_no_time() -> None:
    outcome = provision.simulate(Pool(2, 4, 100.0), MAKE, [])
    assert (outcome.wait(0.5), outcome.misses) == (0.0, 0.0)


def test_pool_refills_at_rate_below_low_mark() -> None:
    pool = Pool(2, 4, 10.0)
    # Three taken at 0 s leave one: made by 0.01, 0.11 and 0.21 s.
    assert provision.simulate(pool, MAKE, [0.0] * 3 + [0.2] * 4).missed == 1
    assert provision.simulate(pool, MAKE, [0.0] * 3 + [0.22] * 4).missed == 0
    # Two taken leave two, which is not below: nothing is made.
    assert provision.simulate(pool, MAKE, [0.0] * 2 + [9.0] * 3).missed == 1


def test_addresses_are_pods_prepared_and_leaving_ones() -> None:
    outcome = provision.simulate(Pool(1, 2, 100.0), MAKE, [0.0, 0.5], pods=10, leaving=1.0)
    assert outcome.addresses == 10 + 2 + 1
    late = provision.simulate(Pool(1, 2, 100.0), MAKE, [0.0, 5.0], pods=10, leaving=1.0)
    assert late.addresses == 10 + 2


@pytest.mark.parametrize(("addresses", "prefix"), [(1, 30), (2, 29), (253, 24), (254, 23)])
def test_a_range_has_room_for_the_gateway_too(addresses: int, prefix: int) -> None:
    assert provision.prefix(addresses) == prefix


def test_a_cluster_needs_its_nodes_ranges() -> None:
    needs = provision.cluster(1000, 24, node_bytes=1000, status_seconds=100)
    assert needs.prefix == 14
    assert needs.routes == 999
    assert needs.watched == 1000 * 1000 / 100 * 1000


@given(
    st.lists(st.floats(0, 60), min_size=1, max_size=60).map(sorted),
    st.sampled_from((4, 8, 16)), st.floats(0.001, 0.5),
)  # fmt: skip
def test_a_larger_pool_is_never_worse(times: list[float], high: int, make: float) -> None:
    small = provision.simulate(Pool(high, high, 1000.0), make, times)
    large = provision.simulate(Pool(64, 64, 1000.0), make, times)
    assert large.missed == 0
    assert small.missed + small.waits.count(0.0) >= len(times) or small.missed
    assert 0 <= small.busy <= 1.0001
    assert all(wait >= 0 for wait in small.waits)


def test_needs_are_the_smallest_that_suffice() -> None:
    needs = provision.needs(Demand(pods=100, rate=1.0, burst=20, seconds=600.0), MAKE)
    assert needs.pool
    assert needs.pool.high == 32
    assert needs.outcome.misses <= provision.MISSES_MAX
    assert needs.prefix == 24
    assert provision.needs(Demand(rate=500.0, seconds=60.0), MAKE).pool is None


def test_costs_come_from_a_run_of_the_plugin(tmp_path: Path) -> None:
    other = synthetic.container_creation(tmp_path / "other")
    with pytest.raises(FirstlightError, match="does not say"):
        provision.costs(other)
    point: dict[str, str | int | float | bool] = {"cni": "firstlight", "instances": 1}
    first = next(each for each in other.samples if each.latency and not each.traced)
    first = msgspec.structs.replace(first, point=point, counts={"make_ns": 2e6})
    axes = ("cni", "instances")
    header = msgspec.structs.replace(
        other.header, experiment="cni-burst", axes=axes, points=(point,)
    )
    with Writer(tmp_path / "run", header) as writer:
        writer.append([first])
    costs = provision.costs(read(tmp_path / "run"))
    assert costs.make == 0.002
    assert first.latency
    assert costs.add == {1: first.latency / 1e9}
