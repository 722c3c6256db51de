"""Answers events of all functions of a node."""

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from firstlight.agile.function import NodeFailed
from firstlight.agile.functions.version import FunctionVersion
from firstlight.agile.python.interpreter import ImportFailed
from firstlight.agile.runtime import Runtime
from firstlight.agile.serving import kept_instance, per_event
from firstlight.agile.serving.answer import Answer, Invocation, Load, Throttled
from firstlight.agile.serving.fleet import Fleet
from firstlight.agile.serving.recent_output import RecentOutput
from firstlight.agile.serving.runtime_api import Event, Lost
from firstlight.agile.serving.trace import to_xray, unsampled
from firstlight.agile.serving.turns import Turns
from firstlight.errors import Failed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from firstlight.agile.serving.web import Web, WebInstance


class Serving:
    """Answers events. An async context manager; leaving it ends the kept instances."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._turns = Turns(runtime.config.functions)
        self._fleets: dict[tuple[str, str], Fleet] = {}
        self._retired: set[Fleet] = set()
        self.observers: list[Callable[[Invocation], None]] = []
        self._webs: dict[tuple[str, str], Web] = {}
        self._replaced: set[Web] = set()
        self._unforked: set[kept_instance.Import] = set()
        self.recent_output = RecentOutput()
        self._releasing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Serving":
        return self

    async def __aexit__(self, *_: object) -> None:
        for fleet in [*self._fleets.values(), *self._retired]:
            await fleet.close()
        for server in [*self._webs.values(), *self._replaced]:
            await server.close()
        while self._releasing:
            await asyncio.wait(self._releasing)

    async def invoke(
        self, version: FunctionVersion, event: bytes, *, request_id: str,
        deadline: float | None = None, client_context: bytes | None = None,
        trace: str | None = None, arn: str = "",
    ) -> Answer:  # fmt: skip
        """Answer an event. ``arn`` is the ARN that the caller used, if not the version's own.

        ``deadline`` is on time.monotonic(): an event that no instance has by then is refused. The
        wait for its turn has its own limit (``functions.wait_seconds``). Raises Throttled, and
        Failed for what the node cannot do.
        """
        arrived, began = time.time_ns(), time.monotonic_ns()
        cause, answer = "node", None
        trace = to_xray(trace) if trace else unsampled()
        try:
            async with self._turns.turn(version):
                answer = await self._answer(
                    version, Event(request_id, event, version.timeout, arn or version.arn, trace,
                                   client_context), deadline
                )  # fmt: skip
            return answer
        except Throttled:
            cause = "throttled"
            raise
        except NodeFailed:
            cause = "lost"
            raise
        finally:
            if answer is None:
                self._observe(Invocation(
                    version=version, request_id=request_id, arrived=arrived, cause=cause
                ))  # fmt: skip
            else:
                waited = time.monotonic_ns() - began - answer.duration_ns
                self._observe(Invocation(
                    version=version, request_id=request_id, arrived=arrived, cold=answer.cold,
                    start_ns=waited, duration_ns=answer.duration_ns, cause=answer.cause,
                    steps=answer.steps,
                ))  # fmt: skip

    def _observe(self, outcome: Invocation) -> None:
        for observe in self.observers:
            observe(outcome)

    async def _answer(
        self, version: FunctionVersion, event: Event, deadline: float | None
    ) -> Answer:
        if version.kind == "command" or per_event.has_handler(version):
            run = per_event.run_command if version.kind == "command" else per_event.call_handler
            sink = self.recent_output.sink(version.name)
            answer = await run(self.runtime, version, event.payload)
            sink(answer.log_tail)
            sink(b"")
            return answer
        if version.kind == "http":
            raise Failed(f"{version.name} serves HTTP, not events", "call it by its URL")
        return await self._answer_by_fetching(version, event, deadline)

    async def try_handler(self, version: FunctionVersion) -> None:
        """Check that a version's handler can be called, if it has one. Raises Failed."""
        if version.kind == "python":
            per_event.check_name(version.handler)
        if per_event.has_handler(version):
            await self.runtime.try_handler(per_event.handler_definition(version))
        elif kept_instance.forks(version):
            try:
                await self.runtime.try_handler(kept_instance.python_definition(version))
            except ImportFailed:
                raise
            except Failed as error:  # each instance has an interpreter of its own
                kept_instance.not_forked(version, error, self._unforked)

    async def try_mounts(self, version: FunctionVersion) -> None:
        """Check that a version's volumes and secrets can be mounted in its root. Raises Failed."""
        if not version.volumes and not version.secrets:
            return
        if version.kind == "command":
            function = per_event.definition(version)
        elif version.kind == "http":
            from firstlight.agile.serving import web

            function = web.definition(version)
        else:
            function = kept_instance.definition(version)
        await self.runtime.register(function)

    async def keep(self, version: FunctionVersion) -> None:
        """Start a version's instances that are always kept. Raises Failed."""
        if version.kind == "http":
            self._web(version).keep()
        elif per_event.has_handler(version):
            await self.runtime.keep(per_event.handler_definition(version), version.warm)
        else:
            self._fleet(version).keep()

    def up(self, version: FunctionVersion) -> int:
        """How many instances of a version are up; for a handler ``module:name``, how many wait."""
        if per_event.has_handler(version):
            return self.runtime.waiting(per_event.handler_definition(version))
        key = version.name, version.version
        kept = self._webs.get(key) if version.kind == "http" else self._fleets.get(key)
        if kept is None or kept.version.revision != version.revision:
            return 0
        return kept.idle + kept.busy

    def loads(self) -> list[Load]:
        """The usage of each version that has instances or requests."""
        events = [
            Load(fleet.version.name, fleet.idle, fleet.busy, fleet.waiting)
            for fleet in [*self._fleets.values(), *self._retired]
        ]
        events += [Load(name, 0, 0, count) for name, count in self._turns.waiting().items()]
        return events + [
            Load(web.version.name, web.idle, web.busy, web.waiting)
            for web in [*self._webs.values(), *self._replaced]
        ]

    @asynccontextmanager
    async def web(self, version: FunctionVersion) -> "AsyncIterator[WebInstance]":
        """Hold the instance that serves a request over HTTP.

        Raises Throttled, Failed.
        """
        if version.kind != "http":
            raise Failed(f"{version.name} does not serve HTTP", "invoke it")
        arrived, began = time.time_ns(), time.monotonic_ns()
        cause, cold, taken = "node", False, None
        try:
            async with self._turns.turn(version):
                server = self._web(version)
                instance, cold = await server.take()
                taken = time.monotonic_ns()
                cause = ""
                try:
                    yield instance
                except Exception as error:
                    cause = server.cause(error)
                    raise
                finally:
                    server.give(instance)
        except Throttled:
            cause = "throttled"
            raise
        finally:
            self._observe(Invocation(
                version=version, request_id="", arrived=arrived, cold=cold, cause=cause,
                start_ns=taken - began if taken else None,
                duration_ns=time.monotonic_ns() - taken if taken else 0,
            ))  # fmt: skip

    def _web(self, version: FunctionVersion) -> "Web":
        from firstlight.agile.serving.web import Web  # h11 is not installed everywhere

        key = version.name, version.version
        server = self._webs.get(key)
        if server is None or server.version.revision != version.revision:
            if server:
                self._replaced.add(self._webs.pop(key))
                server.retire()
            server = self._webs[key] = Web(
                self.runtime,
                version,
                lambda: self.recent_output.sink(version.name),
                self._web_emptied,
            )
        server.version = version  # what it keeps may have been changed
        return server

    def _web_emptied(self, server: "Web") -> None:
        key = server.version.name, server.version.version
        if self._webs.get(key) is server:
            del self._webs[key]
        self._replaced.discard(server)

    async def _answer_by_fetching(
        self, version: FunctionVersion, event: Event, deadline: float | None
    ) -> Answer:
        """Answer by an instance that fetches its events."""
        while True:
            fleet = self._fleet(version)
            try:
                async with asyncio.timeout(deadline and deadline - time.monotonic()):
                    instance = await fleet.take()
            except TimeoutError:
                raise Failed(
                    f"no instance of {version.name} was free in time", "try again"
                ) from None
            except kept_instance.InitFailed as error:
                return error.answer
            try:
                return await instance.answer(event)
            except Lost:
                continue  # it ended while it was idle
            finally:
                fleet.give(instance)

    def _fleet(self, version: FunctionVersion) -> Fleet:
        key = version.name, version.version
        fleet = self._fleets.get(key)
        if fleet and fleet.version.revision != version.revision:  # it was updated
            self._retire(fleet)
            fleet = None
        elif fleet:
            fleet.version = version  # what it keeps may have been changed
        if fleet is None:
            fleet = Fleet(
                version,
                lambda version: kept_instance.start(
                    self.runtime, version, self.recent_output.sink(version.name), self._unforked
                ),
                self._drop_fleet,
            )
            self._fleets[key] = fleet
        return fleet

    def _retire(self, fleet: Fleet) -> None:
        self._retired.add(fleet)
        del self._fleets[fleet.version.name, fleet.version.version]
        fleet.retire()

    def _drop_fleet(self, fleet: Fleet) -> None:
        key = fleet.version.name, fleet.version.version
        if self._fleets.get(key) is fleet:
            del self._fleets[key]
        elif fleet in self._retired:
            self._retired.remove(fleet)
            self._release(fleet.version)

    def _release(self, version: FunctionVersion) -> None:
        """End the interpreter or worker that makes its instances."""
        self._unforked.discard(kept_instance.import_of(version))
        called = per_event.has_handler(version)
        if called or kept_instance.forks(version):
            definition = per_event.handler_definition if called else kept_instance.python_definition
            work = self.runtime.release(definition(version))
            task = asyncio.get_running_loop().create_task(work)
            self._releasing.add(task)
            task.add_done_callback(self._releasing.discard)

    def replaced(self, version: FunctionVersion) -> None:
        """No request begins with a version any more: those over HTTP have a time to end."""
        server = self._webs.get((version.name, version.version))
        if server and server.version.revision == version.revision:
            server.drain()

    async def retire(self, version: FunctionVersion) -> None:
        """End the idle instances of a version, and the others when they have answered."""
        key = version.name, version.version
        server = self._webs.get(key)
        if server and server.version.revision == version.revision:
            server.retire()
        fleet = self._fleets.get(key)
        if fleet and fleet.version.revision == version.revision:
            self._retire(fleet)
        else:
            self._release(version)

    def concurrency(self, name: str) -> int:
        """How many events of a function are being answered."""
        return self._turns.running(name)
