"""The instances of one node, seen from its manager: what they are started from, and their ends.

One module, because all of it follows one connection: what the node reports of a start, an end or a
take-over changes the same tables, in the order in which the node says it.
"""

import asyncio
import errno
import logging
import os
import re
import signal
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import msgspec

from firstlight.agile import environment, liveness, node_wire, resolvers, roots, seccomp, volumes
from firstlight.agile.cgroups import Cgroup, Cgroups, Limits
from firstlight.agile.config import Config, PoolSize
from firstlight.agile.demand import Demand
from firstlight.agile.function import EVENTS_PORT, Counts, Ended, Function, Listed, Reach
from firstlight.agile.history import History, listed
from firstlight.agile.instance import Instance
from firstlight.agile.logs import Keeper
from firstlight.agile.network import Network, Networks
from firstlight.agile.node import Keepsake, Node, State
from firstlight.agile.node_wire import Answer, AnswerVerb, Event, EventVerb, Flag, Step, refused
from firstlight.agile.output import pipes
from firstlight.agile.parts import NOBODY, Held, Parts, Shelf
from firstlight.agile.pool import LoadGate, Pool
from firstlight.agile.registry import Registered, Registry, definition, note
from firstlight.agile.starter import Starter
from firstlight.errors import Failed

ZYGOTE_PROFILE, _BASE_PROFILE = 1, 4
ZYGOTE_CALLS = ("setns",)
NO_FLAGS = Flag(0)
_RETRY_SECONDS = 0.1
_END_SECONDS = 10.0
_ENDED_KEPT = 1024
_NO_FUNCTION = 0xFFFFFFFF
_log = logging.getLogger(__name__)
_IDENTITY = re.compile(r"[0-9]{1,20}")


Inherit = Callable[[list[tuple[Keepsake, list[int]]]], Awaitable[set[str]]]
"""Takes over what the node has kept; returns the names of the cgroups that it uses."""


