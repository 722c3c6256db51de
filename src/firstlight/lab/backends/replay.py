"""An hour of several Python functions' calls, replayed in a minute on the agile runtime.

Their waiting forks are what the pools hold. Gaps between calls are ``SPEED`` times shorter, and the
window of the demand is; calls of one batch keep their distance.
"""

import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from firstlight.agile import Config, Function, protocol
from firstlight.agile.client import Client
from firstlight.agile.config import Pools, PoolSize
from firstlight.errors import longer
from firstlight.host import cgroups
from firstlight.host.workspace import Workspace
from firstlight.lab import replay
from firstlight.lab.backends import Ask, Prepared
from firstlight.lab.backends.agile import Agile, daemon, processes
from firstlight.lab.backends.functions import (
    EVENT,
    GREETING,
    probe_python,
    tree_with_python,
    workplace,
)
from firstlight.lab.load import Trace
from firstlight.model import EndPoint

FOLLOWS = "follows"
FUNCTIONS = 10
SPEED = 60.0
_SEED = 1
_NOON = replay.DAY / 2
_TOGETHER = 0.01
_RATE = 1e4
_LOOK_SECONDS = 0.1
_WARM_SECONDS = longer(60.0)
_MEASURED = 5


@lru_cache
def calls(count: int) -> tuple[tuple[int, ...], Trace]:
    """The function and time of each of this many calls, from noon of the day on."""
    merged = sorted(
        (at, number)
        for number, arrivals in enumerate(replay.day(FUNCTIONS, _SEED))
        for at in arrivals
        if at >= _NOON
    )[:count]
    offsets, before = [0.0], merged[0][0]
    for at, _ in merged[1:]:
        gap = at - before
        offsets.append(offsets[-1] + (gap if gap < _TOGETHER else gap / SPEED))
        before = at
    return tuple(number for _, number in merged), Trace(
        tuple(round(offset * 1e9) for offset in offsets)
    )


@dataclass(frozen=True)
class Replay:
    """``waiting`` forks of each function; None follows its demand.

    Counts: ``idle`` is MiB times seconds of forks and places that waited; ``hits`` and ``misses``
    are calls that found a fork and that did not. Pools that follow also have the simulated day of
    ``lab.replay``, with what a call was measured to take here (``ready``, ``made``): its ``p99``
    and ``day`` (MiB times seconds), and those of the ``fixed`` size. Latencies are in ns.
    """

    waiting: int | None
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION

    @property
    def name(self) -> str:
        """How its pools are sized."""
        return FOLLOWS if self.waiting is None else f"fixed {self.waiting}"

    @property
    def note(self) -> str | None:
        """What that means."""
        if self.waiting is None:
            return (
                f"{self.name}: as many forks wait as the demand of the last {_window():g} s needs, "
                "and as many places as were needed at once so far"
            )
        return f"{self.name}: so many forks of each function wait, and {replay.PLACES} places"

    def probe(self) -> None:
        """Has the needs of the runtime and of Python."""
        Agile("agile").probe()
        probe_python()

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """A runtime at noon: each function was called as often at once as in the morning at most,
        and its forks wait. The last call was a window ago.
        """
        numbers, _ = calls(instances)
        with workplace(workspace) as base:
            config = self._config(instances, workspace, str(base / "state"))
            root = str(tree_with_python(base))
            functions = [
                Function(rootfs=root, kind="python", handler="handler:main", directory="/srv",
                         env={"FUNCTION": str(number)})
                for number in range(FUNCTIONS)
            ]  # fmt: skip
            with daemon(config, workspace) as pid, Client(config.socket) as client:
                for function, most in zip(functions, _morning(), strict=True):
                    client.invoke(function, EVENT)
                    _call_at_once(config, function, most)
                    if self.waiting is not None:
                        client.prepare(function, self.waiting)
                raw = msgspec.json.encode(EVENT)
                served = processes(config, pid)
                starts = [
                    Ask(config.socket, GREETING,
                        protocol.encode(protocol.Invoke(functions[number], raw)).decode(),
                        daemons=served)
                    for number in numbers
                ]  # fmt: skip
                costs = _costs(client, functions) if self.waiting is None else None
                time.sleep(1.3 * config.pools.window)  # it looks four times in a window
                with _Idle(config) as idle:
                    yield Prepared(starts, lambda: idle.counts() | _simulated(costs))

    def _config(self, instances: int, workspace: Workspace, state: str) -> Config:
        if self.waiting is None:
            forks, window = PoolSize(low=0, high=64, rate=_RATE), _window()
        else:
            forks, window = PoolSize(low=self.waiting, high=self.waiting, rate=_RATE), 0.0
        places = PoolSize(low=replay.PLACES, high=replay.PLACES, rate=_RATE)
        return Config(
            name="lab", state=state, instances=10 * instances,
            pools=Pools(network=places, cgroup=places, fork=forks, window=window),
            cgroup=f"{cgroups.name(workspace.run)}/agile",
        )  # fmt: skip


