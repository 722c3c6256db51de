"""The resident runtime: starts instances of functions from prepared parts."""

import asyncio
import os
import shutil
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType

from firstlight.agile import coding, environment, logs, rights
from firstlight.agile.config import Config
from firstlight.agile.function import Counts, Ended, Function, Happened, Listed, Result
from firstlight.agile.instance import Instance
from firstlight.agile.journal import Journal
from firstlight.agile.network.networks import Networks
from firstlight.agile.node import kept, wire
from firstlight.agile.node.instances import Instances
from firstlight.agile.node.kept import Item, KeptFork, KeptWorker
from firstlight.agile.node.process import Keepsake, is_running
from firstlight.agile.output import Output, pipes
from firstlight.agile.parts.cgroups import Cgroups
from firstlight.agile.parts.pool import LoadGate
from firstlight.agile.python.forked import Forked
from firstlight.agile.python.sources import Changes
from firstlight.agile.python.zygote import Resources
from firstlight.agile.python.zygotes import Zygotes
from firstlight.agile.session import Session
from firstlight.agile.single_flight import SingleFlight
from firstlight.agile.sockets import open_standard
from firstlight.agile.wasm.resident import Resident
from firstlight.agile.wasm.workers import Wasm
from firstlight.errors import Failed

_FOLLOW_SECONDS = 10.0
_umasks: list[int] = []
"""That of the process before its first runtime, and one for each other that is open."""


