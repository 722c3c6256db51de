"""Functions that serve HTTP: instances that have many requests at once."""

import asyncio
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import httpx
import msgspec

from firstlight.agile.function import Function
from firstlight.agile.functions.version import FunctionVersion
from firstlight.agile.instance import Instance
from firstlight.agile.output import pipes
from firstlight.agile.runtime import Runtime
from firstlight.agile.serving import once
from firstlight.agile.serving.answer import ending, timed_out
from firstlight.agile.serving.log import Log
from firstlight.errors import Failed

_START_SECONDS = 10.0
_STARTS_MAX = 2 * (os.cpu_count() or 1)
_LOOK_SECONDS = 1.0
_CONNECT_SECONDS = 5.0
_FIRST_LOOK_SECONDS, _LAST_LOOK_SECONDS = 0.001, 0.05
_LIMITS = httpx.Limits(max_connections=1000, max_keepalive_connections=64)

_log = logging.getLogger(__name__)


class WebInstance:
    """One instance, the connections to it, and how many requests it has."""

    def __init__(self, version: FunctionVersion, instance: Instance, log: Log) -> None:
        self.version, self.instance, self._log = version, instance, log
        self.requests = 0
        self.expiry: asyncio.TimerHandle | None = None
        seconds = version.timeout
        self.client = httpx.AsyncClient(
            base_url=f"http://{instance.address}:{version.port}", limits=_LIMITS, trust_env=False,
            timeout=httpx.Timeout(seconds, connect=_CONNECT_SECONDS), follow_redirects=False,
        )  # fmt: skip
        instance.ended.add_done_callback(lambda _: log.close())

    @property
    def is_up(self) -> bool:
        """Whether it has not ended, as far as is known."""
        return not self.instance.ended.done()

    async def listens(self) -> None:
        """Wait until it listens. Raises Failed if it ends or takes too long."""
        address, port = str(self.instance.address), self.version.port
        seconds = max(_START_SECONDS, self.version.timeout)
        until, pause = time.monotonic() + seconds, _FIRST_LOOK_SECONDS
        while self.is_up:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(_CONNECT_SECONDS):
                    _, writer = await asyncio.open_connection(address, port)
                writer.close()
                return
            if time.monotonic() > until:
                raise Failed(f"{self.version.name} does not listen at port {port}: "
                             f"{timed_out(seconds)}", self._hint())  # fmt: skip
            await asyncio.wait((self.instance.ended,), timeout=pause)
            pause = min(2 * pause, _LAST_LOOK_SECONDS)
        raise await self.ended()

    async def ended(self) -> Failed:
        """How it ended, with its last words."""
        _, text = ending(await self.instance.wait(), self.version.memory)
        return Failed(f"{self.version.name}: {text}", self._hint())

    def _hint(self) -> str:
        line = self._log.last_line()
        return f"it wrote: {line}" if line else "it wrote nothing"

    async def close(self) -> None:
        """End it."""
        await self.client.aclose()
        await self.instance.stop()


