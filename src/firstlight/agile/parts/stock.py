"""The parts for starts: networks and cgroups, on the node's shelves.

The node takes them by itself; its reports are counted here.
"""

import os
from collections import Counter
from collections.abc import Callable
from functools import partial

from firstlight.agile.config import Config
from firstlight.agile.function import EVENTS_PORT, Counts, Function, Reach
from firstlight.agile.network.networks import Network, Networks
from firstlight.agile.node import wire
from firstlight.agile.node.process import Node, State
from firstlight.agile.node.registry import Registered
from firstlight.agile.node.wire import Event
from firstlight.agile.parts.cgroups import Cgroup, Cgroups, Limits
from firstlight.agile.parts.pool import LoadGate, Pool
from firstlight.agile.parts.shelves import NOBODY, Held, Parts, Shelf
from firstlight.errors import Failed

_NO_FUNCTION = 0xFFFFFFFF


class Stock:
    """The parts of a node, by shelf, and functions' networks with a listening socket for events."""

    def __init__(
        self, config: Config, networks: Networks, cgroups: Cgroups, gate: LoadGate,
        refuse: Callable[[int, int], None],
    ) -> None:  # fmt: skip
        """``refuse``, with a kind and a reach, fails the starts that wait for such a part."""
        usual, pools = Function(rootfs="/"), config.pools
        self.parts = Parts(networks, cgroups, Limits(usual.memory, usual.cpus, usual.pids))
        self._shelves: dict[Reach, Shelf] = {
            reach: Shelf(
                f"network {reach}", pools.network, partial(self.parts.put_network, reach), gate,
                partial(refuse, wire.NETWORK, number), pools.window,
            )
            for number, reach in enumerate(wire.REACHES)
        }  # fmt: skip
        self._cgroups = Shelf(
            "cgroup", pools.cgroup, self.parts.put_cgroup, gate,
            partial(refuse, wire.CGROUP, 0), pools.window,
        )  # fmt: skip
        self._listening: dict[Reach, Pool[Network]] = {
            reach: Pool(
                f"network {reach} for events", pools.network,
                partial(networks.make_listening, reach, EVENTS_PORT), networks.discard, gate,
                pools.window,
            )
            for reach in wire.REACHES
        }  # fmt: skip
        self._unused: Counter[int] = Counter()

    async def adopt(self, state: State) -> list[Held]:
        """Take over a node's parts; returns those of instances that have ended."""
        left = await self.parts.adopt(state.parts)
        for reach, shelf in self._shelves.items():
            shelf.ready = self.parts.ready(Network, reach)
        self._cgroups.ready = self.parts.ready(Cgroup, "outbound")
        return left

    def connect(self, node: Node | None) -> None:
        """Put parts on this node's shelves from now on; None: on none."""
        self.parts.node = node

    def lost(self) -> None:
        """Note that the node is gone, with its shelves."""
        self.parts.node = None
        self.parts.lost()
        self._unused.clear()
        for shelf in (*self._shelves.values(), self._cgroups):
            shelf.forget()

    def lend_cgroups(self, count: int) -> None:
        """Note how many cgroups are in waiting generic sandboxes."""
        self._cgroups.lent = count

    async def warm(self, reach: Reach) -> None:
        """Fill the shelves that a start with such a network needs. Raises Failed."""
        await self._shelves[reach].warm()
        await self._cgroups.warm()

    async def give_listening(self, entry: Registered) -> Held | None:
        """Give the function a network for its next instance; None if it has one. Raises Failed.

        The node takes any of the function's networks, and a refused start leaves one.
        """
        if self._unused[entry.number]:
            self._unused[entry.number] -= 1
            return None
        network, _ = await self._listening[entry.function.network].take()
        return self.parts.give(network, entry.function.network, entry.number)

    def not_used(self, entry: Registered) -> None:
        """Note that the node refused the start for which ``give_listening`` was called."""
        self._unused[entry.number] += 1

    def forget(self, entry: Registered) -> None:
        """Note that the node has removed a function and given up its parts."""
        self.parts.forgotten(entry.number)
        del self._unused[entry.number]

    def want(self, event: Event) -> None:
        """Note that starts wait for parts."""
        is_network = event.step == wire.NETWORK
        shelf = self._shelves[wire.REACHES[event.status]] if is_network else self._cgroups
        shelf.want(event.pid)

    def refused(self, index: int, error: int) -> None:
        """Note that the node could not take a part that it was given."""
        held = self.parts.refused(index, error)
        if held is None:
            return
        shelf = self._shelves[held.reach] if isinstance(held.made, Network) else self._cgroups
        held.error = Failed(f"the node can take no {shelf.name}: {os.strerror(error)}",
                            "a higher limit of open files, or fewer instances")  # fmt: skip
        if held.function == NOBODY:
            shelf.refused(held.error)
        elif self._unused[held.function]:
            self._unused[held.function] -= 1

    def take(self, event: Event) -> None:
        """Count what a start took from the shelves, or what ended with a sandbox that waited."""
        network = self.parts.used(event.network)
        if network and network.function == NOBODY:
            self._shelves[network.reach].taken()
        cgroup = self.parts.used(event.cgroup)
        if cgroup:
            (self._cgroups.lost if event.function == _NO_FUNCTION else self._cgroups.taken)()

    def network(self, index: int) -> Network | None:
        """The network with that index."""
        held = self.parts.get(index)
        return held.made if held and isinstance(held.made, Network) else None

    def cgroup_ended(self, left: int, used: int) -> None:
        """Handle a network whose instance has ended: remove it if the node gave it up, else it is
        on its shelf again.
        """
        if left != NOBODY:
            if held := self.parts.get(left):
                self.parts.discard(held)
        elif used != NOBODY:
            self.parts.shelved(used)
            self._cgroups.added()
            self._cgroups.returned += 1

    def rested(self, held: Held, function: int) -> None:
        """Note that the node verified a used network as new: it serves its function again."""
        self.parts.shelved(held.index, function)
        self._shelves[held.reach].returned += 1

    def give_back(self, held: Held, function: int) -> None:
        """Put back a used network that was verified here: it serves its function again."""
        self.parts.give_back(held, function)
        self._shelves[held.reach].returned += 1

    async def follow(self) -> None:
        """Discard parts beyond the demand."""
        for reach, shelf in self._shelves.items():
            if surplus := shelf.follow():
                shelf.lost(await self.parts.reduce(Network, reach, surplus))
        if surplus := self._cgroups.follow():
            self._cgroups.lost(await self.parts.reduce(Cgroup, "outbound", surplus))
        for pool in self._listening.values():
            pool.follow()

    def explain(self, function: Function) -> Failed:
        """Why a part of the function's starts could not be made."""
        shelves = (self._shelves[function.network], self._cgroups)
        failures = [shelf.error for shelf in shelves if shelf.error]
        return failures[0] if failures else Failed("a network or a cgroup could not be made",
                                                   "see the runtime's log")  # fmt: skip

    def counts(self) -> list[Counts]:
        """The counts of shelves and pools in use."""
        counts = [shelf.counts() for shelf in (*self._shelves.values(), self._cgroups)]
        counts += [pool.counts() for pool in self._listening.values()]
        return [count for count in counts if count.made or count.misses or count.ready]

    async def close(self) -> None:
        """Stop making parts."""
        for shelf in (*self._shelves.values(), self._cgroups):
            await shelf.close()
        for pool in self._listening.values():
            await pool.close()
