"""The instances that run on a node, and the last of those that have ended."""

import asyncio
import re
import signal
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address

from firstlight.agile.function import Ended, Function, Listed
from firstlight.agile.instance import Instance
from firstlight.agile.node import wire
from firstlight.agile.node.history import History, listed
from firstlight.agile.node.process import Node
from firstlight.agile.node.wire import Answer
from firstlight.errors import Failed

_ENDED_KEPT = 1024
_IDENTITY = re.compile(r"[0-9]{1,20}")


class Running:
    """Instances by number. One whose lifetime is over is killed."""

    def __init__(
        self, node: Callable[[], Node | None], hung: Callable[[], asyncio.Future[Failed]]
    ) -> None:
        """``hung`` is done while the node does not answer."""
        self._node, self._hung = node, hung
        self._running: dict[int, Instance] = {}
        self._deadlines: dict[int, asyncio.TimerHandle] = {}
        self._ended: OrderedDict[int, Instance] = OrderedDict()
        self.history = History()

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[Instance]:
        return iter(list(self._running.values()))

    def __contains__(self, number: int) -> bool:
        return number in self._running

    def __getitem__(self, number: int) -> Instance:
        return self._running[number]

    def get(self, identity: str) -> Instance | None:
        """A running instance, by its id."""
        return self._running.get(int(identity)) if _IDENTITY.fullmatch(identity) else None

    def listed(self) -> list[Listed]:
        """Those that run, in the order of their ids."""
        return [listed(instance) for _, instance in sorted(self._running.items())]

    def add(self, number: int, function: Function, pid: int, address: int, flags: int) -> Instance:
        """A new instance. It has ended if there is no node: its answer was still on the way."""
        instance = Instance(
            number, function, pid, _address(address), bool(flags & wire.WARM), self._signal,
            self._hung,
        )  # fmt: skip
        if self._node():
            self._running[number] = instance
        else:
            instance.ended.set_result(Ended(signal=signal.SIGKILL))
        return instance

    def answered(self, answer: Answer, function: Function) -> Instance:
        """The instance of an answer. Its events may have come before, that of its end too."""
        instance = self._running.get(answer.instance) or self._ended.get(answer.instance)
        instance = instance or self.add(
            answer.instance, function, answer.pid, answer.address, answer.flags
        )
        instance.stamps = answer.stamps
        # One that has ended may have left its network before its start was told.
        instance.address = instance.address or _address(answer.address)
        return instance

    def began(self, instance: Instance, running: int) -> None:
        """It runs since ``running`` (ns of CLOCK_MONOTONIC)."""
        self.history.started(instance)
        if instance.function.lifetime is not None:
            left = instance.function.lifetime - (time.monotonic_ns() - running) / 1e9
            self._deadlines[instance.number] = asyncio.get_running_loop().call_later(
                max(0.0, left), self._signal, instance.number, signal.SIGKILL, wire.TIMED_OUT
            )

    def remove(self, number: int) -> Instance | None:
        """The instance, which has ended; None if it was unknown."""
        if deadline := self._deadlines.pop(number, None):
            deadline.cancel()
        instance = self._running.pop(number, None)
        if instance:
            self._ended[number] = instance
            if len(self._ended) > _ENDED_KEPT:
                self._ended.popitem(last=False)
        return instance

    def lost(self) -> None:
        """The kernel has ended all, with their node."""
        running, self._running = self._running, {}
        for instance in running.values():
            self.history.ended(instance, Ended(signal=signal.SIGKILL))
            if not instance.ended.done():
                instance.ended.set_result(Ended(signal=signal.SIGKILL))
        for deadline in self._deadlines.values():
            deadline.cancel()
        self._deadlines.clear()

    def _signal(self, instance: int, number: int, flags: int = 0) -> None:
        if node := self._node():
            node.signal(instance, number, flags)


def _address(address: int) -> IPv4Address | None:
    """An address as the node writes it."""
    return IPv4Address(address.to_bytes(4, "little")) if address else None
