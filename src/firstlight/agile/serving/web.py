"""Functions that serve HTTP; their instances serve many requests at once."""

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress

import h11
import msgspec

from firstlight.agile import verify
from firstlight.agile.function import Function, NodeFailed
from firstlight.agile.functions.version import FunctionVersion
from firstlight.agile.instance import Instance
from firstlight.agile.runtime import Runtime
from firstlight.agile.serving import per_event
from firstlight.agile.serving.answer import ending, last_line, timed_out
from firstlight.agile.serving.log import Log, start_logged
from firstlight.agile.serving.starts import Starts, stopping
from firstlight.agile.serving.upstream import CONNECT_SECONDS, Late, Upstream
from firstlight.agile.sockets import is_readable
from firstlight.errors import Failed, longer

_START_SECONDS = longer(10.0)
_LOOK_SECONDS = 1.0
_DRAIN_SECONDS = 900.0
"""How long the requests of a version that was replaced or removed may go on."""
_FIRST_LOOK_SECONDS, _LAST_LOOK_SECONDS = 0.001, 0.05


class WebInstance:
    """An instance, the connections to it, and its number of requests."""

    def __init__(self, version: FunctionVersion, instance: Instance, log: Log) -> None:
        self.version, self.instance, self._log = version, instance, log
        self.requests = 0
        self.expiry: asyncio.TimerHandle | None = None
        self._pidfd = -1
        self.upstream = Upstream(
            str(instance.address), version.port, version.timeout, lambda: self.is_alive
        )
        instance.ended.add_done_callback(lambda _: log.close())
        with suppress(OSError):
            self._pidfd = os.pidfd_open(instance.pid)

    @property
    def is_alive(self) -> bool:
        """Whether its process runs. The kernel knows of an exit before the runtime does."""
        if self._pidfd < 0:
            return self.is_up
        return not is_readable(self._pidfd, 0)

    @property
    def is_ending(self) -> bool:
        """Whether its process has ended or is about to. It closes its connections meanwhile."""
        try:
            verify.check_alive(self.instance.pid)
        except OSError:
            return True
        return not self.is_alive

    @property
    def is_up(self) -> bool:
        """Whether it is not known to have ended."""
        return not self.instance.ended.done()

    async def listens(self) -> None:
        """Wait until it listens. Raises Failed if it ends or takes too long."""
        address, port = str(self.instance.address), self.version.port
        seconds = max(_START_SECONDS, self.version.timeout)
        until, pause = time.monotonic() + seconds, _FIRST_LOOK_SECONDS
        while self.is_up:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(CONNECT_SECONDS):
                    _, writer = await asyncio.open_connection(address, port)
                writer.close()
                return
            if time.monotonic() > until:
                raise Failed(
                    f"{self.version.name} does not listen on port {port} of its address {address}: "
                    f"{timed_out(seconds)}",
                    f"have it listen on 0.0.0.0, not on 127.0.0.1; {self._hint()}",
                )
            await asyncio.wait((self.instance.ended,), timeout=pause)
            pause = min(2 * pause, _LAST_LOOK_SECONDS)
        raise await self.ended()

    async def ended(self) -> Failed:
        """How it ended, with the last line that it wrote."""
        try:
            _, text = ending(await self.instance.wait(), self.version.memory)
        except NodeFailed as error:
            return error
        return Failed(f"{self.version.name}: {text}", self._hint())

    def _hint(self) -> str:
        line = last_line(self._log.since(0))
        return f"it wrote: {line}" if line else "it wrote nothing"

    async def close(self) -> None:
        """End it."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self.upstream.close()
        await self.instance.stop()


class Web:
    """The instances of one version. Each has up to ``per_instance`` requests at once.

    A request goes to the busiest instance with room, so that others become idle and end. If none
    has room, it waits for the first that has, and more are started. ``emptied`` is called when
    there is no instance and no request.
    """

    def __init__(
        self, runtime: Runtime, version: FunctionVersion,
        sink: Callable[[], Callable[[bytes], None]], emptied: Callable[["Web"], None],
    ) -> None:  # fmt: skip
        """``sink`` makes a receiver of an instance's output."""
        self.version, self._emptied = version, emptied
        self._starts = Starts(
            version, version.per_instance, lambda: start(runtime, version, sink()),
            self._note_start, self.give, self._check_empty,
        )  # fmt: skip
        self._up: list[WebInstance] = []
        self._ending: set[asyncio.Task[None]] = set()
        self._retired = self._closed = False
        self._drained: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    @staticmethod
    def cause(error: Exception) -> str:
        """Why a request failed, as in ``Invocation``; empty if its client is at fault."""
        if isinstance(error, h11.LocalProtocolError):
            return ""
        return "timeout" if isinstance(error, Late) else "exit"

    @property
    def idle(self) -> int:
        """How many instances have no request."""
        return sum(not instance.requests for instance in self._up)

    @property
    def busy(self) -> int:
        """How many instances have a request."""
        return len(self._up) - self.idle

    @property
    def waiting(self) -> int:
        """How many requests wait for an instance."""
        return self._starts.waiting

    async def take(self) -> tuple[WebInstance, bool]:
        """Take an instance for a request; returns also whether it waited. ``give`` returns it.
        Raises Failed.
        """
        if self._closed:
            raise stopping(self.version)
        rooms = [instance for instance in self._up if self._has_room(instance)]
        for chosen in sorted(rooms, key=lambda instance: instance.requests, reverse=True):
            if chosen.is_alive:
                self._use(chosen)
                return chosen, False
        return await self._starts.wait(), True

    def give(self, instance: WebInstance) -> None:
        """Note the end of a request."""
        instance.requests -= 1
        self._hand(instance)
        if not instance.requests and instance in self._up:
            if self._retired:
                self._end(instance)
            else:
                self._rest(instance)
        self._check_empty()

    def keep(self) -> None:
        """Start missing instances, up to the number that is always kept."""
        self._starts.keep(self._is_short)

    def retire(self) -> None:
        """End the idle instances, and the others when they have no request."""
        self._retired = True
        for instance in list(self._up):
            if not instance.requests:
                self._end(instance)
        self.drain()
        self._check_empty()

    def drain(self) -> None:
        """End all after a time, whatever requests they have."""
        if self._drained is None:
            self._drained = self._loop.call_later(_DRAIN_SECONDS, self._end_all)

    async def close(self) -> None:
        """End all at once; requests that wait, or come later, get an error."""
        self._retired = self._closed = True
        self._starts.stop()
        self._end_all()
        while tasks := self._starts.tasks | self._ending:
            await asyncio.wait(tasks)

    def _has_room(self, instance: WebInstance) -> bool:
        return instance.is_up and instance.requests < self.version.per_instance

    def _is_short(self, more: int = 0) -> bool:
        """Whether there are fewer instances than are always kept."""
        return not self._retired and len(self._up) + more < self.version.warm

    def _use(self, instance: WebInstance) -> None:
        instance.requests += 1
        if instance.expiry:
            instance.expiry.cancel()
            instance.expiry = None

    def _hand(self, instance: WebInstance) -> None:
        """Give an instance to those that wait, while it has room."""
        while self._has_room(instance) and self._starts.hand(instance):
            self._use(instance)

    def _note_start(self, instance: WebInstance) -> None:
        self._up.append(instance)
        instance.instance.ended.add_done_callback(lambda _: self._note_gone(instance))
        instance.requests += 1
        self.give(instance)  # for requests that still wait

    def _note_gone(self, instance: WebInstance) -> None:
        if instance in self._up:
            self._end(instance)

    def _rest(self, instance: WebInstance) -> None:
        """End an instance that has been idle for long, unless it is always kept."""
        instance.expiry = self._loop.call_later(
            self.version.keep_warm or _LOOK_SECONDS * bool(self.version.warm),
            self._expire, instance,
        )  # fmt: skip

    def _expire(self, instance: WebInstance) -> None:
        instance.expiry = None
        if self._is_short(-1) and instance.is_up:
            self._rest(instance)
        else:
            self._end(instance)

    def _end(self, instance: WebInstance) -> None:
        self._up.remove(instance)
        if instance.expiry:
            instance.expiry.cancel()
        task = self._loop.create_task(instance.close())
        self._ending.add(task)
        task.add_done_callback(self._note_end)

    def _end_all(self) -> None:
        for instance in list(self._up):
            self._end(instance)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        self._check_empty()

    def _check_empty(self) -> None:
        if not (self._up or self._starts.waiting or self._starts.tasks or self._ending):
            if self._drained:
                self._drained.cancel()
            self._emptied(self)


async def start(
    runtime: Runtime, version: FunctionVersion, sink: Callable[[bytes], None]
) -> WebInstance:
    """Start an instance, and wait until it listens. Raises Failed."""
    instance, log = await start_logged(runtime, definition(version), sink)
    web = WebInstance(version, instance, log)
    try:
        await web.listens()
    except BaseException:
        await web.close()
        raise
    return web


def definition(version: FunctionVersion) -> Function:
    """The function that the node starts for a version that serves HTTP."""
    if version.network == "none":
        raise Failed(f"{version.name} has no network", "give it network internal")
    environment = {"PORT": str(version.port), **version.environment}
    return msgspec.structs.replace(
        per_event.definition(version), env=environment, reuse="none", serves="http"
    )
