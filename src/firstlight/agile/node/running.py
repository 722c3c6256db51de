"""The instances that run on a node, and the latest that have ended."""

import asyncio
import re
import signal
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address

from firstlight.agile.function import LOST, Function, Listed
from firstlight.agile.instance import Instance
from firstlight.agile.node import wire
from firstlight.agile.node.history import History, listed
from firstlight.agile.node.process import Node
from firstlight.agile.node.wire import Answer
from firstlight.errors import Failed

_ENDED_KEPT = 1024
_IDENTITY = re.compile(r"[0-9]{1,20}")


class Running:
    """Instances by number. An instance is killed when its lifetime is over."""

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
        """The running instances, by id."""
        return [listed(instance) for _, instance in sorted(self._running.items())]

    def add(
        self, number: int, function: Function, pid: int, address: IPv4Address | None, flags: int
    ) -> Instance:
        """A new instance. Without a node it has ended: its answer was still on the way."""
        instance = Instance(
            number, function, pid, address, bool(flags & wire.WARM), self._signal,
            self._hung,
        )  # fmt: skip
        if self._node():
            self._running[number] = instance
        else:
            instance.ended.set_result(LOST)
        return instance

    def note_answer(self, answer: Answer, function: Function) -> Instance:
        """Note an answer's instance. Its events may have arrived before, even that of its end."""
        instance = self._running.get(answer.instance) or self._ended.get(answer.instance)
        instance = instance or self.add(
            answer.instance, function, answer.pid, _address(answer.address), answer.flags
        )
        instance.stamps = answer.stamps
        # A network may have been left before the start of its instance was reported.
        instance.address = instance.address or _address(answer.address)
        return instance

    def began(self, instance: Instance, running: int) -> None:
        """Note that an instance runs since ``running`` (ns of CLOCK_MONOTONIC)."""
        self.history.started(instance)
        if instance.function.lifetime is not None:
            left = instance.function.lifetime - (time.monotonic_ns() - running) / 1e9
            self._deadlines[instance.number] = asyncio.get_running_loop().call_later(
                max(0.0, left), self._signal, instance.number, signal.SIGKILL, wire.TIMED_OUT
            )

    def remove(self, number: int) -> Instance | None:
        """Remove an instance that has ended; returns None if it is unknown."""
        if deadline := self._deadlines.pop(number, None):
            deadline.cancel()
        instance = self._running.pop(number, None)
        if instance:
            self._ended[number] = instance
            if len(self._ended) > _ENDED_KEPT:
                self._ended.popitem(last=False)
        return instance

    def lost(self) -> None:
        """Note that all have ended with their node. The next one's answers are not about them."""
        running, self._running = self._running, {}
        self._ended.clear()
        for instance in running.values():
            self.history.ended(instance, LOST)
            if not instance.ended.done():
                instance.ended.set_result(LOST)
        for deadline in self._deadlines.values():
            deadline.cancel()
        self._deadlines.clear()

    def _signal(self, instance: int, number: int, flags: int = 0) -> None:
        if node := self._node():
            node.signal(instance, number, flags)


def _address(address: int) -> IPv4Address | None:
    """Decode an address as the node encodes it."""
    return IPv4Address(address.to_bytes(4, "little")) if address else None
