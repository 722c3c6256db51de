"""Sizes prepared networks for a node and a cluster, by simulation with measured costs.

A node's pods ask for networks one by one and in bursts. One helper makes networks, one at a time:
for the pool while that is below its high mark, after it fell below the low one; and at once for a
pod that finds it empty. So does ``agile.pool`` with ``dry = "build"``. That refilling also waits
for a lull, a second at most, is left out.
"""

import heapq
import math
import random
from dataclasses import dataclass, replace

import msgspec

from firstlight.errors import FirstlightError
from firstlight.store import Run

CNI = "firstlight"
MISSES_MAX = 0.01
"""The share of pods that may find the pool empty."""
_HIGHS = (8, 16, 32, 64, 128, 256, 512)
_RATES = (5.0, 10.0, 25.0, 50.0, 100.0, 200.0, 400.0)
_RESERVED = 3  # of a node's range: its first two addresses and its last
_SEED = 1


class Costs(msgspec.Struct, frozen=True):
    """Measured: making a network, and ADD from a filled pool by the number at once; in seconds."""

    make: float
    add: dict[int, float]


@dataclass(frozen=True)
class Demand:
    """The load of a node's pods: ``pods`` at once, of which ``rate`` per second are replaced.

    Every ``burst_every`` seconds ``burst`` more are replaced at once. A pod's address is free again
    ``leaving`` seconds after its end. It lasts ``seconds``.
    """

    pods: int = 500
    rate: float = 2.0
    burst: int = 30
    burst_every: float = 60.0
    leaving: float = 2.0
    seconds: float = 1800.0


@dataclass(frozen=True)
class Pool:
    """Marks and rate, as ``pods.pool`` of the configuration has them."""

    low: int
    high: int
    rate: float


@dataclass(frozen=True)
class PoolOutcome:
    """``waits`` of pods for their network in seconds, sorted; ``busy`` is the helper's share.

    ``addresses`` are the most in use at once: pods', prepared and leaving.
    """

    pods: int
    missed: int
    waits: tuple[float, ...]
    busy: float
    addresses: int

    @property
    def misses(self) -> float:
        """The share of pods that found the pool empty."""
        return self.missed / self.pods if self.pods else 0.0

    def wait(self, q: float) -> float:
        """A quantile of the waits, in seconds."""
        return self.waits[min(int(q * len(self.waits)), len(self.waits) - 1)] if self.waits else 0.0


@dataclass(frozen=True)
class Needs:
    """A node's pool and the length of its range's prefix; None where none of the sizes suffices."""

    pool: Pool | None
    outcome: PoolOutcome
    prefix: int


def costs(run: Run) -> Costs:
    """The costs in a run of cni-burst with the network ``firstlight``. Raises FirstlightError."""
    own = [each for each in run.samples if each.point.get("cni") == CNI]
    making = [each.counts["make_ns"] for each in own if each.counts.get("make_ns")]
    adds: dict[int, list[int]] = {}
    for sample in own:
        if sample.latency is not None and not sample.traced:
            adds.setdefault(int(sample.point["instances"]), []).append(sample.latency)
    if not making or not adds:
        raise FirstlightError(
            f"{run.path} does not say what a prepared network costs",
            f"measure it: firstlight run cni-burst --cni {CNI} --instances 1,30",
        )
    median = {count: sorted(each)[len(each) // 2] / 1e9 for count, each in sorted(adds.items())}
    return Costs(sorted(making)[len(making) // 2] / 1e9, median)


def arrivals(demand: Demand, seed: int = _SEED) -> list[float]:
    """The times at which pods request a network, in seconds: a Poisson process, and bursts."""
    chance = random.Random(seed)  # noqa: S311 - a simulation
    times, now = [], 0.0
    while demand.rate and (now := now + chance.expovariate(demand.rate)) < demand.seconds:
        times.append(now)
    bursts = int(demand.seconds / demand.burst_every) if demand.burst else 0
    for number in range(bursts):
        times += [(number + 0.5) * demand.burst_every] * demand.burst
    return sorted(times)


def simulate(
    pool: Pool, make: float, times: list[float], *, pods: int = 0, leaving: float = 0.0
) -> PoolOutcome:
    """Simulate a pool that is full at first, with requests at these times; ``make`` is in seconds.

    Each pod replaces one of ``pods`` that has just ended.
    """
    ready, refilling, missed, busy = pool.high, False, 0, 0.0
    free = 0.0  # when the helper has made what it was asked for
    coming: list[float] = []  # when networks for the pool are ready, at most one
    gone: list[float] = []  # when the addresses of pods that ended are free
    waits: list[float] = []
    most = pods + pool.high
    for now in times:
        while coming and coming[0] <= now:
            at = heapq.heappop(coming)
            ready += 1
            if ready < pool.high:
                begun = max(free, at - make + 1 / pool.rate, at)
                free, busy = begun + make, busy + make
                heapq.heappush(coming, free)
            else:
                refilling = False
        while gone and gone[0] <= now:
            heapq.heappop(gone)
        if ready:
            ready -= 1
            waits.append(0.0)
        else:
            missed += 1
            begun = max(free, now)
            free, busy = begun + make, busy + make
            waits.append(free - now)
        if ready < pool.low and not refilling:
            refilling = True
            free, busy = max(free, now) + make, busy + make
            heapq.heappush(coming, free)
        heapq.heappush(gone, now + leaving)
        most = max(most, pods + ready + len(coming) + len(gone))
    whole = max(times[-1], free) if times else 0.0
    return PoolOutcome(
        len(times), missed, tuple(sorted(waits)), busy / whole if whole else 0.0, most
    )


def needs(demand: Demand, make: float) -> Needs:
    """The smallest pool, and the slowest refill, with which few enough pods find it empty."""
    times = arrivals(demand)

    def outcome(pool: Pool) -> PoolOutcome:
        return simulate(pool, make, times, pods=demand.pods, leaving=demand.leaving)

    smallest = last = None
    for high in _HIGHS:
        last = Pool(high // 2, high, _RATES[-1])
        if outcome(last).misses <= MISSES_MAX:
            smallest = next(
                pool
                for rate in _RATES
                if outcome(pool := replace(last, rate=rate)).misses <= MISSES_MAX
            )
            break
    assert last
    result = outcome(smallest or last)
    return Needs(smallest, result, prefix(result.addresses))


def prefix(addresses: int) -> int:
    """The length of the prefix of the smallest IPv4 range with so many addresses for pods."""
    return 32 - math.ceil(math.log2(addresses + _RESERVED))


@dataclass(frozen=True)
class ClusterNeeds:
    """``prefix`` is of all pods' range; ``routes`` are each node's; ``watched`` bytes a second.

    The last is what the API server sends to all agents, which follow all Nodes.
    """

    prefix: int
    routes: int
    watched: float


def cluster(
    nodes: int, node_prefix: int, *, node_bytes: int, status_seconds: float
) -> ClusterNeeds:
    """The needs of a cluster of nodes with such ranges.

    A Node is ``node_bytes`` long, and the kubelet updates it every ``status_seconds``.
    """
    return ClusterNeeds(
        node_prefix - math.ceil(math.log2(nodes)),
        nodes - 1,
        nodes * nodes / status_seconds * node_bytes,
    )