class Runtime:
    """The manager of one node. An async context manager. It raises this process's limits of open
    files, which stay.

    ``stay``: the node and its instances survive a kill of this process, and the next runtime of
    that name takes them over; else they end with it. ``rich`` receives clients' connections that
    are not for the node itself.
    """

    def __init__(
        self, config: Config | None = None, stay: bool = False,
        rich: Callable[[int], None] = os.close,
    ) -> None:  # fmt: skip
        self.config = config or Config()
        self._stay, self._rich = stay, rich
        self.journal = Journal(self.config.directory)
        self._networks = Networks(self.config)
        self._gate = LoadGate()
        self._wasms: SingleFlight[Wasm] = SingleFlight()
        self._closing = self._leaves = self._adopted = False
        self._owns_cgroups = self._has_instances = False

    async def __aenter__(self) -> "Runtime":
        rights.check()
        open_standard()
        rights.raise_open_files()
        runs = is_running(self.config)
        self.journal.open(adopt=runs)
        self._adopted = runs and self._stay
        # Until the exit: instances, which are other users, enter directories that are made here.
        _umasks.append(os.umask(0o022))
        try:
            groups = Cgroups(self.config.top_cgroup)
            if not runs:
                groups.check()
                self._networks.check()
                for top in groups.tops:
                    self.journal.record("cgroup", str(top))
            self._cgroups, self._owns_cgroups = groups, True
            groups.open(adopt=runs)
            if not runs:
                self.journal.record("network", self._networks.table, self._networks.anchor)
            await self._networks.open(adopt=runs)
            self._instances = Instances(
                self.config, self._networks, groups, self._gate, self._rich,
                self._take_over,
            )  # fmt: skip
            self._has_instances = True
            self._zygotes = Zygotes(
                Resources(
                    self.config, self._instances, self._networks, groups, self._gate, Changes()
                )
            )
            await self._instances.open(self._stay)
        except BaseException:
            _give_umask_back()
            if runs:  # what could not be taken over goes on
                if self._has_instances:
                    await self._instances.leave()
                self._networks.leave()
                self.journal.leave()
                raise
            if self._has_instances:
                await self._instances.close()
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
        _give_umask_back()
        if kind and self._adopted:  # an error here is no reason to end what it found
            self.leave()
        leaves = self._leaves and (kind is None or self._adopted)
        await (self._zygotes.left() if leaves else self._zygotes.close())
        await self._wasms.close()
        for wasm in self._wasms.values():
            await (wasm.left() if leaves else wasm.close())
        if leaves:
            await self._instances.leave()
            self._networks.leave()
            self.journal.leave()
            return
        await self._instances.close()
        self._remove_all()

    def leave(self) -> None:
        """On exit, end no instance: the next runtime of this name takes them over. Needs ``stay``.

        Handlers at work go on too, but their answers are lost.
        """
        assert self._stay
        self._leaves = True
        self._zygotes.leave()

    def _remove_all(self) -> None:
        self._networks.close()
        if self._owns_cgroups:
            self._cgroups.close()
        remove_files(self.config)
        self.journal.close()

    async def prepare(self, function: Function, sandboxes: int = 0) -> None:
        """Make a function's parts before its first start, and this many complete sandboxes.

        Raises Failed for a function that cannot be started.
        """
        if function.kind == "python":
            await self._zygotes.prepare(function, sandboxes)
            return
        await self._instances.prepare(function, sandboxes)

    async def start(
        self,
        function: Function,
        streams: tuple[int, int, int] | None = None,
        requested: int | None = None,
    ) -> Instance:
        """Start an instance, and return when it is ready.

        ``streams`` are its standard input, output and error. The caller keeps them, and waits for
        the line ``Function.ready``. Without them its input is empty, and its output is
        ``Instance.stdout`` and ``Instance.stderr``. ``requested`` is the time of the request, in ns
        of CLOCK_MONOTONIC. Raises Failed.
        """
        return await self._start(function, streams, requested or time.monotonic_ns(), 0)

    async def _start(
        self, function: Function, streams: tuple[int, int, int] | None, requested: int, flags: int
    ) -> Instance:
        if self._closing:
            raise Failed("the runtime is stopping")
        if function.kind != "command":
            raise Failed(f"a function of kind {function.kind} is not started", "invoke it")
        instance = await self._instances.start(function, streams, requested, flags)
        try:
            await self._instances.publish(instance)
            if function.ready is not None and instance.stdout:
                async with asyncio.timeout(function.timeout):
                    await instance.stdout.until(function.ready.encode())
        except BaseException as error:
            await instance.stop()
            if isinstance(error, TimeoutError):
                raise Failed(f"the instance was not ready in {function.timeout} s") from error
            raise
        return instance

    async def register(self, function: Function) -> tuple[int, int]:
        """Register a function with the node; returns its number and version. Raises Failed."""
        if function.kind != "command":
            raise Failed(f"a function of kind {function.kind} is not started", "invoke it")
        if function.ready is not None:
            raise Failed("only the reader of an instance's output sees when it is ready",
                         "leave ready out, and wait for the line")  # fmt: skip
        registered = await self._instances.registered(function)
        return registered.number, registered.version

    def explain(self, function: Function) -> Failed:
        """Why a part of its starts could not be made."""
        return self._instances.explain(function)

    async def publish(self, identity: str) -> None:
        """Forward its function's ports to an instance; if that fails, end the instance. Raises
        Failed.
        """
        instance = await self.find_instance(identity)
        try:
            await self._instances.publish(instance)
        except BaseException:
            instance.kill()
            raise

    async def invoke(
        self, function: Function, event: object, requested: int | None = None
    ) -> Result:
        """Run a handler on an event, in a new instance. Raises Failed, Unsupported."""
        requested = requested or time.monotonic_ns()
        if function.kind == "command":
            raise Failed("a function of kind command has no handler", "start it")
        if function.kind == "wasm":
            return await (await self._wasm(function)).invoke(event, requested)
        return await self._zygotes.invoke(function, event, requested)

    async def serve(self, function: Function, environment: dict[str, str]) -> Forked:
        """Fork an instance of a Python function that serves events. Raises Failed, Unsupported."""
        if function.kind != "python" or function.serves != "events":
            raise Failed("the function has no handler that serves events", "start it")
        return await self._zygotes.serve(function, environment)

    async def try_handler(self, function: Function) -> None:
        """Import a handler, or compile a module, in a sandbox that ends afterwards.

        Raises ImportFailed for a handler of Python that cannot be imported; Failed, Unsupported.
        """
        if function.kind != "wasm":
            await self._zygotes.try_import(function)
            return
        wasm = Wasm(function, self._resident, lambda _: None)
        try:
            (await wasm.connect()).close()
        finally:
            await wasm.close()

    async def keep(self, function: Function, forks: int) -> None:
        """Start a handler's interpreter and waiting forks up to their mark, or a module's worker.
        They stay for a pool's window, or while an idle function is registered. Raises Failed,
        Unsupported.
        """
        if function.kind == "wasm":
            (await (await self._wasm(function)).connect()).close()
        else:
            await self._zygotes.keep(function, forks)

    def waiting(self, function: Function) -> int:
        """How many forks of a Python function's interpreter wait for an event."""
        return self._zygotes.waiting(function)

    async def release(self, function: Function) -> None:
        """End the warm interpreter of a Python function and its forks, or a module's worker."""
        if function.kind != "wasm":
            await self._zygotes.release(function)
        elif wasm := self._wasms.pop(coding.encode(function)):
            await wasm.close()

    async def attach(self, function: Function) -> socket.socket:
        """Connect to a WebAssembly function's worker; the protocol is ``wasm.wire``. Its messages
        do not pass through this process. Raises Failed, Unsupported.
        """
        if function.kind != "wasm":
            raise Failed(f"a function of kind {function.kind} has no worker", "invoke or start it")
        return await (await self._wasm(function)).connect()

    async def sync(self) -> None:
        """Return when ``running`` and ``pools`` include all that the node told its clients."""
        await self._instances.sync()

    @property
    def observers(self) -> list[Callable[[bool, int], None]]:
        """Functions called at each start: whether its sandbox was ready, and its time in ns."""
        return self._instances.observers

    @property
    def cgroups(self) -> tuple[Path, ...]:
        """The top cgroup of all instances in each hierarchy."""
        return self._cgroups.tops

    def running(self) -> list[Listed]:
        """The running instances."""
        return self._instances.running()

    def instance(self, identity: str) -> Instance:
        """A running instance by its id. Raises Failed."""
        instance = self._instances.get(identity)
        if instance is None:
            raise Failed(f"no instance {identity!r} is running", "list them: firstlight agile ps")
        return instance

    async def find_instance(self, identity: str) -> Instance:
        """A running instance by its id, also one that a client of the node has just started. Raises
        Failed.
        """
        await self._find_running(identity)
        return self.instance(identity)

    async def _find_running(self, identity: str) -> Instance | None:
        """A running instance, including those that the node has not yet reported."""
        if self._instances.get(identity) is None:
            await self.sync()
        return self._instances.get(identity)

    def ended(self) -> list[Listed]:
        """The latest instances that ended, by id."""
        return self._instances.history.last()

    async def events(self, after: int = 0, seconds: float = 0.0) -> list[Happened]:
        """Wait for events after a serial; -1 stands for the newest."""
        return await self._instances.history.after(after, seconds)

    async def keep_logs(self) -> None:
        """Start to log the output of detached instances. Raises Failed."""
        await self._instances.keep_logs()

    async def detach(self, function: Function) -> Instance:
        """Start an instance that outlives this process, and log its output. Raises Failed.

        Its input is empty; read its output by ``logs``.
        """
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        flags = wire.DETACHED | wire.KEEP_LOG
        try:
            return await self._start(function, (null, null, null), time.monotonic_ns(), flags)
        finally:
            os.close(null)

    async def log_part(
        self, identity: str, position: logs.Position, seconds: float
    ) -> tuple[bytes, logs.Position, bool]:
        """Log lines of a detached instance, as ``logs.following`` returns them. Raises Failed."""
        running = await self._find_running(identity)
        ended = [each.started for each in self.ended() if each.id == identity]
        now = time.monotonic_ns()
        started = running.stamps.get("running", now) if running else max(ended, default=0)
        return await logs.following(self.config, identity, position, seconds, started)

    async def logs(self, identity: str, follow: bool = False) -> AsyncIterator[logs.Line]:
        """The log lines of a detached instance, until it ends if ``follow``. Raises Failed."""
        position, ended = (0, 0), False
        while not ended:
            text, position, ended = await self.log_part(
                identity, position, _FOLLOW_SECONDS if follow else 0.0
            )
            for line in logs.lines(text):
                yield line
            if not text and not follow:
                return

    async def execute(
        self, identity: str, command: tuple[str, ...], env: dict[str, str] | None = None,
        directory: str = "/",
    ) -> Session:  # fmt: skip
        """Run a program in a running instance, confined as its own are. Raises Failed.

        Its environment is that of the instance's first process, with ``env`` added.
        """
        instance = await self.find_instance(identity)
        own = await asyncio.to_thread(environment.of, instance.pid)
        words = wire.words(command, own | (env or {}), directory)
        ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        outputs, streams = pipes()

        def on_end(status: int) -> None:
            if not ended.done():
                ended.set_result(Ended.of(status))

        try:
            null, out, err = streams
            answer = await self._instances.execute(instance, words, (null, out, err), on_end)
        except BaseException:
            for output in outputs:
                output.close()
            raise
        finally:
            for descriptor in (words, *streams):
                os.close(descriptor)
        return Session(answer.pid, outputs[0], outputs[1], ended)

    def pools(self) -> list[Counts]:
        """The counts of each pool."""
        return [*self._instances.counts(), *self._zygotes.counts()]

    @property
    def node(self) -> int:
        """The pid of the node, or -1."""
        return self._instances.pid

    async def _wasm(self, function: Function) -> Wasm:
        async def made() -> Wasm:
            function.check()
            return Wasm(function, self._resident, self._wasms.forget)

        return await self._wasms.get(coding.encode(function), made)

    async def _resident(self, function: Function, tree: int) -> Resident:
        """Start an instance with a detached tree as its root, without a network."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        outputs, streams = pipes()
        outputs[0].close()
        try:
            given = (theirs.fileno(), streams[1], streams[2])
            instance = await self._instances.start_on(function, tree, given)
        except BaseException:
            ours.close()
            outputs[1].close()
            raise
        finally:
            for descriptor in streams:
                os.close(descriptor)
            theirs.close()
        return Resident(instance, ours, outputs[1], self._instances.keep)

    async def _take_over(self, items: list[tuple[Keepsake, list[int]]]) -> set[str]:
        """Take over an earlier manager's handlers; returns the names of the cgroups in use."""
        read = kept.read(items)
        known = {item.what.instance for item in read if not isinstance(item.what, KeptFork)}
        for instance in self._instances.only():
            if instance.number not in known:
                instance.kill()  # its handler is not imported, or its module not compiled
        for item in read:
            if isinstance(item.what, KeptWorker):
                self._take_over_worker(item.what, item)
        return await self._zygotes.take_over(read)

    def _take_over_worker(self, what: KeptWorker, item: Item) -> None:
        instance = self._instances.get(str(what.instance))
        if instance is None:
            item.drop()
            return
        note, control, errors = item.descriptors
        keep = self._instances.keep
        worker = Resident(instance, socket.socket(fileno=control), Output(errors), keep)
        worker.take_over(item.keepsake, note)
        if item.marked:
            return  # it serves its open connections
        wasm = Wasm(what.function, self._resident, self._wasms.forget)
        wasm.take_over(worker, what.identity)
        self._wasms.put(coding.encode(what.function), wasm)


def remove_files(config: Config) -> None:
    """Remove what an ended runtime has in its directory, except its journal."""
    for name in ("skeleton", "volumes"):
        shutil.rmtree(config.directory / name, ignore_errors=True)
    for name in ("socket", "node", "serial"):
        (config.directory / name).unlink(missing_ok=True)
    logs.remove(config)


def _give_umask_back() -> None:
    """At the end of the process's last runtime."""
    if len(_umasks) > 1:
        _umasks.pop()
    else:
        os.umask(_umasks.pop())
