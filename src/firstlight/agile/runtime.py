"""The resident runtime: starts instances of functions from prepared parts."""

import asyncio
import os
import resource
import shutil
import signal
import socket
import time
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from firstlight.agile import roots, seccomp, wire
from firstlight.agile.cgroups import Cgroup, Cgroups, Limits
from firstlight.agile.config import Config, PoolSize
from firstlight.agile.function import Counts, Ended, Function, Listed, Result
from firstlight.agile.instance import Instance, Sandbox
from firstlight.agile.interpreter import INTERPRETER, ZYGOTE_CALLS
from firstlight.agile.journal import Journal
from firstlight.agile.network import Network, Networks
from firstlight.agile.once import Once
from firstlight.agile.output import Output, pipes
from firstlight.agile.pool import Pool, Traffic
from firstlight.agile.resident import Resident
from firstlight.agile.spawner import Spawner
from firstlight.agile.wasm import Wasm
from firstlight.agile.wire import Flag
from firstlight.agile.zygote import Node, Zygote
from firstlight.errors import Failed, Unsupported

_USUAL_PROFILE = 0
_END_SECONDS = 10.0  # a killed process ends at once, unless the kernel holds it
_RETRY_SECONDS = 0.1


class _Kind:
    """What the instances of one function share: its template and its own used networks."""

    def __init__(self, function: Function, template: int, room: int) -> None:
        self.function, self.template = function, template
        self.room = room  # for used networks
        self.limits = _limits(function)
        self.used: deque[Network] = deque()
        self.start = wire.start(function.command, function.env, function.directory)
        self.flags = Flag.USER_NAMESPACE if function.user_namespace else Flag(0)
        self.sandboxes: Pool[Sandbox]


