"""The latest events of instances, and the latest instances that ended."""

import asyncio
import signal
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from firstlight.agile.function import Ended, Happened, Listed

if TYPE_CHECKING:
    from firstlight.agile.instance import Instance

_EVENTS_KEPT, _ENDED_KEPT = 4096, 256


class History:
    """One manager's history. Its events have greater numbers than those of the manager before."""

    def __init__(self) -> None:
        self._events: deque[Happened] = deque(maxlen=_EVENTS_KEPT)
        self._first = self._serial = time.monotonic_ns() // 1000
        self._more = asyncio.Event()
        self._ended: OrderedDict[int, tuple[Instance, Ended, str, int]] = OrderedDict()

    def started(self, instance: "Instance") -> None:
        """Record a start."""
        self._add("started", instance, None, "", time.monotonic_ns())

    def ended(self, instance: "Instance", ended: Ended, at: int = 0) -> None:
        """Record an end, ``at`` ns of CLOCK_MONOTONIC; 0 stands for now."""
        kind = ("out of memory" if ended.out_of_memory else
                "timed out" if ended.timed_out else "ended")  # fmt: skip
        words = _words(instance, ended)
        at = at or time.monotonic_ns()
        self._add(kind, instance, ended, words, at)
        self._ended[instance.number] = instance, ended, words, at
        if len(self._ended) > _ENDED_KEPT:
            self._ended.popitem(last=False)

    def last(self) -> list[Listed]:
        """The latest instances that ended, in the order of their ids."""
        return [listed(*ended) for _, ended in sorted(self._ended.items())]

    def _add(
        self, kind: str, instance: "Instance", ended: Ended | None, words: str, at: int
    ) -> None:
        self._serial += 1
        function = instance.function
        self._events.append(
            Happened(
                serial=self._serial, time=time.time_ns() - (time.monotonic_ns() - at), kind=kind,
                id=instance.id, rootfs=function.rootfs, command=function.command,
                handler=function.handler, name=function.name, pid=instance.pid, ended=ended,
                words=words,
            )
        )  # fmt: skip
        self._more.set()

    async def after(self, serial: int, seconds: float) -> list[Happened]:
        """Wait for events after a serial; returns none if the time is up.

        Their numbers show whether some were dropped. -1 stands for the latest.
        """
        serial = self._serial if serial < 0 else max(serial, self._first)
        until = time.monotonic() + seconds
        while self._serial <= serial and (left := until - time.monotonic()) > 0:
            self._more.clear()
            try:
                async with asyncio.timeout(left):
                    await self._more.wait()
            except TimeoutError:
                break
        return [event for event in self._events if event.serial > serial]


def _words(instance: "Instance", ended: Ended) -> str:
    """How it ended. What is idle, or was only tried, is stopped, and not by its own fault."""
    is_own = ended.signal == signal.SIGKILL and not ended.out_of_memory and not ended.timed_out
    if is_own and instance.state == "stopping":
        return "stopped"
    return ended.words(instance.function.memory, instance.function.lifetime)


def listed(
    instance: "Instance", ended: Ended | None = None, state: str = "", until: int = 0
) -> Listed:
    """An instance as ``ps`` shows it, without its environment. ``until`` is when it ended."""
    function, began = instance.function, instance.stamps.get("running", 0)
    return Listed(
        id=instance.id, pid=instance.pid, function=function, started=began, ended=ended,
        address=None if instance.address is None else str(instance.address),
        state=state or instance.state,
        age=max(0.0, ((until or time.monotonic_ns()) - began) / 1e9) if began else 0.0,
    )  # fmt: skip