class Instances:
    """Everything that is started from a number. ``rich`` gets connections for the manager."""

    def __init__(
        self, config: Config, networks: Networks, cgroups: Cgroups, gate: LoadGate,
        rich: Callable[[int], None], inherit: Inherit,
    ) -> None:  # fmt: skip
        self._config, self._networks, self._cgroups = config, networks, cgroups
        self._gate, self._rich, self._inherit = gate, rich, inherit
        usual = Function(rootfs="/")
        self._limits = Limits(usual.memory, usual.cpus, usual.pids)
        self._parts = Parts(networks, cgroups, self._limits)
        self._shelves = {reach: self._network_shelf(reach) for reach in node_wire.REACHES}
        self._cgroup_shelf = Shelf("cgroup", config.pools.cgroup, self._parts.put_cgroup, gate,
                                   lambda: self._refuse(node_wire.CGROUP, 0),
                                   config.pools.window)  # fmt: skip
        self._listening = {reach: self._listening_pool(reach) for reach in node_wire.REACHES}
        self._unused: Counter[int] = Counter()
        self.observers: list[Callable[[bool, int], None]] = []
        """Each is called at a start: whether its sandbox was waiting, and its time in ns."""
        self._registry = Registry(config, self._register, self._forget)
        self._running: dict[int, Instance] = {}
        self.history = History()
        self._logs: Keeper | None = None
        self._logs_lock = asyncio.Lock()
        self._deadlines: dict[int, asyncio.TimerHandle] = {}
        self._ended_last: OrderedDict[int, Instance] = OrderedDict()
        self._using: dict[int, tuple[int, int, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._node: Node | None = None
        self._starter: Starter | None = None
        self._opening = asyncio.Lock()
        self._stay = self._closing = False
        self._waiting = PoolSize(low=0, high=0)
        self._sandbox_demand = Demand(config.pools.sandbox, config.pools.window)
        self._seen: tuple[int, int] | None = None  # sandboxes made, and waiting
        self._waiting_changed = asyncio.Event()
        self._sandbox_hits = self._sandbox_misses = 0
        self._keepers: list[asyncio.Task[None]] = []
        self._hung: asyncio.Future[Failed] = asyncio.get_running_loop().create_future()

    def _network_shelf(self, reach: Reach) -> Shelf:
        return Shelf(
            f"network {reach}", self._config.pools.network,
            lambda: self._parts.put_network(reach), self._gate,
            lambda: self._refuse(node_wire.NETWORK, node_wire.REACHES.index(reach)),
            self._config.pools.window,
        )  # fmt: skip

    def _listening_pool(self, reach: Reach) -> Pool[Network]:
        return Pool(
            f"network {reach} for events", self._config.pools.network,
            lambda: self._networks.make_listening(reach, EVENTS_PORT), self._networks.discard,
            self._gate, self._config.pools.window,
        )  # fmt: skip

    async def open(self, stay: bool) -> None:
        """Take the node over that runs, or start one. ``stay``: it outlives this process."""
        self._stay = stay
        await self._connected()
        loop = asyncio.get_running_loop()
        self._keepers = [loop.create_task(work) for work in (self._keep(), self._watch())]

    async def _connected(self) -> Node:
        async with self._opening:
            if self._node and not self._node.is_open():
                await asyncio.shield(self._node.gone)
            if self._node is None:
                node = Node(self._config, self._on_event, self._rich, self._lost)
                with _opened(self._cgroups.tops) as tops:
                    state = await node.open(tops, self._cgroups.unified, self._stay)
                self._node = self._parts.node = node
                node.load(_BASE_PROFILE, seccomp.base())
                node.load(0, seccomp.rest())
                node.load(ZYGOTE_PROFILE, seccomp.rest(ZYGOTE_CALLS))
                await self._adopt(node, state)
                if self._waiting.high:
                    node.keep_waiting(self._waiting)
            return self._node

    async def _adopt(self, node: Node, state: State) -> None:
        """Take over what a node has that outlived its manager."""
        for described, noted in state.functions:
            self._registry.adopt(described, noted)
        left = await self._parts.adopt(state.parts)
        for reach, shelf in self._shelves.items():
            shelf.ready = self._parts.ready(Network, reach)
        self._cgroup_shelf.ready = self._parts.ready(Cgroup, "outbound")
        node.begin()
        for instance in self._running.values():
            held = self._parts.get(self._using[instance.number][1])
            if instance.function.ports and held and isinstance(held.made, Network):
                await self._networks.adopt(held.made, instance.function.ports)
            if instance.function.serves != "nothing":
                instance.kill()  # nobody leads requests to it any more
            entry = self._registry.number(self._using[instance.number][0])
            if entry and entry.is_only:
                self._forget_with(instance, entry)
        self._task(self._discard_left(node, left))
        self._cgroups.remove_others(self._parts.cgroups() | await self._inherit(state.kept))

    async def _discard_left(self, node: Node, left: list[Held]) -> None:
        """End the parts of instances that ended between two managers.

        An end that names a part may still be on its way: until then no other gets its index.
        """
        with suppress(Failed):
            await node.synced()
        for held in left:
            self._parts.discard(held)

    @property
    def pid(self) -> int:
        """The node's process, or -1."""
        return self._node.pid if self._node else -1

    async def leave(self) -> None:
        """Leave the node, with all that it has, to the manager that comes next."""
        await self._stop_making()
        for task in self._tasks:
            task.cancel()  # what is not judged yet is the next one's to judge
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._starter:
            self._starter.close()
        if self._node:
            self._node.close()

    async def _stop_making(self) -> None:
        self._closing = True
        for keeper in self._keepers:
            keeper.cancel()
        for shelf in (*self._shelves.values(), self._cgroup_shelf):
            await shelf.close()
        for pool in self._listening.values():
            await pool.close()

    async def close(self) -> None:
        """End all instances, and the node."""
        await self._stop_making()
        for instance in self._running.values():
            instance.kill()
        ends = [instance.ended for instance in self._running.values()]
        if ends and self._node:
            await asyncio.wait(ends, timeout=_END_SECONDS)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_END_SECONDS)
        for task in self._tasks:
            task.cancel()  # it waits for what hangs, and ends with that
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._starter:
            self._starter.close()
        if self._node:
            self._node.end()
            self._node = self._parts.node = None
        if self._logs:
            await asyncio.to_thread(self._logs.close)
        self._parts.lost()
        self._all_over()

    async def registered(self, function: Function, fresh: bool = True) -> Registered:
        """The function, startable by its number. Raises Failed."""
        await self._connected()
        return await self._registry.get(function, fresh)

    async def prepare(self, function: Function, sandboxes: int) -> None:
        """Make parts ahead of starts, and generic sandboxes. Raises Failed."""
        await self.registered(function)
        await self._shelves[function.network].warm()
        await self._cgroup_shelf.warm()
        if sandboxes:
            await self._warm_sandboxes(min(sandboxes, self._config.pools.sandbox.high))

    async def _warm_sandboxes(self, count: int) -> None:
        node = await self._connected()
        self._sandbox_demand.expect(count)
        self._keep_waiting(max(self._waiting.high, count))
        until = time.monotonic() + _END_SECONDS
        while node.waiting < count:
            self._waiting_changed.clear()
            left = until - time.monotonic()
            try:
                await asyncio.wait_for(self._waiting_changed.wait(), max(0.0, left))
            except TimeoutError:
                raise Failed(f"{node.waiting} of {count} sandboxes are ready",
                             "see the runtime's log") from None  # fmt: skip

    def _keep_waiting(self, high: int) -> None:
        wanted = self._config.pools.sandbox
        self._cgroup_shelf.lent = high
        if self._seen:
            self._seen = self._seen[0], min(self._seen[1], high)  # the others end unused
        low = high if self._sandbox_demand.follows else min(wanted.low, high)
        self._waiting = msgspec.structs.replace(wanted, low=low, high=high)
        if self._node:
            self._node.keep_waiting(self._waiting)

    async def synced(self) -> None:
        """Return when all that clients have been told of is known here."""
        if self._node and self._node.is_open():
            await self._node.synced()

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
        instance = self._instance(answer, entry)
        if outputs:
            instance.stdout, instance.stderr = outputs
        return instance

    async def _give_listening(self, entry: Registered) -> None:
        """Give the function a network for its next instance. Raises Failed.

        The node gives an instance any of its function's, and a start that it refuses leaves one.
        """
        if self._unused[entry.number]:
            self._unused[entry.number] -= 1
            return
        network, _ = await self._listening[entry.function.network].take()
        self._parts.give(network, entry.function.network, entry.number)

    async def _request(
        self, entry: Registered, streams: list[int], env: dict[str, str], requested: int,
        flags: int = 0,
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
        if entry.function.serves == "events":
            self._unused[entry.number] += 1
        if answer.error == errno.EIO and answer.step in (Step.NETWORK, Step.CGROUP):
            raise self.explained(entry.function)
        raise refused(answer, entry.function)

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
        """Start the only instance of a function whose root is a detached tree. Raises Failed.

        ``process`` is what the node starts for it, if that is not its command with its limits. It
        outlives this process.
        """
        node = await self._connected()
        entry = self._registry.only(function)
        process = process or function
        try:
            words = node_wire.words(process.command, {}, process.directory, note(entry))
            try:
                uid = self._config.identities.first + entry.number
                described = definition(entry, process, profile, flags, uid)
                await node.register(described, tree, words)
            finally:
                os.close(words)
            answer = await self._request(
                entry,
                list(streams),
                process.env,
                time.monotonic_ns(),
                node_wire.DETACHED,
            )
        except BaseException:
            await self._forget_only(entry)
            raise
        instance = self._instance(answer, entry)
        self._forget_with(instance, entry)
        return instance

    def keep(self, descriptors: list[int]) -> Keepsake | None:
        """Have the node keep descriptors for the next manager; see ``Node.keep``."""
        return self._node.keep(descriptors) if self._node else None

    def _forget_with(self, instance: Instance, entry: Registered) -> None:
        instance.ended.add_done_callback(lambda _: self._task(self._forget_only(entry)))

    async def _forget_only(self, entry: Registered) -> None:
        if not entry.version:
            return  # it ended with its node, and its number may be another's
        self._registry.leave(entry)
        await self._forget(entry)
        self._registry.free(entry)

    def _instance(self, answer: Answer, entry: Registered) -> Instance:
        """The instance of an answer. Its events may have come before, that of its end too."""
        instance = self._running.get(answer.instance) or self._ended_last.get(answer.instance)
        instance = instance or self._new(
            answer.instance, entry.function, answer.pid, answer.address, answer.flags
        )
        instance.stamps = answer.stamps
        # One that has ended may have left its network before its start was told.
        instance.address = instance.address or _address(answer.address)
        return instance

    def explained(self, function: Function) -> Failed:
        """Why a part of the function's starts could not be made."""
        shelves = (self._shelves[function.network], self._cgroup_shelf)
        failures = [shelf.error for shelf in shelves if shelf.error]
        return failures[0] if failures else Failed("a network or a cgroup could not be made",
                                                   "see the runtime's log")  # fmt: skip

    @property
    def up(self) -> int:
        """How many instances run, zygotes and workers among them."""
        return len(self._running)

    def running(self) -> list[Listed]:
        """The running instances, in the order of their ids."""
        return [listed(instance) for _, instance in sorted(self._running.items())]

    async def keep_logs(self) -> None:
        """Have the output of instances kept that ask for it. Raises Failed."""
        async with self._logs_lock:
            node = await self._connected()
            if self._logs and self._logs.node == node.pid and self._logs.is_running():
                return  # another start that needs it came first
            if old := self._logs:
                self._logs = None
                await asyncio.to_thread(old.close)
            self._logs = await asyncio.to_thread(Keeper, self._config, node.pid)
            node.keep_log(self._logs.socket.fileno())
            self._logs.socket.close()  # it ends with the node's
            await node.synced()  # who asked for it starts by a socket of its own

    def get(self, identity: str) -> Instance | None:
        """A running instance, by its id."""
        return self._running.get(int(identity)) if _IDENTITY.fullmatch(identity) else None

    def only(self) -> list[Instance]:
        """The running instances that ``start_on`` started."""
        numbers = {number: using[0] for number, using in self._using.items()}
        entries = {number: self._registry.number(numbers[number]) for number in numbers}
        return [self._running[number] for number, entry in entries.items()
                if entry and entry.is_only and number in self._running]  # fmt: skip

    async def publish(self, instance: Instance) -> None:
        """Lead the function's ports to an instance. Raises Failed."""
        if instance.function.ports and instance.address:
            await self._networks.publish(instance.function.ports, instance.address)

    def counts(self) -> list[Counts]:
        """What is on the shelves."""
        node = self._node
        made, seconds = (node.made, node.fill_seconds) if node else (0, 0.0)
        sandboxes = Counts(
            name="sandbox", ready=node.waiting if node else 0,
            low=self._waiting.low, high=self._waiting.high,
            hits=self._sandbox_hits, misses=self._sandbox_misses, made=made, returned=0, failed=0,
            fill_rate=made / seconds if seconds else 0.0, fill_seconds=seconds,
        )  # fmt: skip
        shelves = [shelf.counts() for shelf in (*self._shelves.values(), self._cgroup_shelf)]
        used = [c for c in shelves if c.made or c.misses or c.ready]
        listening = [pool.counts() for pool in self._listening.values()]
        used += [c for c in listening if c.made or c.misses or c.ready]
        seen = self._waiting.high or self._sandbox_misses
        return [*([sandboxes] if seen else []), *used]

    async def _register(self, entry: Registered) -> None:
        function = entry.function
        flags = Flag.USER_NAMESPACE if function.user_namespace else Flag(0)
        flags |= Flag.TERMINALS if function.terminals else Flag(0)
        flags |= Flag.VOLUMES if function.volumes or function.secrets else Flag(0)
        if "refuse" in (self._config.pools.network.dry, self._config.pools.cgroup.dry):
            flags |= Flag.REFUSES
        identities = self._config.identities
        if identities.each == "instance" and function.uid is None:
            flags |= Flag.OWN_IDENTITY
        uid = identities.first_of_instances if flags & Flag.OWN_IDENTITY else (
            identities.first + entry.number
        )  # fmt: skip
        env = await asyncio.to_thread(environment.defaults, function, function.uid or uid)
        words = node_wire.words(function.command, env, function.directory, note(entry))
        try:
            if flags & Flag.VOLUMES and flags & (Flag.OWN_IDENTITY | Flag.USER_NAMESPACE):
                raise Failed("instances with users of their own, or a user namespace, have no "
                             "volumes and no secrets", "use identities.each function")  # fmt: skip
            tree = await asyncio.to_thread(self.root, function, function.uid or uid)
            if flags & Flag.VOLUMES:
                place = self._config.directory / "volumes"
                tree = await asyncio.to_thread(
                    volumes.mounted, tree, function, function.uid or uid, function.gid or uid, place
                )
            try:
                node = await self._connected()
                await self._resolve(node)
                await node.register(definition(entry, function, 0, flags, uid), tree, words)
            finally:
                os.close(tree)
        finally:
            os.close(words)

    async def _resolve(self, node: Node) -> None:
        """Functions that are registered from now on have the resolvers of now."""
        network, gateway = self._config.network, self._networks.gateway
        addresses, text = await asyncio.to_thread(resolvers.read, network, gateway)
        await self._networks.resolve_by(addresses)
        node.resolve_by(text)

    def root(self, function: Function, uid: int = -1) -> int:
        """The function's root as a detached tree. It may wait for a disk. Raises Failed."""
        rootfs = Path(function.rootfs)
        tree = roots.open_root(rootfs, self._config.directory / "skeleton")
        try:
            roots.check_command(rootfs, function.command[0], uid, function.directory)
        except BaseException:
            os.close(tree)
            raise
        return tree

    async def _forget(self, entry: Registered) -> None:
        if self._node:
            with suppress(Failed):
                await self._node.forget(entry.number)
        self._parts.forgotten(entry.number)
        del self._unused[entry.number]

    def _follow_sandboxes(self, used: bool = False) -> None:
        """Have as many wait as the demand needs, once a start has shown that they are wanted."""
        if not used and not self._waiting.high:
            return
        if (high := self._sandbox_demand.target()) != self._waiting.high:
            self._keep_waiting(high)

    def _count_sandboxes(self) -> None:
        """The node has made sandboxes, or used some."""
        assert self._node
        waiting = self._node.waiting
        made_before, before = self._seen or (self._node.made, waiting)
        made = self._node.made - made_before
        self._sandbox_demand.take(max(0, made - (waiting - before)))
        self._sandbox_demand.give(made)
        self._seen = self._node.made, waiting
        if waiting >= self._waiting.high:
            self._sandbox_demand.settle()
        self._follow_sandboxes()

    async def _follow(self) -> None:
        """Keep no more than the demand needs."""
        self._follow_sandboxes()
        for reach, shelf in self._shelves.items():
            if surplus := shelf.follow():
                shelf.lost(await self._parts.reduce(Network, reach, surplus))
        if surplus := self._cgroup_shelf.follow():
            self._cgroup_shelf.lost(await self._parts.reduce(Cgroup, "outbound", surplus))
        for pool in self._listening.values():
            pool.follow()

    async def _keep(self) -> None:
        """Forget what is idle; see what has changed; follow the demand."""
        while True:
            await asyncio.sleep(self._config.functions.look_seconds)
            with suppress(Failed):
                await self._registry.forget_idle()
                await self._registry.look()
                await self._follow()

    async def _watch(self) -> None:
        """Who waits for an instance is told if the node does not answer any more."""
        while True:
            await asyncio.sleep(liveness.LOOK_SECONDS)
            node = self._node
            if node is None or not node.is_open():
                continue
            try:
                await node.synced()
            except Failed as error:
                if node.is_open() and not self._hung.done():
                    _log.error("%s: %s", error.message, error.hint)
                    self._hung.set_result(error)
            else:
                self._answers()

    def _answers(self) -> None:
        """The node answers, or another is there."""
        if self._hung.done():
            self._hung = asyncio.get_running_loop().create_future()

    def _refuse(self, kind: int, reach: int) -> None:
        if self._node:
            self._node.refuse(kind, reach)

    def _on_event(self, event: Event) -> None:
        match event.verb:
            case EventVerb.STARTED:
                self._started(event)
            case EventVerb.ENDED | EventVerb.FAILED:
                self._ended(event)
            case EventVerb.RESTED:
                self._rested(event)
            case EventVerb.WANT if event.step == node_wire.NETWORK:
                self._shelves[node_wire.REACHES[event.status]].want(event.pid)
            case EventVerb.WANT:
                self._cgroup_shelf.want(event.pid)
            case EventVerb.WAITING:
                self._waiting_changed.set()
                self._count_sandboxes()

    def _new(self, number: int, function: Function, pid: int, address: int, flags: int) -> Instance:
        where = _address(address)
        instance = Instance(
            number,
            function,
            pid,
            where,
            bool(flags & node_wire.WARM),
            self._signal,
            lambda: self._hung,
        )
        if self._node:
            self._running[number] = instance
        else:  # its answer was still on the way
            instance.ended.set_result(Ended(signal=9))
        return instance

    def _signal(self, instance: int, number: int) -> None:
        if self._node:
            self._node.signal(instance, number)

    def _use(self, event: Event) -> None:
        """Count what a start took from the shelves, or what ended with a sandbox that waited."""
        network = self._parts.used(event.network)
        if network and network.shelved and network.function == NOBODY:
            self._shelves[network.reach].taken()
        cgroup = self._parts.used(event.cgroup)
        if cgroup and cgroup.shelved:
            shelf = self._cgroup_shelf
            (shelf.lost if event.function == _NO_FUNCTION else shelf.taken)()

    def _started(self, event: Event) -> None:
        if event.id in self._using:
            return
        self._gate.seen()
        self._using[event.id] = (event.function, event.network, event.cgroup)
        self._use(event)
        entry = self._registry.number(event.function)
        if entry:
            entry.running += 1
            entry.used = time.monotonic()
        function = entry.function if entry else Function(rootfs="?", command=("?",))
        for observe in self.observers:
            observe(bool(event.flags & node_wire.WARM), event.running - event.requested)
        if event.flags & node_wire.WARM:
            self._sandbox_hits += 1
        else:
            self._sandbox_misses += 1
            self._sandbox_demand.take()
        held = self._parts.get(event.network)
        address = 0
        if held and isinstance(held.made, Network) and held.made.address:
            address = int.from_bytes(held.made.address.packed, "little")
        if event.id not in self._running:
            instance = self._new(event.id, function, event.pid, address, event.flags)
            instance.stamps = {"requested": event.requested, "running": event.running}
        self._begun(self._running[event.id], event.running)
        if held and isinstance(held.made, Network):
            self._running[event.id].network.set_result(held.made)
        if self._config.pools.sandbox.high:
            self._follow_sandboxes(used=True)

    def _begun(self, instance: Instance, running: int) -> None:
        self.history.started(instance)
        if instance.function.lifetime is not None:
            left = instance.function.lifetime - (time.monotonic_ns() - running) / 1e9
            self._deadlines[instance.number] = asyncio.get_running_loop().call_later(
                max(0.0, left), self._time_out, instance.number
            )

    def _time_out(self, number: int) -> None:
        if self._node:
            self._node.signal(number, signal.SIGKILL, node_wire.TIMED_OUT)

    def _ended(self, event: Event) -> None:
        number, _, cgroup = self._using.pop(event.id, (event.function, event.network, event.cgroup))
        if event.verb == EventVerb.FAILED:
            self._use(event)
        entry = self._registry.number(number)
        if entry and event.verb == EventVerb.ENDED:
            entry.running -= 1
        self._cgroup_ended(event.cgroup, cgroup)
        instance = self._running.pop(event.id, None)
        if instance:
            self._ended_last[event.id] = instance
            if len(self._ended_last) > _ENDED_KEPT:
                self._ended_last.popitem(last=False)
        ended = Ended.of(
            event.status, bool(event.flags & node_wire.OUT_OF_MEMORY), event.user, event.system,
            bool(event.flags & node_wire.TIMED_OUT),
        )  # fmt: skip
        if deadline := self._deadlines.pop(event.id, None):
            deadline.cancel()
        if instance and event.verb == EventVerb.ENDED:
            self.history.ended(instance, ended)
        if instance and instance.function.ports and instance.address:
            self._task(self._released(instance, ended, event.network))
            return
        if instance and not instance.ended.done():
            instance.ended.set_result(ended)
        held = self._parts.get(event.network)  # None: it stays with a sandbox, or rests
        if held and not held.left:
            self._task(self._recycled(held, entry))

    def _cgroup_ended(self, left: int, used: int) -> None:
        """One that the node gave up is removed; one that it did not is on its shelf again."""
        if left != NOBODY:
            if held := self._parts.get(left):
                self._parts.discard(held)
        elif used != NOBODY:
            self._parts.shelved(used)
            self._cgroup_shelf.added()
            self._cgroup_shelf.returned += 1

    def _rested(self, event: Event) -> None:
        """The node has judged a used network."""
        held = self._parts.get(event.network)
        if held is None:
            return
        if event.status:
            entry = self._registry.number(event.function)
            if entry and entry.function.share_counters:
                self._task(self._recycled(held, entry))
            else:
                self._parts.discard(held)
            return
        self._parts.shelved(event.network, event.function)
        self._shelves[held.reach].returned += 1

    async def _recycled(self, held: Held, entry: Registered | None) -> None:
        """A used network that the node leaves to us serves its function again, or ends."""
        if not isinstance(held.made, Network):
            self._parts.discard(held)
            return
        again = (
            entry is not None and not self._closing and not entry.function.ports
            and entry.function.reuse != "none" and await self._is_clean(held.made, entry.function)
        )  # fmt: skip
        if again and entry and self._registry.number(entry.number) is entry:
            self._parts.give_back(held, entry.number)
            self._shelves[held.reach].returned += 1
        else:
            self._parts.discard(held)

    async def _is_clean(self, network: Network, function: Function) -> bool:
        if function.share_counters:
            return await self._networks.wash(network)
        return await self._networks.is_as_new(network)

    async def _released(self, instance: Instance, ended: Ended, index: int) -> None:
        """Its end is told when its ports are free again."""
        if instance.address:
            await self._withdrawn(instance.function.ports, instance.address)
        if not instance.ended.done():
            instance.ended.set_result(ended)
        if held := self._parts.get(index):
            self._parts.discard(held)

    async def _withdrawn(self, ports: dict[int, int], address: IPv4Address) -> None:
        """No port leads to an address that may be another's next; with the runtime all go."""
        while not self._closing:
            try:
                await self._networks.withdraw(ports, address)
            except Failed:
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return

    def _lost(self) -> None:
        """The node was killed, and all with it: another takes its place."""
        self._node = self._parts.node = self._seen = None
        self._answers()
        if self._starter:
            self._starter.close()
            self._starter = None
        self._using.clear()
        self._unused.clear()
        self._registry.clear()
        self._parts.lost()
        for shelf in (*self._shelves.values(), self._cgroup_shelf):
            shelf.forget()
        self._all_over()
        if not self._closing:
            self._task(self._replaced())

    async def _replaced(self) -> None:
        """Start another node at once: clients ask for starts, and reach us, by it alone."""
        while not self._closing and self._node is None:
            try:
                await self._connected()
            except Failed as error:
                _log.warning("cannot start another node: %s", error.message)
                await asyncio.sleep(_RETRY_SECONDS)

    def _all_over(self) -> None:
        """The kernel has ended what the node had."""
        running, self._running = self._running, {}
        for instance in running.values():
            self.history.ended(instance, Ended(signal=9))
            if not instance.ended.done():
                instance.ended.set_result(Ended(signal=9))
        for deadline in self._deadlines.values():
            deadline.cancel()
        self._deadlines.clear()

    def _task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _address(address: int) -> IPv4Address | None:
    """An address as the node writes it."""
    return IPv4Address(address.to_bytes(4, "little")) if address else None


class _opened:  # noqa: N801 - a context manager
    """Directories, open while in the context."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self._paths = paths
        self._descriptors: list[int] = []

    def __enter__(self) -> list[int]:
        self._descriptors = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in self._paths]
        return self._descriptors

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
