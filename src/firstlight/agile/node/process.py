"""The link between this process, the manager, and the node, which owns the instances.

The node (``native/agile/node.c``) serves starts by itself. This module registers functions with it,
gives it parts, and reads its events: parts used, instances ended.
"""

import asyncio
import errno
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from firstlight.agile import helper
from firstlight.agile.config import Config, PoolSize
from firstlight.agile.node import liveness, wire
from firstlight.agile.node.liveness import END_SECONDS, peer
from firstlight.agile.node.wire import Event, EventVerb, OrderVerb
from firstlight.agile.sockets import Connection, is_readable
from firstlight.errors import Failed, deadline_variable, longer
from firstlight.native import native

_log = logging.getLogger(__name__)
_START_SECONDS = longer(10.0)


@dataclass
class State:
    """The state of a node when this manager connected."""

    functions: list[tuple[wire.Definition, bytes]] = field(default_factory=list)
    parts: list[tuple[wire.Part, int, int]] = field(default_factory=list)
    """Each with its state and its descriptor, or -1."""
    kept: list[tuple["Keepsake", list[int]]] = field(default_factory=list)


@dataclass(frozen=True)
class Keepsake:
    """Descriptors that a node keeps for the next manager."""

    node: "Node"
    index: int

    def drop(self) -> None:
        """Drop them."""
        self.node.drop(self.index)


