"""A running instance, as its manager sees it. The node owns it, so it outlives this process."""

import asyncio
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from firstlight.agile.function import Ended, Function
from firstlight.agile.verify import handles

if TYPE_CHECKING:
    from firstlight.agile.network.networks import Network
    from firstlight.agile.output import Output
    from firstlight.errors import Failed


class Instance:
    """A running instance. A context manager; leaving it ends the instance.

    ``stamps`` are ns of CLOCK_MONOTONIC: ``requested``, each ``wire.Step`` taken, and
    ``running``, when the node learned of it. ``warm`` says whether its sandbox was ready.
    """

    def __init__(
        self, number: int, function: Function, pid: int, address: IPv4Address | None, warm: bool,
        signal: Callable[[int, int], None], hung: "Callable[[], asyncio.Future[Failed]]",
    ) -> None:  # fmt: skip
        """``hung`` is done while the node does not answer."""
        self.number, self.id = number, str(number)
        self.function, self.pid, self.address, self.warm = function, pid, address, warm
        self.state = "running"
        self.stamps: dict[str, int] = {}
        self.stdout: Output | None = None
        self.stderr: Output | None = None
        self._signal, self._hung = signal, hung
        loop = asyncio.get_running_loop()
        self.network: asyncio.Future[Network] = loop.create_future()
        self.ended: asyncio.Future[Ended] = loop.create_future()

    async def wait(self) -> Ended:
        """Wait for its end; returns how it ended. Raises Failed while the node hangs."""
        if not self.ended.done():
            hung = self._hung()
            await asyncio.wait((self.ended, hung), return_when=asyncio.FIRST_COMPLETED)
            if not self.ended.done():
                raise hung.result()
        return self.ended.result()

    def signal(self, number: int) -> None:
        """Send its first process a signal."""
        if not self.ended.done():
            self._signal(self.number, number)

    def _note_stop(self) -> None:
        if self.state == "running":  # not one that is late, which events do not call stopped
            self.state = "stopping"

    def kill(self) -> None:
        """End it and all its processes."""
        self._note_stop()
        self.signal(9)

    async def stop(self, grace: float = 0.0, signal: int = 15) -> Ended:
        """Send it a signal, kill it after ``grace`` seconds, and wait for its end.

        An instance that does not handle the signal is killed at once, because a signal's default
        action does not apply to the first process of a PID namespace. Raises Failed if the node
        hangs.
        """
        self._note_stop()
        if grace > 0 and not self.ended.done() and handles(self.pid, signal):
            self.signal(signal)
            await asyncio.wait([self.ended], timeout=grace)
        self.kill()
        ended = await self.wait()
        for output in (self.stdout, self.stderr):
            if output:
                output.close()
        return ended

    async def __aenter__(self) -> "Instance":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