def _morning() -> list[int]:
    """How often each function was called at once at most, before the calls that are played."""
    days = replay.day(FUNCTIONS, _SEED)
    return [min(replay.PLACES, replay.at_once(arrivals, _NOON)) for arrivals in days]


def _call_at_once(config: Config, function: Function, count: int) -> None:
    if not count:
        return
    connected = threading.Barrier(count)

    def call(_: int) -> None:
        with Client(config.socket) as client:
            connected.wait(_WARM_SECONDS)
            client.invoke(function, EVENT)

    with ThreadPoolExecutor(count) as threads:
        list(threads.map(call, range(count)))


def _costs(client: Client, functions: list[Function]) -> replay.Costs | None:
    """What a call takes that finds a waiting fork, and one that does not; None if not seen."""
    took: dict[bool, list[int]] = {True: [], False: []}
    for _ in range(_MEASURED):
        for function in functions:
            for _ in range(2):  # the second comes before a fork is made for it
                result = client.invoke(function, EVENT)
                took[result.warm].append(result.began - result.requested)
    if not took[True] or not took[False]:
        return None
    ready, made = (statistics.median(took[warm]) / 1e9 for warm in (True, False))
    return replay.Costs(ready, max(made, ready))


def _simulated(costs: replay.Costs | None) -> dict[str, float]:
    if costs is None:
        return {}
    compared = replay.compared(costs)
    return {
        "ready": costs.ready * 1e9, "made": costs.made * 1e9, "size": compared.size,
        "p99": compared.follows.p99 * 1e9, "day": compared.follows.idle,
        "fixed p99": compared.fixed.p99 * 1e9, "fixed day": compared.fixed.idle,
        "functions": replay.FUNCTIONS,
    }  # fmt: skip


def _window() -> float:
    return Pools().window / SPEED


class _Idle:
    """Looks at the pools of forks and of their places while the calls come."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stop = threading.Event()
        self._idle = 0.0
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "_Idle":
        self._before = self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def counts(self) -> dict[str, float]:
        """Of the batch, up to now."""
        self._end()
        _, hits, misses = self._look()
        return {"idle": self._idle, "hits": hits - self._before[1],
                "misses": misses - self._before[2]}  # fmt: skip

    def _end(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _look(self) -> tuple[float, int, int]:
        """The MiB that wait, and the hits and misses of forks."""
        with Client(self._config.socket) as client:
            pools = client.pools()
        forks = [pool for pool in pools if pool.name.startswith("fork ")]
        places = sum(pool.ready for pool in pools if pool.name.startswith("place of "))
        waiting = sum(pool.ready for pool in forks)
        return (
            waiting * replay.FORK_MEBIBYTES + places * replay.PLACE_MEBIBYTES,
            sum(pool.hits for pool in forks), sum(pool.misses for pool in forks),
        )  # fmt: skip

    def _watch(self) -> None:
        at, held = time.monotonic(), self._before[0]
        while not self._stop.wait(_LOOK_SECONDS):
            now = time.monotonic()
            self._idle += held * (now - at)
            at, (held, *_) = now, self._look()
