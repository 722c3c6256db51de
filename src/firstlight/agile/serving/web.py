"""Functions that serve HTTP: one instance a version, which serves all requests at once."""

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress

import httpx
import msgspec

from firstlight.agile.function import Function
from firstlight.agile.functions.version import FunctionVersion
from firstlight.agile.instance import Instance
from firstlight.agile.output import pipes
from firstlight.agile.runtime import Runtime
from firstlight.agile.serving.answer import ending, timed_out
from firstlight.agile.serving.log import Log
from firstlight.agile.serving.once import definition
from firstlight.agile.single_flight import shared
from firstlight.errors import Failed

_START_SECONDS = 10.0
_CONNECT_SECONDS = 5.0
_FIRST_LOOK_SECONDS, _LAST_LOOK_SECONDS = 0.001, 0.05
_LIMITS = httpx.Limits(max_connections=1000, max_keepalive_connections=64)


class WebInstance:
    """One instance, and the connections to it."""

    def __init__(self, version: FunctionVersion, instance: Instance, log: Log) -> None:
        self.version, self.instance, self._log = version, instance, log
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
    """The instance of one version: started by the first request, ended when it has none for long.

    ``emptied`` is called when it has no instance and no request.
    """

    def __init__(
        self, runtime: Runtime, version: FunctionVersion, emptied: Callable[["Web"], None]
    ) -> None:
        self.version = version
        self._runtime, self._emptied = runtime, emptied
        self._current: WebInstance | None = None
        self._starting: asyncio.Task[WebInstance] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._idle: asyncio.TimerHandle | None = None
        self._retired = False
        self.requests = 0
        """How many are under way."""

    async def take(self) -> tuple[WebInstance, bool]:
        """The instance for a request, and whether it was started for it; give it back.

        Raises Failed.
        """
        self.requests += 1
        if self._idle:
            self._idle.cancel()
            self._idle = None
        if self._current and self._current.is_up:
            return self._current, False
        try:
            if self._starting is None:
                self._starting = asyncio.get_running_loop().create_task(self._start())
            return await shared(self._starting), True
        except BaseException:
            self.give()
            raise

    def give(self) -> None:
        """A request is over."""
        self.requests -= 1
        if not self.requests:
            seconds = 0.0 if self._retired else self.version.keep_warm
            self._idle = asyncio.get_running_loop().call_later(seconds, self._expire)

    def retire(self) -> None:
        """End the instance when it has no request."""
        self._retired = True
        if not self.requests:
            self._expire()

    async def close(self) -> None:
        """End it now."""
        if self._idle:
            self._idle.cancel()
        if self._starting:
            self._starting.cancel()
            await asyncio.wait((self._starting,))
        self._end()
        while self._ending:
            await asyncio.wait(self._ending)

    async def _start(self) -> WebInstance:
        try:
            self._end()
            self._current = await start(self._runtime, self.version)
            return self._current
        finally:
            self._starting = None

    def _expire(self) -> None:
        self._idle = None
        self._end()
        self._emptied(self)

    def _end(self) -> None:
        if self._current:
            task = asyncio.get_running_loop().create_task(self._current.close())
            self._current = None
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)


async def start(runtime: Runtime, version: FunctionVersion) -> WebInstance:
    """Start an instance, and wait until it listens. Raises Failed."""
    [output, errors], streams = pipes()
    errors.close()
    try:
        given = (streams[0], streams[1], streams[1])
        instance = await runtime.start(_definition(version), given)
    except BaseException:
        output.close()
        raise
    finally:
        for descriptor in streams:
            os.close(descriptor)
    web = WebInstance(version, instance, Log([output.detach()]))
    try:
        await web.listens()
    except BaseException:
        await web.close()
        raise
    return web


def _definition(version: FunctionVersion) -> Function:
    if version.network == "none":
        raise Failed(f"{version.name} has no network to be reached by", "give it network internal")
    environment = {"PORT": str(version.port), **version.environment}
    return msgspec.structs.replace(
        definition(version), env=environment, reuse="none", serves="http"
    )