class Web:
    """The instances of one version. Each has up to ``per_instance`` requests at once.

    A request gets the busiest instance with room, so that others become idle and end. If none has
    room it waits for the first that has, and more are started. ``emptied`` is called when there is
    no instance and no request.
    """

    def __init__(
        self, runtime: Runtime, version: FunctionVersion,
        sink: Callable[[], Callable[[bytes], None]], emptied: Callable[["Web"], None],
    ) -> None:  # fmt: skip
        """``sink`` makes what takes all that an instance writes."""
        self.version, self._sink = version, sink
        self._runtime, self._emptied = runtime, emptied
        self._up: list[WebInstance] = []
        self._waiting: deque[asyncio.Future[WebInstance]] = deque()
        self._starting: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._retired = self._closed = False
        self._loop = asyncio.get_running_loop()

    @property
    def idle(self) -> int:
        """How many instances have no request."""
        return sum(not one.requests for one in self._up)

    @property
    def busy(self) -> int:
        """How many have one."""
        return len(self._up) - self.idle

    @property
    def waiting(self) -> int:
        """How many requests wait for an instance."""
        return len(self._waiting)

    async def take(self) -> tuple[WebInstance, bool]:
        """An instance for a request, and whether it was waited for; give it back. Raises Failed."""
        if self._closed:
            raise self._over()
        if rooms := [one for one in self._up if self._has_room(one)]:
            chosen = max(rooms, key=lambda one: one.requests)
            self._use(chosen)
            return chosen, False
        waiter: asyncio.Future[WebInstance] = self._loop.create_future()
        self._waiting.append(waiter)
        self._start_more()
        try:
            return await waiter, True
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and not waiter.exception():
                self.give(waiter.result())
            raise

    def give(self, instance: WebInstance) -> None:
        """A request is over."""
        instance.requests -= 1
        self._hand(instance)
        if not instance.requests and instance in self._up:
            if self._retired:
                self._end(instance)
            else:
                self._rest(instance)
        self._check_empty()

    def keep(self) -> None:
        """Start what is missing of the instances that are always to be kept."""
        while self._is_short(len(self._starting)) and len(self._starting) < _STARTS_MAX:
            self._start_one()

    def retire(self) -> None:
        """End the idle instances, and the others when they have no request."""
        self._retired = True
        for instance in [one for one in self._up if not one.requests]:
            self._end(instance)
        self._check_empty()

    async def close(self) -> None:
        """End all now; who waits, or comes later, gets an error."""
        self._retired = self._closed = True
        for task in self._starting:
            task.cancel()
        self._refuse(len(self._waiting), self._over())
        for instance in list(self._up):
            self._end(instance)
        while tasks := self._starting | self._ending:
            await asyncio.wait(tasks)

    def _over(self) -> Failed:
        return Failed(f"{self.version.name} gets no instance: the runtime is stopping",
                      "try again when it has been started")  # fmt: skip

    def _refuse(self, count: int, error: BaseException) -> None:
        """Have that many of those that wait get an error."""
        for _ in range(count):
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(error)

    def _has_room(self, instance: WebInstance) -> bool:
        return instance.is_up and instance.requests < self.version.per_instance

    def _is_short(self, more: int = 0) -> bool:
        """Whether there are fewer than are always to be kept."""
        return not self._retired and len(self._up) + more < self.version.warm

    def _use(self, instance: WebInstance) -> None:
        instance.requests += 1
        if instance.expiry:
            instance.expiry.cancel()
            instance.expiry = None

    def _hand(self, instance: WebInstance) -> None:
        """Give an instance to those that wait, while it has room."""
        while self._waiting and self._has_room(instance):
            waiter = self._waiting.popleft()
            if not waiter.done():
                self._use(instance)
                waiter.set_result(instance)

    def _start_more(self) -> None:
        most = min(_STARTS_MAX, math.ceil(len(self._waiting) / self.version.per_instance))
        while len(self._starting) < most:
            self._start_one()

    def _start_one(self) -> None:
        task = self._loop.create_task(self._started())
        self._starting.add(task)
        task.add_done_callback(self._started_one)

    def _started_one(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        self._start_more()
        self._check_empty()

    async def _started(self) -> None:
        try:
            instance = await start(self._runtime, self.version, self._sink())
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if not self._waiting:
                _log.warning("%s is not kept warm: %s", self.version.name, error)
            self._refuse(min(self.version.per_instance, len(self._waiting)), error)
            return
        self._up.append(instance)
        instance.instance.ended.add_done_callback(lambda _: self._gone(instance))
        instance.requests += 1
        self.give(instance)  # to those that wait, if any does still

    def _gone(self, instance: WebInstance) -> None:
        if instance in self._up:
            self._end(instance)
            self._check_empty()

    def _rest(self, instance: WebInstance) -> None:
        """It ends when it has been idle for long, unless it is one that is always kept."""
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
            self._check_empty()

    def _end(self, instance: WebInstance) -> None:
        self._up.remove(instance)
        if instance.expiry:
            instance.expiry.cancel()
        task = self._loop.create_task(instance.close())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _check_empty(self) -> None:
        if not (self._up or self._waiting or self._starting):
            self._emptied(self)


async def start(
    runtime: Runtime, version: FunctionVersion, sink: Callable[[bytes], None]
) -> WebInstance:
    """Start an instance, and wait until it listens. Raises Failed."""
    [output, errors], streams = pipes()
    errors.close()
    try:
        given = (streams[0], streams[1], streams[1])
        instance = await runtime.start(definition(version), given)
    except BaseException:
        output.close()
        raise
    finally:
        for descriptor in streams:
            os.close(descriptor)
    web = WebInstance(version, instance, Log([output.detach()], sink))
    try:
        await web.listens()
    except BaseException:
        await web.close()
        raise
    return web


def definition(version: FunctionVersion) -> Function:
    """What the node starts for a version that serves HTTP."""
    if version.network == "none":
        raise Failed(f"{version.name} has no network to be reached by", "give it network internal")
    environment = {"PORT": str(version.port), **version.environment}
    return msgspec.structs.replace(
        once.definition(version), env=environment, reuse="none", serves="http"
    )
