"""The Python functions of a runtime, each with its zygote."""

import asyncio
import logging
import socket
import time
from collections import Counter

from firstlight.agile import coding
from firstlight.agile.function import Counts, Function, Result
from firstlight.agile.network.networks import Network
from firstlight.agile.node.kept import Item, KeptFork, KeptZygote
from firstlight.agile.output import Output
from firstlight.agile.parts.cgroups import Cgroup, Limits
from firstlight.agile.parts.pool import Pool
from firstlight.agile.python import interpreter
from firstlight.agile.python.forked import Forked
from firstlight.agile.python.interpreter import Interpreter
from firstlight.agile.python.place import Place
from firstlight.agile.python.sources import Sources
from firstlight.agile.python.zygote import Resources, Zygote
from firstlight.agile.single_flight import SingleFlight
from firstlight.errors import Failed

_log = logging.getLogger(__name__)


class Zygotes:
    """The zygotes by function, each started by its first request."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._zygotes: SingleFlight[Zygote] = SingleFlight()
        self._cgroup_pools: dict[Limits, Pool[Cgroup]] = {}
        self._ready = asyncio.Event()
        self._retiring: dict[Zygote, asyncio.Future[None]] = {}
        self._limits_unused: set[Limits] = set()
        self._making = Counter[Limits]()
        self._keeper: asyncio.Task[None] | None = None

    async def invoke(self, function: Function, event: object, requested: int) -> Result:
        """Run a handler on an event, in a new fork. Raises Failed, Unsupported."""
        zygote = await self._current(function)
        self._check_room()
        return await zygote.invoke(event, requested)

    async def serve(self, function: Function, environment: dict[str, str]) -> Forked:
        """Make a fork that serves events. Raises Failed, Unsupported."""
        zygote = await self._current(function)
        self._check_room()
        return await zygote.serve(environment)

    def _check_room(self) -> None:
        """Count a fork as an instance. Raises Failed at the limit of instances."""
        forks = sum(zygote.working for zygote in self._all())
        if forks + self._resources.instances.up >= self._resources.config.instances:
            raise Failed("the configured number of instances and sandboxes is reached",
                         "stop some, or configure more instances")  # fmt: skip

    def _make_room(self) -> None:
        """Count a zygote as an instance; zygotes can be at most half of all instances. Raises
        Failed.
        """
        config = self._resources.config
        most = min(config.functions.most, max(1, config.instances // 2))
        if len(self.values()) + self._making.total() < most:
            return
        idle = [zygote for zygote in self.values() if zygote.is_idle]
        if not idle:
            raise Failed(f"{most} interpreters are made, or up and at work",
                         "retry later, or configure more instances")  # fmt: skip
        oldest = min(idle, key=lambda zygote: zygote.used)
        self._zygotes.forget(oldest)
        self._retire(oldest)

    async def try_import(self, function: Function) -> None:
        """Import a function's handler, to check that it can be imported. Raises ImportFailed,
        Failed.
        """
        resources = self._resources
        up = await interpreter.start(function, resources.instances, resources.cgroups)
        try:
            await up.await_import()
        finally:
            up.close()
            await up.instance.wait()

    async def keep(self, function: Function, forks: int) -> None:
        """Start a function's zygote and this many waiting forks. Raises Failed, Unsupported."""
        (await self._current(function)).forks.expect(forks)

    def waiting(self, function: Function) -> int:
        """How many of its forks wait."""
        zygote = self._zygotes.known(coding.encode(function))
        return len(zygote.forks) if zygote else 0

    async def release(self, function: Function) -> None:
        """End a function's zygote, if it is up, and its forks."""
        if zygote := self._zygotes.pop(coding.encode(function)):
            await zygote.close()

    async def prepare(self, function: Function, forks: int) -> None:
        """Start a function's zygote, make places, and this many waiting forks. Raises Failed."""
        await self._cgroups(function).warm()
        await (await self._current(function)).prepare(forks)

    def values(self) -> list[Zygote]:
        """All zygotes that are up."""
        return self._zygotes.values()

    def counts(self) -> list[Counts]:
        """The counts of their pools."""
        pools = [pool for zygote in self.values() for pool in zygote.pools]
        return [pool.counts() for pool in (*self._cgroup_pools.values(), *pools)]

    async def take_over(self, items: list[Item]) -> set[str]:
        """Take over an earlier manager's zygotes; returns the names of the cgroups in use."""
        by_instance: dict[int, Zygote] = {}
        for item in items:
            if isinstance(item.what, KeptZygote) and (
                zygote := await self._take_over(item.what, item)
            ):
                by_instance[item.what.instance] = zygote
        names = set()
        for item in items:
            what = item.what
            if not isinstance(what, KeptFork):
                continue
            if zygote := by_instance.get(what.zygote):
                place, events, outputs = await self._place(what, item)
                zygote.outlive(place, events, outputs, item.marked)
                names.add(str(what.cgroup))
            else:
                item.drop()
        self._keeper = self._keeper or asyncio.get_running_loop().create_task(self._keep())
        self._ready.set()
        return names

    async def _take_over(self, what: KeptZygote, item: Item) -> Zygote | None:
        groups, instances = self._resources.cgroups, self._resources.instances
        instance = instances.get(str(what.instance))
        if instance is None:
            item.drop()
            return None
        control, outputs = socket.socket(fileno=item.descriptors[0]), item.descriptors[1:]
        up = Interpreter(what.function, groups, instance, control, list(map(Output, outputs)))
        up.digest = what.digest
        try:
            up.sources = await asyncio.to_thread(
                Sources, what.function.rootfs, what.files, what.directories
            )
            up.take_over(groups.adopt(what.home), item.keepsake)
        except (OSError, Failed) as error:
            _log.warning("the zygote of %s is ended: %s", what.function.handler, error)
            up.close()
            return None
        zygote = Zygote(self._resources, what.function, self._cgroups(what.function))
        await zygote.take_over(up)
        key = coding.encode(what.function)
        if before := self._zygotes.pop(key):
            self._retire(before)
        self._zygotes.put(key, zygote)
        return zygote

    async def _place(self, what: KeptFork, item: Item) -> tuple[Place, socket.socket, list[Output]]:
        hold, pidfd, namespace, events, *outputs = item.descriptors
        network = Network.from_note(what.network.encode(), namespace)
        await self._resources.networks.adopt(network)
        place = Place(
            what.pid, pidfd, socket.socket(fileno=hold), network,
            self._resources.cgroups.adopt(what.cgroup, entry_fds=True), 0, kept=item.keepsake,
        )  # fmt: skip
        return place, socket.socket(fileno=events), list(map(Output, outputs))

    def leave(self) -> None:
        """Stop without ending anything: the next manager takes over."""
        for zygote in self._all():
            zygote.leave()

    async def left(self) -> None:
        """Stop."""
        zygotes = self._all()
        await self._stop()
        for zygote in zygotes:
            await zygote.left()

    async def close(self) -> None:
        """End all zygotes and forks."""
        zygotes = self._all()
        await self._stop()
        for zygote in {*zygotes, *self.values()}:
            await zygote.close()

    def _all(self) -> list[Zygote]:
        return [*self.values(), *self._retiring]

    async def _current(self, function: Function) -> Zygote:
        await self._ready.wait()  # requests may come during the take-over
        key = coding.encode(function)
        while True:
            zygote = await self._zygotes.get(key, lambda: self._make(function))
            self._resources.changes.read()
            if not await zygote.is_stale():
                return zygote
            if self._zygotes.has(key, zygote):
                _log.info("files of %s have changed", function.handler)
                self._zygotes.forget(zygote)
                self._retire(zygote)

    def _retire(self, zygote: Zygote) -> None:
        task = asyncio.ensure_future(zygote.retire())
        self._retiring[zygote] = task
        task.add_done_callback(lambda _: self._forget_limits(zygote))

    def _forget_limits(self, zygote: Zygote) -> None:
        """Cgroups of its limits are removed with the last function that has these limits."""
        del self._retiring[zygote]
        limits = interpreter.limits(zygote.function)
        if all(interpreter.limits(each.function) != limits for each in self._all()):
            self._limits_unused.add(limits)

    async def _forget_cgroups(self) -> None:
        unused, self._limits_unused = self._limits_unused, set()
        for limits in unused:
            same = self._making[limits] or any(
                interpreter.limits(each.function) == limits for each in self._all()
            )
            if not same and (pool := self._cgroup_pools.pop(limits, None)):
                await pool.close()

    async def _keep(self) -> None:
        """Remove functions that have not been used for long."""
        seconds = self._resources.config.functions.idle_seconds
        window = self._resources.config.pools.window or seconds
        while True:
            await asyncio.sleep(min(seconds, window) / 4)
            self._resources.changes.read()
            await self._forget_cgroups()
            for cgroups in self._cgroup_pools.values():
                cgroups.follow()
            for zygote in self.values():
                zygote.follow()
                if zygote.is_idle and zygote.used < time.monotonic() - seconds:
                    self._zygotes.forget(zygote)
                    self._retire(zygote)

    async def _stop(self) -> None:
        if self._keeper:
            self._keeper.cancel()
        await self._zygotes.close()
        for pool in self._cgroup_pools.values():
            await pool.close()
        for task in list(self._retiring.values()):
            task.cancel()
        await asyncio.gather(*self._retiring.values(), return_exceptions=True)
        self._resources.changes.close()

    async def _make(self, function: Function) -> Zygote:
        function.check()
        limits = interpreter.limits(function)
        self._make_room()
        zygote = Zygote(self._resources, function, self._cgroups(function))
        self._making[limits] += 1
        try:
            await zygote.start()
        except BaseException:
            await zygote.close()
            raise
        finally:
            self._making[limits] -= 1
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
                self._resources.config.pools.window,
            )  # fmt: skip
        return self._cgroup_pools[limits]
