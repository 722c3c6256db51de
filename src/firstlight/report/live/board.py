"""The content of the live page: the latest starts, the slowest of the hour, the hour by minute."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from heapq import nlargest
from threading import Lock

import msgspec
import numpy as np
from msgspec import Struct

from firstlight.report.live.watched_start import WatchedStart
from firstlight.report.plots import palette

LATEST, SLOWEST = 20, 10
_HOUR_SECONDS, _MINUTE_SECONDS = 3600, 60
_MOST_KEPT = 10_000
"""Starts of the hour whose latencies are kept; on a busier node the oldest are forgotten."""
_MOST_NAMES = 9
_REST = "other"


class Minute(Struct):
    """The traced starts of a minute: how many, and the ns of each phase and cause."""

    at: int
    starts: int = 0
    phases: dict[str, int] = {}
    causes: dict[str, int] = {}


class State(Struct, frozen=True):
    """The data that the page draws. ``minutes`` has those with a traced start; times are in ns,
    colours by name.
    """

    host: str
    now: int
    starts: int
    failed: int
    lost: int
    median: float | None
    p95: float | None
    latest: list[WatchedStart]
    slowest: list[WatchedStart]
    minutes: list[Minute]
    colours: dict[str, str]


class Board:
    """Takes starts on one thread, and shows them on another."""

    def __init__(self, host: str, clock: Callable[[], float] = time.time) -> None:
        self._host, self._clock, self._lock = host, clock, Lock()
        self._hour: deque[tuple[float, WatchedStart]] = deque(maxlen=_MOST_KEPT)
        self._minutes: deque[Minute] = deque()
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self.ended = False

    def add(self, start: WatchedStart) -> None:
        """Add a start, and wake waiting clients."""
        now = self._clock()
        with self._lock:
            self._forget(now)
            # Only the latest and the slowest starts need a waterfall.
            self._hour.append((now, start))
            if len(self._hour) > LATEST:
                self._thin(len(self._hour) - LATEST - 1)
            self._count(start, now)
        self._wake()

    def end(self) -> None:
        """Take no more starts: waiting clients need not wait."""
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        with self._lock:
            waiting = list(self._waiting)
        for loop, event in waiting:
            with suppress(RuntimeError):  # its loop has just ended
                loop.call_soon_threadsafe(event.set)

    @contextmanager
    def changes(self) -> Iterator[asyncio.Event]:
        """An event of the running loop that is set at each start, and at the end."""
        mine = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            self._waiting.add(mine)
        try:
            yield mine[1]
        finally:
            with self._lock:
                self._waiting.discard(mine)

    def state(self) -> bytes:
        """The current State, as JSON."""
        with self._lock:
            self._forget(self._clock())
            starts = [start for _, start in self._hour]
            minutes = [msgspec.structs.replace(each) for each in self._minutes]
        times = [start.latency for start in starts if start.latency is not None]
        median, p95 = map(float, np.quantile(times, (0.5, 0.95))) if times else (None, None)
        slowest = nlargest(SLOWEST, starts, key=lambda start: start.latency or 0)
        leading = _leading(each.phases for each in minutes)
        minutes = [
            msgspec.structs.replace(
                each,
                phases=_largest(each.phases, leading),
                causes=_largest(_classes(each.causes), set(palette.CAUSES)),
            )
            for each in minutes
        ]
        latest = starts[: -LATEST - 1 : -1]
        names = {part.phase for start in (*latest, *slowest) for part in start.stretches}
        names |= {name for each in minutes for name in each.phases}
        return msgspec.json.encode(
            State(
                host=self._host,
                now=int(self._clock()),
                starts=len(starts),
                failed=sum(start.latency is None for start in starts),
                lost=sum(start.lost for start in starts),
                median=median,
                p95=p95,
                latest=latest,
                slowest=[start for start in slowest if start.latency],
                minutes=minutes,
                colours={**palette.CAUSES, **palette.parts(sorted(names))},
            )
        )

    def _forget(self, now: float) -> None:
        while self._hour and now - self._hour[0][0] > _HOUR_SECONDS:
            self._hour.popleft()
        while self._minutes and now - self._minutes[0].at > _HOUR_SECONDS:
            self._minutes.popleft()

    def _thin(self, place: int) -> None:
        """Drop the waterfall of a start that is among neither the latest nor the slowest."""
        kept = nlargest(SLOWEST, (start.latency or 0 for _, start in self._hour))
        at, start = self._hour[place]
        if (start.latency or 0) < kept[-1]:
            self._hour[place] = at, msgspec.structs.replace(start, stretches=())

    def _count(self, start: WatchedStart, now: float) -> None:
        if not start.phases:
            return
        at = int(now) // _MINUTE_SECONDS * _MINUTE_SECONDS
        if not self._minutes or self._minutes[-1].at != at:
            self._minutes.append(Minute(at, phases={}, causes={}))
        minute = self._minutes[-1]
        minute.starts += 1
        for sums, parts in ((minute.phases, start.phases), (minute.causes, start.causes)):
            for name, length in parts.items():
                sums[name] = sums.get(name, 0) + length


def _leading(minutes: Iterable[dict[str, int]]) -> set[str]:
    """The names with the most time in the hour."""
    sums: dict[str, int] = {}
    for each in minutes:
        for name, length in each.items():
            sums[name] = sums.get(name, 0) + length
    return set(nlargest(_MOST_NAMES, sums, key=lambda name: sums[name]))


def _largest(parts: dict[str, int], names: set[str]) -> dict[str, int]:
    """The parts with these names; the rest is one part."""
    shown = {name: length for name, length in parts.items() if name in names}
    if rest := sum(parts.values()) - sum(shown.values()):
        shown[_REST] = shown.get(_REST, 0) + rest
    return shown


def _classes(causes: dict[str, int]) -> dict[str, int]:
    """The time of each kind of cause."""
    sums: dict[str, int] = {}
    for name, length in causes.items():
        kind = palette.cause_class(name)
        sums[kind] = sums.get(kind, 0) + length
    return sums
