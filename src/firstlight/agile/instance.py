"""A running instance, and the sandbox that it was before."""

import asyncio

from firstlight.agile.cgroups import Cgroup
from firstlight.agile.function import Ended, Function
from firstlight.agile.network import Network
from firstlight.agile.output import Output
from firstlight.agile.spawner import Child


class Sandbox:
    """A child with its parts: everything is done but the exec."""

    def __init__(self, child: Child, network: Network, cgroup: Cgroup) -> None:
        self.child, self.network, self.cgroup = child, network, cgroup


class Instance:
    """One running instance. Leaving it as a context ends it.

    ``stamps`` are ns of CLOCK_MONOTONIC: ``requested``, each step of ``wire.Step`` that was
    taken, and ``running``, when the runtime knew it. ``warm`` says whether it was waiting.
    """

    def __init__(
        self, number: int, function: Function, sandbox: Sandbox, warm: bool, outputs: list[Output]
    ) -> None:
        self.id = str(number)
        self.function, self.warm = function, warm
        self.pid = sandbox.child.pid
        self.address = sandbox.network.address
        self.stamps: dict[str, int] = {}
        self.stdout: Output | None = outputs[0] if outputs else None
        self.stderr: Output | None = outputs[1] if outputs else None
        self._child = sandbox.child
        self.ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()

    async def wait(self) -> Ended:
        """How it ended, when it has, and its parts are back or gone."""
        return await asyncio.shield(self.ended)

    def kill(self) -> None:
        """End it and all its processes."""
        self._child.kill()

    async def stop(self) -> Ended:
        """Kill it and wait for its end."""
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
