"""A node and its instances, seen from their manager.

This module follows the connection to the node: its opening, loss and replacement, starts, and the
node's reports in order. ``running.py`` has the instances, ``stock.py`` their parts, ``generic.py``
the waiting sandboxes, ``registry.py`` the functions.

Over 500 lines: starts, ends, take-overs and losses change the same state in the node's order.
"""

import asyncio
import errno
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address
from typing import Any

from msgspec.structs import replace

from firstlight.agile import environment, seccomp
from firstlight.agile.config import Config
from firstlight.agile.function import Counts, Ended, Function, Listed
from firstlight.agile.instance import Instance
from firstlight.agile.logs import Keeper
from firstlight.agile.network import resolvers
from firstlight.agile.network.networks import Networks
from firstlight.agile.network.used_networks import UsedNetworks
from firstlight.agile.node import definition, liveness, wire
from firstlight.agile.node.history import History
from firstlight.agile.node.process import Keepsake, Node, State
from firstlight.agile.node.registry import Registered, Registry
from firstlight.agile.node.running import Running
from firstlight.agile.node.starter import Starter
from firstlight.agile.node.waiting_sandboxes import GenericSandboxes
from firstlight.agile.node.wire import Answer, AnswerVerb, Event, EventVerb, Flag, Step, refused
from firstlight.agile.output import pipes
from firstlight.agile.parts.cgroups import Cgroups
from firstlight.agile.parts.pool import LoadGate
from firstlight.agile.parts.shelves import Held
from firstlight.agile.parts.stock import Stock
from firstlight.errors import Failed, longer

ZYGOTE_PROFILE, _BASE_PROFILE = 1, 4
ZYGOTE_CALLS = ("setns",)
NO_FLAGS = Flag(0)
_RETRY_SECONDS = 0.1
_END_SECONDS = longer(10.0)
_log = logging.getLogger(__name__)


Inherit = Callable[[list[tuple[Keepsake, list[int]]]], Awaitable[set[str]]]
"""Takes over what the node has kept; returns the names of the cgroups that it uses."""


