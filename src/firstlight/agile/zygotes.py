"""The Python functions of a runtime, each with its zygote."""

from firstlight.agile import coding, interpreter
from firstlight.agile.cgroups import Cgroup, Limits
from firstlight.agile.forked import Forked
from firstlight.agile.function import Counts, Function, Result
from firstlight.agile.pool import Pool
from firstlight.agile.single_flight import SingleFlight
from firstlight.agile.zygote import Resources, Zygote


class Zygotes:
    """The zygotes, by function; each is started by its first request."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._zygotes: SingleFlight[Zygote] = SingleFlight()
        self._cgroup_pools: dict[Limits, Pool[Cgroup]] = {}

    async def invoke(self, function: Function, event: object, requested: int) -> Result:
        """Run a handler on an event, in a fork of its own. Raises Failed, Unsupported."""
        return await (await self._current(function)).invoke(event, requested)

    async def serve(self, function: Function, environment: dict[str, str]) -> Forked:
        """A fork that serves events. Raises Failed, Unsupported."""
        return await (await self._current(function)).serve(environment)

    async def release(self, function: Function) -> None:
        """End a function's zygote, if it is up, and its forks."""
        if zygote := self._zygotes.pop(coding.encode(function)):
            await zygote.close()

    async def prepare(self, function: Function, forks: int) -> None:
        """Start a function's zygote, make places, and this many waiting forks. Raises Failed."""
        await self._cgroups(function).warm()
        await (await self._current(function)).prepare(forks)

    def values(self) -> list[Zygote]:
        """All that are up."""
        return self._zygotes.values()

    def counts(self) -> list[Counts]:
        """What the pools hold and have done."""
        pools = [pool for zygote in self.values() for pool in zygote.pools]
        return [pool.counts() for pool in (*self._cgroup_pools.values(), *pools)]

    async def close(self) -> None:
        """End all zygotes and forks."""
        await self._zygotes.close()
        for pool in self._cgroup_pools.values():
            await pool.close()
        for zygote in self.values():
            await zygote.close()

    async def _current(self, function: Function) -> Zygote:
        return await self._zygotes.get(coding.encode(function), lambda: self._made(function))

    async def _made(self, function: Function) -> Zygote:
        function.check()
        zygote = Zygote(self._resources, function, self._cgroups(function))
        try:
            await zygote.start()
        except BaseException:
            await zygote.close()
            raise
        return zygote

    def _cgroups(self, function: Function) -> Pool[Cgroup]:
        limits = interpreter.limits(function)
        if limits not in self._cgroup_pools:
            groups = self._resources.cgroups

            async def make() -> Cgroup:
                return groups.make(limits)

            self._cgroup_pools[limits] = Pool(
                f"cgroup {limits.memory >> 20} MiB, {limits.cpus:g} CPUs, {limits.pids} pids",
                self._resources.config.pools.cgroup, make, groups.remove, self._resources.gate,
            )  # fmt: skip
        return self._cgroup_pools[limits]