class Runtime:
    """Pools, spawner and network of one node. An async context manager."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Config()
        self._journal = Journal(self.config.directory)
        self._networks = Networks(self.config)
        self._traffic = Traffic()
        self._kinds: Once[_Kind] = Once()
        self._cgroup_pools: dict[Limits, Pool[Cgroup]] = {}
        self._network_pools: dict[str, Pool[Network]] = {}
        self._zygotes: Once[Zygote] = Once()
        self._wasms: Once[Wasm] = Once()
        self._instances: dict[str, Instance] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._serial = self._count = 0
        self._closing = False
        self._latest_spawner: Spawner | None = None

    async def __aenter__(self) -> "Runtime":
        if os.geteuid() != 0:
            raise Unsupported("the runtime needs root", "run firstlight with sudo")
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._journal.open()
        try:
            groups = Cgroups(self.config.top_cgroup)
            groups.check()
            self._networks.check()
            for top in groups.tops:
                self._journal.record("cgroup", str(top))
            self._cgroups = groups
            groups.open()
            self._journal.record("network", self._networks.table, self._networks.anchor)
            await self._networks.open()
            self._profiles = [seccomp.program(), seccomp.program(ZYGOTE_CALLS)]
            self._latest_spawner = Spawner(self._profiles, self._spawner_lost)
        except BaseException:
            self._remove_all()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing = True
        for instance in self._instances.values():
            instance.kill()
        await self._kinds.close()
        await self._zygotes.close()
        await self._wasms.close()
        for pool in self._all_pools():
            await pool.close()
        for zygote in self._zygotes.values():
            await zygote.close()
        for wasm in self._wasms.values():
            await wasm.close()
        if self._latest_spawner:
            self._latest_spawner.close()
        ends = [instance.ended for instance in self._instances.values()]
        if ends:  # what an instance used is given up only when its end has been heard
            await asyncio.wait(ends, timeout=_END_SECONDS)
        while self._tasks:
            await asyncio.wait(self._tasks)
        for one in self._kinds.values():
            os.close(one.template)
            for network in one.used:
                self._networks.discard(network)
        self._remove_all()

    def _remove_all(self) -> None:
        self._networks.close()
        shutil.rmtree(self.config.directory / "skeleton", ignore_errors=True)
        if hasattr(self, "_cgroups"):
            self._cgroups.close()
        self._journal.close()

    async def prepare(self, function: Function, sandboxes: int = 0) -> None:
        """Make a function's parts before its first start, and that many whole sandboxes.

        Raises Failed for a function that cannot be started.
        """
        if function.kind == "python":
            await self._cgroup_pool(_limits(function)).warm()
            await (await self._zygote(function)).prepare(sandboxes)
            return
        kind = await self._kind(function)
        await self._network_pool(function).warm()
        await self._cgroup_pool(kind.limits).warm()
        await kind.sandboxes.warm(sandboxes)

    async def start(
        self,
        function: Function,
        streams: tuple[int, int, int] | None = None,
        requested: int | None = None,
    ) -> Instance:
        """Start an instance, and return when it is ready.

        ``streams`` are its standard input, output and error, which stay the caller's, as does
        to see ``Function.ready`` there; without them its input is empty and its output is
        ``Instance.stdout`` and ``.stderr``.
        ``requested`` is when it was asked for, in ns of CLOCK_MONOTONIC. Raises Failed.
        """
        requested = requested or time.monotonic_ns()
        with self._traffic:
            if self._closing:
                raise Failed("the runtime is stopping")
            if function.kind != "command":
                raise Failed(f"a function of kind {function.kind} is not started", "invoke it")
            kind = await self._kind(function)
            outputs, theirs = ([], list(streams)) if streams else pipes()
            try:
                sandbox, warm = await self._woken(kind, theirs)
            except BaseException:
                for output in outputs:
                    output.close()
                raise
            finally:
                if not streams:
                    for descriptor in theirs:
                        os.close(descriptor)
        return await self._running(kind, sandbox, warm, outputs, requested)

    async def invoke(
        self, function: Function, event: object, requested: int | None = None
    ) -> Result:
        """Run a handler on an event, in an instance of its own. Raises Failed, Unsupported."""
        requested = requested or time.monotonic_ns()
        if function.kind == "command":
            raise Failed("a function of kind command has no handler", "start it")
        if function.kind == "wasm":
            return await (await self._wasm(function)).invoke(event, requested)
        return await (await self._zygote(function)).invoke(event, requested)

    async def attach(self, function: Function) -> socket.socket:
        """A connection to a WebAssembly function's worker, to speak ``wasm_wire`` on.

        Requests and answers on it do not pass the runtime. Raises Failed, Unsupported.
        """
        if function.kind != "wasm":
            raise Failed(f"a function of kind {function.kind} has no worker", "invoke or start it")
        return await (await self._wasm(function)).connect()

    def running(self) -> list[Listed]:
        """The running instances."""
        return [
            Listed(id=one.id, pid=one.pid, address=_text(one.address),
                   function=one.function, started=one.stamps["running"])
            for one in self._instances.values()
        ]  # fmt: skip

    def instance(self, identity: str) -> Instance:
        """A running instance by its id. Raises Failed."""
        if identity not in self._instances:
            raise Failed(f"no instance {identity!r} is running", "list them: firstlight agile ps")
        return self._instances[identity]

    def pools(self) -> list[Counts]:
        """What each pool holds and has done."""
        return [pool.counts() for pool in self._all_pools()]

    def _all_pools(self) -> list[Pool[Any]]:
        return [
            *(kind.sandboxes for kind in self._kinds.values()),
            *self._network_pools.values(),
            *self._cgroup_pools.values(),
            *(pool for zygote in self._zygotes.values() for pool in zygote.pools),
        ]

    async def _running(
        self, kind: _Kind, sandbox: Sandbox, warm: bool, outputs: list[Output], requested: int
    ) -> Instance:
        self._serial += 1
        instance = Instance(self._serial, kind.function, sandbox, warm, outputs)
        self._instances[instance.id] = instance
        sandbox.child.ended.add_done_callback(
            lambda _: self._task(self._ended(kind, sandbox, instance))
        )
        try:
            if kind.function.ports and instance.address:
                await self._networks.publish(kind.function.ports, instance.address)
            if kind.function.ready is not None and instance.stdout:
                await asyncio.wait_for(
                    instance.stdout.until(kind.function.ready.encode()), kind.function.timeout
                )
        except BaseException as error:
            await instance.stop()
            if isinstance(error, TimeoutError):
                raise Failed(f"the instance was not ready in {kind.function.timeout} s") from error
            raise
        instance.stamps = {
            "requested": requested,
            **{step.name.lower(): stamp for step, stamp in sorted(sandbox.child.stamps.items())},
            "running": time.monotonic_ns(),
        }
        return instance

    async def _woken(self, kind: _Kind, streams: list[int]) -> tuple[Sandbox, bool]:
        """A sandbox that executes the command, and whether it was waiting."""
        while (sandbox := kind.sandboxes.take_ready()) and sandbox.child.ended.done():
            self._discard_sandbox(sandbox)  # something on the host killed it
        warm = sandbox is not None
        if sandbox is None and kind.sandboxes.builds:
            sandbox = await self._assembled(kind, streams)
        else:
            sandbox = sandbox or await kind.sandboxes.wait()
            sandbox.child.wake(kind.start, streams)
        try:
            await sandbox.child.runs
            await sandbox.child.made
        except BaseException:
            self._discard_sandbox(sandbox)
            raise
        return sandbox, warm

    async def _assembled(self, kind: _Kind, streams: list[int] | None = None) -> Sandbox:
        """Parts, and a child that is becoming a sandbox of them; with streams, an instance."""
        if self._count >= self.config.instances:
            raise Failed(f"{self._count} instances and sandboxes are up",
                         "stop some, or configure more instances")  # fmt: skip
        self._count += 1
        try:
            network = await self._network(kind)
            try:
                return await self._spawned(kind, network, streams)
            except BaseException:
                self._networks.discard(network)
                raise
        except BaseException:
            self._count -= 1
            raise

    async def _spawned(self, kind: _Kind, network: Network, streams: list[int] | None) -> Sandbox:
        cgroup, _ = await self._cgroup_pool(kind.limits).take()
        flags = kind.flags | (Flag.CLONE_INTO if self._cgroups.unified else Flag(0))
        function = kind.function
        described = wire.sandbox(
            flags, _USUAL_PROFILE, function.uid, function.gid, function.files,
            f"size={function.scratch},nr_inodes=65536,mode=1777", "instance",
        )  # fmt: skip
        template = kind.template
        try:
            if not self.config.ahead.seccomp:
                self._spawner.load(_USUAL_PROFILE, seccomp.program())
            if not self.config.ahead.root:
                template = await self._rooted(function)
            parts = [template, network.descriptor, *cgroup.descriptors]
            wake = (kind.start, streams) if streams else None
            child = self._spawner.spawn(described, parts, wake)
        except BaseException:
            self._cgroups.remove(cgroup)
            raise
        finally:
            if template != kind.template:
                os.close(template)
        return Sandbox(child, network, cgroup)

    async def _prepared(self, kind: _Kind) -> Sandbox:
        sandbox = await self._assembled(kind)
        try:
            await sandbox.child.made
            await sandbox.child.waits
        except BaseException:
            self._discard_sandbox(sandbox)
            raise
        return sandbox

    def _discard_sandbox(self, sandbox: Sandbox) -> None:
        sandbox.child.kill()
        self._task(self._scrapped(sandbox))

    async def _scrapped(self, sandbox: Sandbox) -> None:
        """The parts of a start that failed are not used again."""
        await sandbox.child.ended
        self._count -= 1
        self._cgroups.remove(sandbox.cgroup)
        self._networks.discard(sandbox.network)

    async def _ended(self, kind: _Kind, sandbox: Sandbox, instance: Instance) -> None:
        news = sandbox.child.ended.result()
        self._count -= 1
        del self._instances[instance.id]
        killed = os.WTERMSIG(news.status) if os.WIFSIGNALED(news.status) else None
        ended = Ended(
            status=None if killed else os.WEXITSTATUS(news.status),
            signal=killed,
            out_of_memory=killed == signal.SIGKILL
            and self._cgroups.ran_out_of_memory(sandbox.cgroup),
            user_ns=news.user,
            system_ns=news.system,
        )
        self._cgroups.remove(sandbox.cgroup)
        if sandbox.network.address:
            await self._withdrawn(kind.function.ports, sandbox.network.address)
        instance.ended.set_result(ended)
        await self._recycle(kind, sandbox.network)

    async def _withdrawn(self, ports: dict[int, int], address: IPv4Address) -> None:
        """No port leads to an address that may be another's next; with the runtime all go."""
        while not self._closing:
            try:
                await self._networks.withdraw(ports, address)
            except Failed:
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return

    async def _network(self, kind: _Kind) -> Network:
        if kind.used:
            return kind.used.popleft()
        network, _ = await self._network_pool(kind.function).take()
        return network

    async def _recycle(self, kind: _Kind, network: Network) -> None:
        """A used network serves its function again if it is proven clean; else it ends."""
        room = len(kind.used) < kind.room
        if (
            room and not self._closing and not kind.function.ports
            and await self._networks.is_as_new(network)
        ):  # fmt: skip
            kind.used.append(network)
        else:
            self._networks.discard(network)

    async def _zygote(self, function: Function) -> Zygote:
        return await self._zygotes.get(_key(function), lambda: self._made_zygote(function))

    async def _made_zygote(self, function: Function) -> Zygote:
        template = await self._rooted(function)
        limits = _limits(function)

        async def take_cgroup() -> Cgroup:
            return (await self._cgroup_pool(limits).take())[0]

        zygote = Zygote(
            Node(self.config, self._networks, self._cgroups, self._traffic,
                 lambda: self._spawner, take_cgroup),
            function, template,
        )  # fmt: skip
        try:
            await zygote.start()
        except BaseException:
            await zygote.close()
            raise
        return zygote

    async def _wasm(self, function: Function) -> Wasm:
        async def made() -> Wasm:
            function.check()
            return Wasm(function, self._resident, self._wasms.forget)

        return await self._wasms.get(_key(function), made)

    async def _resident(self, function: Function, tree: int) -> Resident:
        """An instance on a root file system of its own, a detached tree. It has no network."""
        template = await self._template(tree)
        kind = _Kind(function, template, room=0)
        kind.sandboxes = Pool(
            f"sandbox {' '.join(function.command)}", PoolSize(low=0, high=0),
            lambda: self._prepared(kind), self._discard_sandbox, self._traffic,
        )  # fmt: skip
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        outputs, streams = pipes()
        outputs[0].close()
        try:
            sandbox, warm = await self._woken(kind, [theirs.fileno(), streams[1], streams[2]])
            instance = await self._running(kind, sandbox, warm, [], time.monotonic_ns())
        except BaseException:
            ours.close()
            outputs[1].close()
            raise
        finally:
            for descriptor in streams:
                os.close(descriptor)
            theirs.close()
            os.close(template)
        return Resident(instance, ours, outputs[1])

    async def _rooted(self, function: Function) -> int:
        """A function's template."""
        function.check()
        rootfs = Path(function.rootfs)
        tree = roots.open_root(rootfs, self.config.directory / "skeleton")
        try:
            roots.check_command(rootfs, function.command[0] if function.command else INTERPRETER)
            return await self._template(tree)
        finally:
            os.close(tree)

    async def _kind(self, function: Function) -> _Kind:
        return await self._kinds.get(_key(function), lambda: self._made_kind(function))

    async def _made_kind(self, function: Function) -> _Kind:
        template = await self._rooted(function)
        kind = _Kind(function, template, self.config.pools.network.high)
        kind.sandboxes = Pool(
            f"sandbox {' '.join(function.command)}", self.config.pools.sandbox,
            lambda: self._prepared(kind), self._discard_sandbox, self._traffic,
        )  # fmt: skip
        return kind

    async def _template(self, tree: int) -> int:
        child = self._spawner.template(tree)
        try:
            await child.made
            await child.waits
            return os.open(f"/proc/{child.pid}/ns/mnt", os.O_RDONLY)
        finally:
            child.kill()

    def _network_pool(self, function: Function) -> Pool[Network]:
        reach = function.network
        if reach not in self._network_pools:
            self._network_pools[reach] = Pool(
                f"network {reach}", self.config.pools.network,
                lambda: self._networks.make(reach), self._networks.discard, self._traffic,
            )  # fmt: skip
        return self._network_pools[reach]

    def _cgroup_pool(self, limits: Limits) -> Pool[Cgroup]:
        if limits not in self._cgroup_pools:

            async def make() -> Cgroup:
                return self._cgroups.make(limits)

            self._cgroup_pools[limits] = Pool(
                f"cgroup {limits.memory >> 20} MiB, {limits.cpus:g} CPUs, {limits.pids} pids",
                self.config.pools.cgroup, make, self._cgroups.remove, self._traffic,
            )  # fmt: skip
        return self._cgroup_pools[limits]

    def _spawner_lost(self) -> None:
        """It was killed, and its children with it; another takes its place."""
        for kind in self._kinds.values():
            kind.sandboxes.drain()
        self._latest_spawner = None
        if not self._closing:
            with suppress(Failed):  # then it is for the next request to try, and to tell
                _ = self._spawner

    @property
    def _spawner(self) -> Spawner:
        """Raises Failed if it was killed and another cannot be started."""
        if self._latest_spawner is None:
            self._latest_spawner = Spawner(self._profiles, self._spawner_lost)
        return self._latest_spawner

    def _task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _limits(function: Function) -> Limits:
    return Limits(function.memory, function.cpus, function.pids)


def _key(function: Function) -> bytes:
    try:
        return msgspec.msgpack.encode(function)
    except UnicodeEncodeError as error:
        raise Failed(f"the function's word {error.object!r} is not UTF-8") from error