class Instances:
    """Everything that is started by a function's number. ``rich`` receives connections for the
    manager.
    """

    def __init__(
        self, config: Config, networks: Networks, cgroups: Cgroups, gate: LoadGate,
        rich: Callable[[int], None], inherit: Inherit,
    ) -> None:  # fmt: skip
        self._config, self._networks, self._cgroups = config, networks, cgroups
        self._gate, self._rich, self._inherit = gate, rich, inherit
        self._stock = Stock(config, networks, cgroups, gate, self._refuse)
        self._sandboxes = GenericSandboxes(config.pools, self._stock.lend_cgroups)
        self.observers: list[Callable[[bool, int], None]] = []
        """Each is called at a start: whether its sandbox was waiting, and its time in ns."""
        self._registry = Registry(config, self._register, self._forget)
        self._used = UsedNetworks(networks, self._stock, self._registry)
        self._running = Running(lambda: self._node, lambda: self._hung)
        self._logs: Keeper | None = None
        self._logs_lock = asyncio.Lock()
        self._using: dict[int, tuple[int, int, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._node: Node | None = None
        self._starter: Starter | None = None
        self._opening = asyncio.Lock()
        self._stay = self._closing = False
        self._keepers: list[asyncio.Task[None]] = []
        self._hung: asyncio.Future[Failed] = asyncio.get_running_loop().create_future()

    async def open(self, stay: bool) -> None:
        """Take over the running node, or start one. ``stay``: it outlives this process."""
        self._stay = stay
        await self._connect()
        loop = asyncio.get_running_loop()
        self._keepers = [loop.create_task(work) for work in (self._keep(), self._watch())]

    async def _connect(self) -> Node:
        async with self._opening:
            if self._node and not self._node.is_open():
                await asyncio.shield(self._node.gone)
            if self._node is None:
                node = Node(self._config, self._on_event, self._rich, self._recover)
                with ExitStack() as opened:
                    tops = [os.open(top, os.O_RDONLY | os.O_DIRECTORY)
                            for top in self._cgroups.tops_by_controller]  # fmt: skip
                    for top in tops:
                        opened.callback(os.close, top)
                    state = await node.open(tops, self._cgroups.unified, self._stay)
                self._node = node
                self._stock.connect(node)
                self._sandboxes.connect(node)
                node.load(_BASE_PROFILE, seccomp.base())
                for profile, calls in ((0, ()), (ZYGOTE_PROFILE, ZYGOTE_CALLS)):
                    node.load(profile, seccomp.rest(calls))
                    node.load(profile + definition.WITHOUT_NETLINK, seccomp.rest(calls, False))
                await self._adopt(node, state)
                self._sandboxes.resume()
            return self._node

    async def _adopt(self, node: Node, state: State) -> None:
        """Take over the state of a node that outlived its manager."""
        for described, noted in state.functions:
            self._registry.adopt(described, noted)
        left = await self._stock.adopt(state)
        node.begin()
        for instance in self._running:
            network = self._stock.network(self._using[instance.number][1])
            if instance.function.ports and network:
                await self._networks.adopt(network, instance.function.ports)
            if instance.function.serves != "nothing":
                instance.kill()  # no manager sends it requests
            entry = self._registry.number(self._using[instance.number][0])
            if entry and entry.is_only:
                self._forget_with(instance, entry)
        self._task(self._discard_left(node, left))
        used = await self._inherit(state.kept)
        if not self._keepers:  # beside a replaced node, pools of this process have cgroups
            self._cgroups.remove_others(self._stock.parts.cgroups() | used)

    async def _discard_left(self, node: Node, left: list[Held]) -> None:
        """End the parts of instances that ended between two managers.

        An end that names a part may still be on its way: until it arrives, the part's index is not
        reused.
        """
        with suppress(Failed):
            await node.sync()
        for held in left:
            self._stock.parts.discard(held)

    @property
    def pid(self) -> int:
        """The node's process, or -1."""
        return self._node.pid if self._node else -1

    async def leave(self) -> None:
        """Leave the node, with everything that it has, to the next manager."""
        await self._stop_making()
        for task in self._tasks:
            task.cancel()  # networks without a verdict are left to the next manager
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._starter:
            self._starter.close()
        if self._node:
            self._node.leave()

    async def _stop_making(self) -> None:
        self._closing = True
        self._used.close()
        for keeper in self._keepers:
            keeper.cancel()
        await self._stock.close()

    async def close(self) -> None:
        """End all instances, and the node."""
        await self._stop_making()
        for instance in self._running:
            instance.kill()
        ends = [instance.ended for instance in self._running]
        if ends and self._node:
            await asyncio.wait(ends, timeout=_END_SECONDS)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_END_SECONDS)
        for task in self._tasks:
            task.cancel()  # it waits for the hanging node, and ends with it
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._starter:
            self._starter.close()
        if self._node:
            self._node.end()
            self._node = None
            self._stock.connect(None)
        if self._logs:
            await asyncio.to_thread(self._logs.close)
        self._stock.lost()
        self._running.lost()

    async def registered(self, function: Function, fresh: bool = True) -> Registered:
        """Register a function, so that the node starts it by its number. Raises Failed."""
        await self._connect()
        return await self._registry.get(function, fresh)

    async def prepare(self, function: Function, sandboxes: int) -> None:
        """Make parts and generic sandboxes in advance. Raises Failed."""
        await self.registered(function)
        await self._stock.warm(function.network)
        if sandboxes:
            await self._connect()
            await self._sandboxes.warm(sandboxes)

    async def has_lost(self, node: int) -> bool:
        """Whether a node, by its pid, has ended. Raises Failed without another."""
        if self._hung.done():
            return False
        with suppress(Failed):  # it ends meanwhile, or hangs
            await self.sync()
        return (await self._connect()).pid != node

    async def sync(self) -> None:
        """Return when this manager knows everything that clients were told."""
        if self._node and self._node.is_open():
            await self._node.sync()

    async def start(
        self, function: Function, streams: tuple[int, int, int] | None, requested: int,
        flags: int = 0,
    ) -> Instance:  # fmt: skip
        """Start an instance. Without streams its output is the instance's to read."""
        with self._gate:
            entry = await self.registered(function, fresh=False)
            outputs, theirs = ([], list(streams)) if streams else pipes()
            try:
                if function.serves == "events":
                    await self._give_listening(entry)
                answer = await self._request(entry, theirs, function.env, requested, flags)
            except BaseException:
                for output in outputs:
                    output.close()
                raise
            finally:
                if not streams:
                    for descriptor in theirs:
                        os.close(descriptor)
        instance = self._running.note_answer(answer, entry.function)
        if outputs:
            instance.stdout, instance.stderr = outputs
        return instance

    async def _give_listening(self, entry: Registered) -> None:
        """Returns when the node has it: the start comes by a socket of its own. Raises Failed."""
        given = await self._stock.give_listening(entry)
        try:
            await self.sync()
        except BaseException:
            if not (given and given.error):  # else the node does not have it
                self._stock.not_used(entry)
            raise
        if given and given.error:
            raise given.error

    async def _request(
        self, entry: Registered, streams: list[int], env: dict[str, str], requested: int,
        flags: int = 0, process: Function | None = None,
    ) -> Answer:  # fmt: skip
        starter = self._connection()
        answer = await starter.start(entry.number, entry.version, streams, env, requested, flags)
        if answer.error == errno.ENOTCONN and answer.step == Step.STREAMS:
            await self.keep_logs()
            answer = await starter.start(
                entry.number, entry.version, streams, env, requested, flags
            )
        if answer.verb != AnswerVerb.REFUSED:
            return answer
        if entry.function.serves == "events" and not answer.instance:
            self._stock.not_used(entry)
        if answer.error == errno.EIO and answer.step in (Step.NETWORK, Step.CGROUP):
            raise self._stock.explain(entry.function)
        raise refused(answer, process or entry.function)

    def _connection(self) -> Starter:
        if self._starter is None or not self._starter.is_open:
            self._starter = Starter(self._config.directory / "socket", self._kill_unwanted)
        return self._starter

    def _kill_unwanted(self, number: int) -> None:
        if self._node:
            self._node.signal(number, signal.SIGKILL)

    async def execute(
        self, instance: Instance, words: int, streams: tuple[int, int, int],
        ended: Callable[[int], None],
    ) -> Answer:  # fmt: skip
        """Run a program beside an instance's own. Raises Failed."""
        answer = await self._connection().execute(instance.number, words, list(streams), ended)
        if answer.verb == AnswerVerb.REFUSED:
            raise refused(answer, instance.function)
        return answer

    async def start_on(
        self, function: Function, tree: int, streams: tuple[int, int, int],
        process: Function | None = None, flags: Flag = NO_FLAGS, profile: int = 0,
    ) -> Instance:  # fmt: skip
        """Start the only instance of a function that has a detached tree as its root. Raises
        Failed.

        ``process`` replaces the function's command and limits for the node. It outlives this
        process.
        """
        node = await self._connect()
        entry = self._registry.only(function)
        process = process or function
        try:
            uid = self._config.identities.first + entry.number
            env: dict[str, str] = {}
            if Flag.ZYGOTE in flags:  # its forks inherit what a program expects
                env = await asyncio.to_thread(environment.defaults, process, process.uid or uid)
            words = wire.words(process.command, env, process.directory, definition.note(entry))
            try:
                described = definition.encode(entry, process, profile, flags, uid)
                await node.register(described, tree, words)
            finally:
                os.close(words)
            requested = time.monotonic_ns()
            answer = await self._request(
                entry, list(streams), process.env, requested, wire.DETACHED, process
            )
        except BaseException:
            await self._forget_only(entry)
            raise
        instance = self._running.note_answer(answer, entry.function)
        self._forget_with(instance, entry)
        return instance

    def keep(self, descriptors: list[int]) -> Keepsake | None:
        """Have the node keep descriptors for the next manager; see ``Node.keep``."""
        return self._node.keep(descriptors) if self._node else None

    def _forget_with(self, instance: Instance, entry: Registered) -> None:
        instance.ended.add_done_callback(lambda _: self._task(self._forget_only(entry)))

    async def _forget_only(self, entry: Registered) -> None:
        if not entry.version:
            return  # it ended with its node; its number may be reused
        self._registry.leave(entry)
        await self._forget(entry)
        self._registry.free(entry)

    async def keep_logs(self) -> None:
        """Keep the output of instances that ask for it. Raises Failed."""
        async with self._logs_lock:
            node = await self._connect()
            if self._logs and self._logs.node == node.pid and self._logs.is_running():
                return  # another start took it
            if old := self._logs:
                self._logs = None
                await asyncio.to_thread(old.close)
            self._logs = await asyncio.to_thread(Keeper, self._config, node.pid)
            node.keep_log(self._logs.socket.fileno())
            self._logs.socket.close()  # it ends with the node's
            await node.sync()  # who asked for it starts by a socket of its own

    @property
    def history(self) -> History:
        """The latest events of instances."""
        return self._running.history

    @property
    def up(self) -> int:
        """How many instances run, including zygotes and workers."""
        return len(self._running)

    def running(self) -> list[Listed]:
        """The running instances, in the order of their ids."""
        return self._running.listed()

    def get(self, identity: str) -> Instance | None:
        """A running instance, by its id."""
        return self._running.get(identity)

    def only(self) -> list[Instance]:
        """The running instances that ``start_on`` started."""
        numbers = {number: using[0] for number, using in self._using.items()}
        entries = {number: self._registry.number(numbers[number]) for number in numbers}
        return [self._running[number] for number, entry in entries.items()
                if entry and entry.is_only and number in self._running]  # fmt: skip

    async def publish(self, instance: Instance) -> None:
        """Forward the function's ports to an instance. Raises Failed."""
        if instance.function.ports and instance.address:
            await self._networks.publish(instance.function.ports, instance.address)

    def explain(self, function: Function) -> Failed:
        """Why a part of the function's starts could not be made."""
        return self._stock.explain(function)

    def counts(self) -> list[Counts]:
        """The parts on the shelves."""
        return [*self._sandboxes.counts(), *self._stock.counts()]

    def root(self, function: Function) -> int:
        """The function's root as a detached tree. It may wait for a disk. Raises Failed."""
        return definition.root(function, self._config.directory)

    async def _register(self, entry: Registered) -> None:
        function, config = entry.function, self._config
        flags = definition.flags_of(function, config)
        uid = definition.identity(entry.number, flags, config)
        env = await asyncio.to_thread(environment.defaults, function, function.uid or uid)
        note = definition.note(entry)
        words = wire.words(function.command, env, function.directory, note)
        try:
            tree = await asyncio.to_thread(definition.tree, function, config.directory, uid)
            try:
                node = await self._connect()
                await self._resolve(node)
                await node.register(definition.encode(entry, function, 0, flags, uid), tree, words)
            finally:
                os.close(tree)
        finally:
            os.close(words)

    async def _resolve(self, node: Node) -> None:
        """Use the host's current resolvers for functions registered from now on."""
        network, gateway = self._config.network, self._networks.gateway
        addresses, text = await asyncio.to_thread(resolvers.read, network, gateway)
        await self._networks.resolve_by(addresses)
        node.resolve_by(text)

    async def _forget(self, entry: Registered) -> None:
        if node := self._node:  # which may be gone between the two
            with suppress(Failed):
                await node.forget(entry.number)
                await node.sync()  # of its networks that the node has left
        self._stock.forget(entry)

    async def _keep(self) -> None:
        """Remove what is idle, check files for changes, follow the demand."""
        while True:
            await asyncio.sleep(self._config.functions.look_seconds)
            with suppress(Failed):
                await self._registry.forget_idle()
                await self._registry.look()
                self._sandboxes.follow()
                await self._stock.follow()

    async def _watch(self) -> None:
        """Fail those that wait for an instance, once the node does not answer."""
        while True:
            await asyncio.sleep(liveness.LOOK_SECONDS)
            node = self._node
            if node is None or not node.is_open():
                continue
            try:
                await node.sync()
            except Failed as error:
                if node.is_open() and not self._hung.done():
                    _log.error("%s: %s", error.message, error.hint)
                    self._hung.set_result(error)
            else:
                self._answers()

    def _answers(self) -> None:
        """Note that the node answers, or was replaced."""
        if self._hung.done():
            self._hung = asyncio.get_running_loop().create_future()

    def _refuse(self, kind: int, reach: int) -> None:
        if self._node:
            self._node.refuse(kind, reach)

    def _on_event(self, event: Event) -> None:
        match event.verb:
            case EventVerb.STARTED:
                self._note_start(event)
            case EventVerb.ENDED | EventVerb.FAILED:
                self._note_end(event)
            case EventVerb.RESTED:
                self._note_rest(event)
            case EventVerb.WANT:
                self._stock.want(event)
            case EventVerb.WAITING:
                self._sandboxes.counted()
            case EventVerb.DONE:
                self._stock.refused(event.id - wire.PART_REFUSED, event.error)

    def _note_start(self, event: Event) -> None:
        if event.id in self._using:
            return
        self._gate.seen()
        self._using[event.id] = (event.function, event.network, event.cgroup)
        self._stock.take(event)
        entry = self._registry.number(event.function)
        if entry:
            entry.running += 1
            entry.used = time.monotonic()
        warm = bool(event.flags & wire.WARM)
        for observe in self.observers:
            observe(warm, event.running - event.requested)
        network = self._stock.network(event.network)
        if event.id not in self._running:
            self._add(event, entry, network.address if network else None)
        instance = self._running[event.id]
        self._running.began(instance, event.running)
        if network:
            instance.network.set_result(network)
        self._sandboxes.started(warm)

    def _add(self, event: Event, entry: Registered | None, address: IPv4Address | None) -> None:
        function = entry.function if entry else Function(rootfs="?", command=("?",))
        instance = self._running.add(event.id, function, event.pid, address, event.flags)
        instance.stamps = {"requested": event.requested, "running": event.running}

    def _note_end(self, event: Event) -> None:
        is_known = event.id in self._using  # else it ended without a manager, after another one's
        number, _, cgroup = self._using.pop(event.id, (event.function, event.network, event.cgroup))
        if event.verb == EventVerb.FAILED:
            self._stock.take(event)
        entry = self._registry.number(number)
        if entry and is_known and event.verb == EventVerb.ENDED:
            entry.running -= 1
        if not event.flags & wire.CARRIED:  # else it stays with its sandbox
            self._stock.cgroup_ended(event.cgroup, cgroup)
        if not is_known and event.verb == EventVerb.ENDED:
            self._add(event, entry, None)
        instance = self._running.remove(event.id)
        ended = _how(event, instance.function if instance else None)
        if instance and event.verb == EventVerb.ENDED:
            has_time = event.requested > event.running  # earlier nodes said when it was requested
            self.history.ended(instance, ended, event.requested if has_time else 0)
        if instance and instance.function.ports and instance.address:
            self._task(self._note_release(instance, ended, event.network))
            return
        if instance and not instance.ended.done():
            instance.ended.set_result(ended)
        held = self._stock.parts.get(event.network)  # None: it stays with a sandbox, or rests
        if held and not held.left:
            self._task(self._used.recycle(held, entry))

    def _note_rest(self, event: Event) -> None:
        """The node has judged a used network. One of another build may digest other things than the
        helper did of the new network, so that each would read as used to it.
        """
        held = self._stock.parts.get(event.network)
        if held is None:
            return
        if not event.status:
            self._stock.rested(held, event.function)
            return
        entry = self._registry.number(event.function)
        is_other = self._node is not None and self._node.is_of_another_build
        if entry and (is_other or entry.function.share_counters):
            self._task(self._used.recycle(held, entry))
        else:
            self._stock.parts.discard(held)

    async def _note_release(self, instance: Instance, ended: Ended, index: int) -> None:
        """Report the end of an instance once its ports are free."""
        if instance.address:
            await self._used.withdraw(instance.function.ports, instance.address)
        if not instance.ended.done():
            instance.ended.set_result(ended)
        if held := self._stock.parts.get(index):
            self._stock.parts.discard(held)

    def _recover(self) -> None:
        """The node was killed, with everything that it had: start another."""
        self._node = None
        self._answers()
        if self._starter:
            self._starter.close()
            self._starter = None
        self._using.clear()
        self._registry.clear()
        self._stock.lost()
        self._sandboxes.lost()
        self._running.lost()
        if not self._closing:
            self._task(self._replace_node())

    async def _replace_node(self) -> None:
        """Start another node at once, because clients reach it and this process only through it."""
        while not self._closing and self._node is None:
            try:
                await self._connect()
            except Failed as error:
                _log.warning("cannot start another node: %s", error.message)
                await asyncio.sleep(_RETRY_SECONDS)

    def _task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _how(event: Event, function: Function | None) -> Ended:
    """How an instance ended.

    The first process of a PID namespace can send itself no SIGKILL, though it can have the kernel
    do so (RLIMIT_CPU); in a reused sandbox an instance is not the first.
    """
    limits = wire.OUT_OF_MEMORY | wire.TIMED_OUT
    is_first = function is not None and function.reuse != "sandbox"
    ended = Ended.of(
        event.status, bool(event.flags & wire.OUT_OF_MEMORY), event.user, event.system,
        bool(event.flags & wire.TIMED_OUT),
    )  # fmt: skip
    lost = is_first and ended.signal == signal.SIGKILL and not event.flags & limits
    return replace(ended, lost=True) if lost else ended
