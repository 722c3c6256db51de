"""Simulates a day of a node's invocations with pools of waiting forks.

The day is generated from what is published of Azure Functions in July 2019: Shahrad et al.,
"Serverless in the Wild", USENIX ATC 2020, whose trace itself is too large to carry along. Of the
functions, 45 % are called once an hour or less and 81 % once a minute or less; by triggers they are
55 % HTTP, 16 % timers, 15 % queues, 7 % orchestration, 2 % events and 5 % others. Assumptions of
ours: rates are log-uniform between these points, from once a day to ``BUSIEST`` times a day;
requests over HTTP come at random times and follow the sun; a timer fires on the minute; the
others' invocations come in batches of geometric size, ``BATCH`` in the mean, at random times.
"""

import random
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firstlight.agile.config import Pools, PoolSize
from firstlight.agile.parts.demand import Demand

DAY = 86400.0
FUNCTIONS = 40
"""Of a simulated day."""
_SEED, _MOST = 1, 64
BUSIEST = 1e4
"""Invocations a day of the busiest function. The published range goes on; one node's does not."""
BATCH = 8.0
_RATES = ((0.0, 1.0), (0.45, 24.0), (0.81, 1440.0), (1.0, BUSIEST))
_TRIGGERS = {"http": 55, "timer": 16, "batch": 15 + 7 + 2, "other": 5}
_BATCH_SECONDS = 0.001
"""Between two invocations of a batch."""
_TOGETHER_SECONDS = 0.05
PLACES = 16
"""The most places for forks that a function keeps beside its waiting forks."""
FORK_MEBIBYTES, PLACE_MEBIBYTES = 1.9, 0.5
"""What a waiting fork of a small handler costs, with its place, and what a place alone does."""


def day(functions: int, seed: int) -> list[list[float]]:
    """When each of this many functions is called, in seconds of the day."""
    drawn = random.Random(seed)  # noqa: S311 - a schedule, not a secret
    return [
        _arrivals(_rate((number + drawn.random()) / functions), drawn)
        for number in range(functions)
    ]


def _rate(quantile: float) -> float:
    """Invocations a day of the function at this quantile."""
    quantiles, rates = zip(*_RATES, strict=True)
    return float(np.exp(np.interp(quantile, quantiles, np.log(rates))))


def _arrivals(rate: float, drawn: random.Random) -> list[float]:
    [trigger] = drawn.choices(list(_TRIGGERS), list(_TRIGGERS.values()))
    if trigger == "timer":
        period = max(60.0, 60.0 * round(DAY / rate / 60))
        first = 60.0 * drawn.randrange(int(period // 60))
        return [float(at) for at in np.arange(first, DAY, period)]
    batch = BATCH if trigger == "batch" else 1.0
    times, at = list[float](), drawn.expovariate(1.5 * rate / DAY / batch)
    while at < DAY:
        if drawn.random() < (1 + 0.5 * np.sin(2 * np.pi * (at / DAY - 0.25))) / 1.5:  # by the sun
            times.append(at)
            while batch > 1 and drawn.random() > 1 / batch:
                times.append(times[-1] + _BATCH_SECONDS)
        at += drawn.expovariate(1.5 * rate / DAY / batch)
    return sorted(times)


@dataclass(frozen=True)
class Costs:
    """Measured times in seconds: a start from a waiting fork, and one that makes its own."""

    ready: float
    made: float


def at_once(arrivals: list[float], until: float) -> int:
    """The most calls that came within ``_TOGETHER_SECONDS`` before this time of the day."""
    most = first = 0
    for last, at in enumerate(arrivals[: bisect_left(arrivals, until)]):
        while arrivals[first] < at - _TOGETHER_SECONDS:
            first += 1
        most = max(most, last - first + 1)
    return most


@dataclass(frozen=True)
class Day:
    """The result of a policy for a day: what waited, in MiB times seconds; latencies in seconds."""

    idle: float
    latencies: NDArray[np.float64]

    @property
    def p99(self) -> float:
        """Of all functions together."""
        return float(np.quantile(self.latencies, 0.99))


def simulated(calls: list[list[float]], size: PoolSize, window: float, costs: Costs) -> Day:
    """A day with a pool of waiting forks for each function, each sized by the runtime's rule.

    A zygote makes one fork at a time; waiting requests come before the pool. A place is always
    ready: a pool of fixed size has ``PLACES`` beside its forks, one that follows as many as were
    needed at once so far.
    """
    idle, latencies = 0.0, list[float]()
    for arrivals in calls:
        if arrivals:
            simulation = _Simulation(size, window, costs)
            latencies += simulation.run(arrivals)
            idle += simulation.idle
    return Day(idle, np.array(latencies))


@dataclass(frozen=True)
class Compared:
    """A day of pools that follow, and of the smallest fixed ``size`` that has no higher P99."""

    follows: Day
    fixed: Day
    size: int


def compared(costs: Costs) -> Compared:
    """A day of ``FUNCTIONS`` functions, with at most ``_MOST`` waiting forks of each."""
    calls = day(FUNCTIONS, _SEED)
    follows = simulated(calls, PoolSize(low=0, high=_MOST), Pools().window, costs)
    low, high = 1, _MOST
    while low < high:  # a larger pool has no higher P99
        size = (low + high) // 2
        if _fixed(calls, size, costs).p99 <= follows.p99:
            high = size
        else:
            low = size + 1
    return Compared(follows, _fixed(calls, low, costs), low)


def _fixed(calls: list[list[float]], size: int, costs: Costs) -> Day:
    return simulated(calls, PoolSize(low=size, high=size), 0, costs)


class _Simulation:
    """One function's day. The pool is empty before the first call, as the runtime's is."""

    def __init__(self, size: PoolSize, window: float, costs: Costs) -> None:
        self._now = self.idle = 0.0
        self._demand = Demand(size, window, lambda: self._now)
        self._costs, self._ready, self._done = costs, 0, 0.0
        self._places = 1 if self._demand.follows else PLACES
        self._step = max(costs.made - costs.ready, 1e-6)

    def run(self, arrivals: list[float]) -> list[float]:
        """The latency of each call."""
        latencies = []
        self._now = arrivals[0]
        for at in arrivals:
            self._pass(at)
            self._demand.take()
            self._places = max(self._places, min(PLACES, self._demand.out))
            if self._ready:
                self._ready -= 1
                latencies.append(self._costs.ready)
            else:
                self._done = max(self._done, at) + self._step
                latencies.append(self._done - at + self._costs.ready)
        self._pass(DAY)
        return latencies

    def _pass(self, until: float) -> None:
        """Let time pass: the pool is filled, then shrinks as the window passes."""
        while self._now < until:
            target = self._demand.target()
            if self._ready < target:
                end = max(self._done, self._now) + self._step
                if end > until:
                    break
                self._wait(end)
                self._done = end
                self._ready += 1
                self._demand.give()
                continue
            self._demand.settle()
            self._ready = target
            self._wait(min(until, self._now + self._demand.changes()))
        self._wait(max(self._now, until))

    def _wait(self, until: float) -> None:
        waiting = self._ready * FORK_MEBIBYTES + self._places * PLACE_MEBIBYTES
        self.idle += waiting * (until - self._now)
        self._now = until
