"""An hour of several Python functions' calls, replayed in a minute on the agile runtime.

Their waiting forks are what the pools hold. Gaps between calls are ``SPEED`` times shorter, and the
window of the demand is; calls of one batch keep their distance.
"""

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from firstlight.agile import Config, Function, protocol
from firstlight.agile.client import Client
from firstlight.agile.config import Pools, PoolSize
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
_TOGETHER = 0.01
_PLACES = 16
_RATE = 1e4
_LOOK_SECONDS = 0.1
_MEASURED = 5
FORK_MEBIBYTES = 1.9
"""What a waiting fork of a small handler costs, with its place; ``make bench`` measures it."""


@lru_cache
def calls(count: int) -> tuple[tuple[int, ...], Trace]:
    """The function and time of each of this many calls, from noon of the day on."""
    merged = sorted(
        (at, number)
        for number, arrivals in enumerate(replay.day(FUNCTIONS, _SEED))
        for at in arrivals
        if at >= replay.DAY / 2
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
    """``waiting`` forks of each function, or as many as its demand needs: None.

    Counts: ``idle`` is MiB times seconds of forks that waited, ``hits`` and ``misses`` are calls
    that found one and that did not. Of pools that follow there is the simulated day of
    ``lab.replay``, too, with what a call was measured to take here: ``ready`` and ``made``; by
    ``p99``, ``day`` (MiB times seconds), and the same of the ``fixed`` size. Latencies are in ns.
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
                f"{self.name}: as many forks wait as the demand of the last {_window():g} s needs"
            )
        return f"{self.name}: so many forks of each function wait"

    def probe(self) -> None:
        """Has the needs of the runtime and of Python."""
        Agile("agile").probe()
        probe_python()

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """A runtime in which each function has been called, and its forks wait."""
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
                for function in functions:
                    client.invoke(function, EVENT)
                    if self.waiting is not None:
                        client.prepare(function, self.waiting)
                raw = msgspec.Raw(msgspec.json.encode(EVENT))
                served = processes(config, pid)
                starts = [
                    Ask(config.socket, GREETING,
                        protocol.encode(protocol.Invoke(functions[number], raw)).decode(),
                        daemons=served)
                    for number in numbers
                ]  # fmt: skip
                costs = _costs(client, functions) if self.waiting is None else None
                with _Idle(config) as idle:
                    yield Prepared(starts, lambda: idle.counts() | _simulated(costs))

    def _config(self, instances: int, workspace: Workspace, state: str) -> Config:
        if self.waiting is None:
            forks, window = PoolSize(low=0, high=64, rate=_RATE), _window()
        else:
            forks, window = PoolSize(low=self.waiting, high=self.waiting, rate=_RATE), 0.0
        places = PoolSize(low=_PLACES, high=_PLACES, rate=_RATE)
        return Config(
            name="lab", state=state, instances=10 * instances,
            pools=Pools(network=places, cgroup=places, fork=forks, window=window),
            cgroup=f"{cgroups.name(workspace.run)}/agile",
        )  # fmt: skip


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
        "p99": compared.follows.p99 * 1e9, "day": compared.follows.idle * FORK_MEBIBYTES,
        "fixed p99": compared.fixed.p99 * 1e9, "fixed day": compared.fixed.idle * FORK_MEBIBYTES,
        "functions": replay.FUNCTIONS,
    }  # fmt: skip


def _window() -> float:
    return Pools().window / SPEED


class _Idle:
    """Looks at the pools of forks while the calls come."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stop = threading.Event()
        self._seconds = 0.0
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "_Idle":
        self._before = self._forks()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def counts(self) -> dict[str, float]:
        """Of the batch, up to now."""
        self._end()
        _, hits, misses = self._forks()
        return {"idle": self._seconds * FORK_MEBIBYTES, "hits": hits - self._before[1],
                "misses": misses - self._before[2]}  # fmt: skip

    def _end(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _forks(self) -> tuple[int, int, int]:
        with Client(self._config.socket) as client:
            pools = [pool for pool in client.pools() if pool.name.startswith("fork ")]
        ready, hits, misses = (
            sum(getattr(pool, name) for pool in pools) for name in ("ready", "hits", "misses")
        )
        return ready, hits, misses

    def _watch(self) -> None:
        at, ready = time.monotonic(), self._before[0]
        while not self._stop.wait(_LOOK_SECONDS):
            now = time.monotonic()
            self._seconds += ready * (now - at)
            at, (ready, *_) = now, self._forks()