class Node:
    """One node. ``on_event`` gets its events, ``on_client`` clients' connections; ``on_lost`` is
    called at its end.
    """

    def __init__(
        self,
        config: Config,
        on_event: Callable[[Event], None],
        on_client: Callable[[int], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._config = config
        self._on_event, self._on_client, self._on_lost = on_event, on_client, on_lost
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, asyncio.Future[None]] = {}
        self._serial = 0
        self._connection: Connection | None = None
        self._unused = list(range(wire.KEPT - 1, -1, -1))
        self.pid = self._pidfd = -1
        self.is_of_another_build = False  # than this manager
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self.waiting = self.made = 0  # generic sandboxes
        self.fill_seconds = 0.0
        self._held: list[Event] | None = []

    async def open(self, tops: Sequence[int], unified: bool, stay: bool) -> State:
        """Connect to the node that runs, or start one. Events wait until ``begin``.

        Raises Failed.
        """
        connection = _connect(self._config)
        is_new = connection is None
        if connection is None:
            connection = await asyncio.to_thread(_start, self._config)
        self.pid = peer(connection)
        self._pidfd = os.pidfd_open(self.pid)
        self._state = State()
        self._whole: asyncio.Future[None] = self._loop.create_future()
        self._connection = Connection(connection, self._take, self._left)
        flags = (wire.STAY if stay else 0) | (wire.UNIFIED if unified else 0)
        try:
            await self._do(OrderVerb.HELLO, flags=flags, count=wire.VERSION, descriptors=list(tops))
        except Refused as error:
            self.close()
            if error.error != errno.EPROTONOSUPPORT:
                raise
            raise Failed(f"the node with pid {self.pid} has another version of firstlight",
                         "end it and its instances: firstlight agile down") from error  # fmt: skip
        except Failed:
            if is_new:
                self.close()
            else:
                self.leave()
            await asyncio.to_thread(liveness.check_node, self._config.socket)
            raise Failed(f"another process is the manager of the node with pid {self.pid}",
                         f"find it: ss -xp | grep {self._config.directory}/node; or end the node "
                         "and its instances: firstlight agile down") from None  # fmt: skip
        self.is_of_another_build = not is_new and await asyncio.to_thread(
            _is_of_another_build, self.pid
        )
        if self.is_of_another_build:
            _log.warning("the node, pid %d, is another build of firstlight-node, and goes on: what "
                         "is new in this one comes after firstlight agile down, which ends all "
                         "instances; until then, used networks may be examined twice",
                         self.pid)  # fmt: skip
        await self._answered(self._whole)
        return self._state

    def begin(self) -> None:
        """Deliver events, beginning with those that wait."""
        held, self._held = self._held or [], None
        for event in held:
            self._on_event(event)

    def load(self, number: int, program: bytes) -> None:
        """Set its compiled seccomp profile."""
        self._send(wire.profile(number, program))

    def resolve_by(self, text: str) -> None:
        """Set resolv.conf for functions registered from now on. Raises Failed."""
        self._send(wire.resolvers(text.encode()))

    async def register(self, definition: bytes, tree: int, words: int) -> None:
        """Make a function startable by its number, or replace it by a newer version."""
        await self._do(OrderVerb.FUNCTION, definition, descriptors=[tree, words])

    async def forget(self, number: int) -> None:
        """Remove a function; its own parts are given up."""
        await self._do(OrderVerb.FORGET, count=number)

    def add(self, part: wire.Part, descriptor: int = -1) -> None:
        """Put a new part on its shelf. Only a refusal is answered: by an event."""
        message = wire.order(
            OrderVerb.PART, wire.PART.pack(*part), id=wire.PART_REFUSED + part.place
        )
        self._send(message, [descriptor] if descriptor >= 0 else [])

    def give_back(self, part: wire.Part) -> None:
        """Put a used part back on its shelf."""
        self._send(wire.order(OrderVerb.PART, wire.PART.pack(*part)))

    def withdraw(self, index: int) -> None:
        """Take back a part that no instance uses."""
        self._send(wire.order(OrderVerb.WITHDRAW, count=index))

    async def take_back(self, index: int) -> bool:
        """Take back a part unless an instance or a sandbox has it; returns whether it did."""
        self._serial += 1
        serial, future = self._serial, self._loop.create_future()
        self._pending[serial] = future  # it answers nothing but refusals
        self._send(wire.order(OrderVerb.WITHDRAW, id=serial, count=index))
        try:
            await self.sync()
        finally:
            self._pending.pop(serial, None)
            refused = future.done() and future.exception() is not None
            future.cancel()
        return not refused

    def refuse(self, kind: int, reach: int) -> None:
        """Refuse the starts that wait for a part that cannot be made."""
        self._send(wire.order(OrderVerb.REFUSE, flags=reach, count=kind))

    def keep_waiting(self, size: PoolSize) -> None:
        """Hold generic sandboxes: fill to the high mark now, and again below the low one."""
        between = int(1e6 / size.rate)
        self._send(wire.order(OrderVerb.SANDBOXES, flags=between, count=size.high, length=size.low))

    async def sync(self) -> None:
        """Return when all events that clients were told of have arrived here."""
        await self._do(OrderVerb.SYNC)

    def signal(self, instance: int, number: int, flags: int = 0) -> None:
        """Send an instance a signal; SIGKILL ends all its processes. ``flags`` say why."""
        body = int(number).to_bytes(4, "little")
        self._send(wire.order(OrderVerb.SIGNAL, body, flags, id=instance))

    def keep_log(self, keeper: int) -> None:
        """Send the output of instances that keep a log to this socket."""
        self._send(wire.order(OrderVerb.LOG), [keeper])

    def keep(self, descriptors: Sequence[int]) -> Keepsake | None:
        """Have the node keep descriptors; the first is a memory file that says what they are.

        None if the node keeps no more: the next manager then does without.
        """
        if not self.is_open() or not self._unused:
            return None
        index = self._unused[-1]
        self._send(wire.order(OrderVerb.KEEP, count=index), descriptors)
        self._unused.pop()
        return Keepsake(self, index)

    def drop(self, index: int) -> None:
        """Drop the descriptors of this index."""
        self._send(wire.order(OrderVerb.DROP, count=index))
        self._unused.append(index)

    def leave(self) -> None:
        """Leave it, and have it outlive this manager."""
        if self.is_open():
            self._send(wire.order(OrderVerb.STAY))
        self.close()

    def end(self) -> None:
        """End the node, and all instances with it."""
        if self.is_open():
            self._send(wire.order(OrderVerb.END))
            if not is_readable(self._pidfd, END_SECONDS):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        else:
            end(self._config, hangs=True)  # unless it has ended, it has left this manager
        self.close()

    def close(self) -> None:
        """Disconnect from it."""
        if self._connection:
            self._connection.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        for future in self._pending.values():
            if not future.done():
                future.set_exception(Failed("the node has ended", "try again"))
        self._pending.clear()

    def is_open(self) -> bool:
        """Whether it is not known to have ended."""
        return self._connection is not None and self._connection.is_open

    async def _do(
        self, verb: OrderVerb, body: bytes = b"", flags: int = 0, count: int = 0,
        descriptors: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self._serial += 1
        serial, future = self._serial, self._loop.create_future()
        self._pending[serial] = future
        try:
            self._send(wire.order(verb, body, flags, serial, count), descriptors)
            await self._answered(future)
        finally:
            self._pending.pop(serial, None)
            future.cancel()

    async def _answered(self, future: asyncio.Future[None]) -> None:
        try:
            async with asyncio.timeout(liveness.HANG_SECONDS):
                await asyncio.shield(future)
        except TimeoutError:
            raise liveness.hangs(self.pid) from None

    def _send(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        if self._connection:
            self._connection.send(message, descriptors)

    def _left(self) -> None:
        """Wait for the node's process, whose end of the connection is closed; its instances have
        ended before it.
        """
        pidfd, self._pidfd = self._pidfd, -1
        self.close()
        lives = self._loop.call_later(END_SECONDS, self._lives)
        self._loop.add_reader(pidfd, self._is_gone, pidfd, lives)

    def _lives(self) -> None:
        """Say that the node serves another manager, or nobody."""
        own = os.getpid()
        _log.error("the node, pid %d, has left its manager, pid %d, and goes on: kill -9 %d, and "
                   "start it again: the instances go on", self.pid, own, own)  # fmt: skip

    def _is_gone(self, pidfd: int, lives: asyncio.TimerHandle) -> None:
        """Handle the node's end; its instances have ended before it."""
        lives.cancel()
        self._loop.remove_reader(pidfd)
        os.close(pidfd)
        self._on_lost()
        if not self.gone.done():
            self.gone.set_result(None)

    def _take(self, message: bytes, descriptors: list[int]) -> None:
        events, record = wire.events(message)
        descriptor = descriptors[0] if descriptors else -1
        for event in events:
            match event.verb:
                case EventVerb.STARTED | EventVerb.ENDED | EventVerb.RESTED:  # most are
                    self._tell(event)
                case EventVerb.DONE:
                    self._done(event)
                case EventVerb.RICH:
                    self._hand(descriptor)
                case EventVerb.FUNCTION:
                    note = wire.after_words(descriptor)
                    os.close(descriptor)
                    self._state.functions.append((wire.definition(record), note))
                case EventVerb.PART:
                    self._state.parts.append((wire.part(record), event.status, descriptor))
                case EventVerb.KEPT:
                    self._unused.remove(event.status)
                    self._state.kept.append((Keepsake(self, event.status), descriptors))
                case EventVerb.STATE_END:
                    if not self._whole.done():
                        self._whole.set_result(None)
                case _:
                    self._tell(event)

    def _tell(self, event: Event) -> None:
        if event.verb == EventVerb.WAITING:
            self.waiting, self.made, self.fill_seconds = event.status, event.id, event.user / 1e9
        if self._held is None:
            self._on_event(event)
        else:
            self._held.append(event)

    def _hand(self, descriptor: int) -> None:
        if descriptor < 0:
            _log.warning("a client was disconnected: no descriptor is left for it")
        else:
            self._on_client(descriptor)

    def _done(self, event: Event) -> None:
        if event.id >= wire.PART_REFUSED:
            self._tell(event)
        future = self._pending.pop(event.id, None)
        if future is None or future.done():
            return
        if event.error:
            future.set_exception(Refused(event.error))
        else:
            future.set_result(None)


class Refused(Failed):
    """The node failed to carry out an order; has its errno."""

    def __init__(self, error: int) -> None:
        super().__init__(f"the node refused: {os.strerror(error)}")
        self.error = error


def is_running(config: Config) -> bool:
    """Whether a node of that name runs; False only after a killed one is gone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.settimeout(END_SECONDS)
        try:
            probe.connect(str(config.socket))
            probe.send(wire.request(wire.RequestVerb.PING))
            if probe.recv(4096):
                return True
        except TimeoutError:
            return True  # it is busy, or hangs: its clients find out
        except OSError:
            pass
        return not liveness.is_gone(peer(probe))


def pid_of(config: Config) -> int:
    """The pid of the node of that name, or -1."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(config.socket))
        except OSError:
            return -1
        return peer(probe)


def _is_of_another_build(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/exe").read_bytes() != native("firstlight-node").read_bytes()
    except OSError:
        return False  # it has just ended


def end(config: Config, hangs: bool = False) -> None:
    """End a node without a manager, or one that hangs, with all its instances. Raises Failed."""
    numbers = (signal.SIGKILL,) if hangs else (signal.SIGTERM, signal.SIGKILL)
    pid = pid_of(config)
    if not kill(pid, *numbers):
        raise Failed(f"the node, pid {pid}, survives SIGKILL", f"see /proc/{pid}/stack")


def kill(pid: int, *numbers: int) -> bool:
    """Send a process these signals in turn until it has ended, and return whether it has. A pid of
    -1 is none.
    """
    if pid <= 0:
        return True
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            for number in numbers:
                signal.pidfd_send_signal(pidfd, number)
                if is_readable(pidfd, END_SECONDS):
                    return True
        finally:
            os.close(pidfd)
        return False
    return True


def _connect(config: Config) -> socket.socket | None:
    """Connect to the running node; None if there is none."""
    link = liveness.patient()
    try:
        link.connect(str(config.directory / "node"))
    except BlockingIOError:
        link.close()
        raise liveness.hangs(pid_of(config)) from None
    except OSError:
        link.close()
        return None
    return link


def _start(config: Config) -> socket.socket:
    """Start a node and connect to it. Raises Failed."""
    path = str(native("firstlight-node"))
    reading, writing = os.pipe()
    try:
        words = str(config.directory), str(config.instances)
        pid = helper.spawn(path, writing, *words, environment=deadline_variable())
    except OSError as error:
        raise Failed(f"cannot start {path}: {error.strerror}",
                     "more pids and open files, or fewer instances") from error  # fmt: skip
    finally:
        os.close(writing)
    with suppress(ChildProcessError):  # our parent may have set SIGCHLD to be ignored
        os.waitpid(pid, 0)  # it goes on in a PID namespace of its own
    until = time.monotonic() + _START_SECONDS
    with os.fdopen(reading, "rb") as ready:
        ready.read()
    while (link := _connect(config)) is None:
        if time.monotonic() > until:
            raise Failed(f"the node does not start in {config.directory}", "see the log")
        time.sleep(0.01)
    return link
