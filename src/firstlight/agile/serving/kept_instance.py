"""An instance that fetches events over the Lambda Runtime API, and is kept for the next."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable

import msgspec

from firstlight.agile.function import EVENTS_PORT, Function
from firstlight.agile.functions.version import REGION, FunctionVersion
from firstlight.agile.instance import Instance
from firstlight.agile.python.forked import Forked
from firstlight.agile.python.interpreter import INTERPRETER
from firstlight.agile.runtime import Runtime
from firstlight.agile.serving.answer import (
    Answer,
    Step,
    ending,
    failure,
    timed_out,
    too_long,
)
from firstlight.agile.serving.log import Log, start_logged
from firstlight.agile.serving.runtime_api import Event, Lost, Reply, RuntimeApi
from firstlight.agile.verify import Unconfined
from firstlight.errors import Failed, longer

INIT_SECONDS = longer(10.0)
"""The least time limit of an instance's initialization."""
_TAIL_MAX = 4096
Import = tuple[str, int]
Sink = Callable[[bytes], None]
_log = logging.getLogger(__name__)
_COMMANDS = {
    "python": (INTERPRETER, "-m", "awslambdaric"),
    "bootstrap": ("/var/task/bootstrap",),
}


class InitFailed(Exception):
    """An instance failed before its first event; has the answer to the event it was started for."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer


class KeptInstance:
    """One instance, which answers one event at a time."""

    def __init__(
        self,
        version: FunctionVersion,
        instance: Forked | Instance,
        api: RuntimeApi,
        log: Log,
        requested: int,
    ) -> None:
        self.version, self.instance = version, instance
        self._api, self._log, self._requested = api, log, requested
        self._events = self._init_ns = 0
        self._steps: tuple[Step, ...] = ()
        self.expiry: asyncio.TimerHandle | None = None
        self.was_ahead = False
        """Whether it was started before there was an event for it."""

    @property
    def is_up(self) -> bool:
        """Whether it is not known to have ended."""
        return not self.instance.ended.done()

    async def _give_up(self) -> None:
        """End it for its being late, which its events do not call stopped."""
        if isinstance(self.instance, Instance):
            self.instance.state = "timed out"
        await self.instance.stop()

    async def open(self) -> None:
        """Wait until it asks for its first event. Raises InitFailed, Failed; NodeFailed if it is
        killed from outside.
        """
        seconds = max(INIT_SECONDS, self.version.timeout)
        error: Reply | None = None
        try:
            async with asyncio.timeout(seconds):
                await asyncio.wait((self.instance.network, self.instance.ended),
                                   return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
                if self.is_up:
                    await self._api.open(self.instance.network.result().take_listener())
                error = await asyncio.shield(self._api.initialized)
        except TimeoutError:
            await self._give_up()
            raise InitFailed(
                self._failure("Sandbox.Timedout", f"Init {timed_out(seconds)}")
            ) from None
        except Lost:
            raise InitFailed(self._failure(*await self._ending())) from None
        if error:
            answer = self._failure("Runtime.InitError", "the initialization failed")
            payload = error.payload or answer.payload  # one that is too long is not kept
            raise InitFailed(msgspec.structs.replace(answer, payload=payload))
        now = time.monotonic_ns()
        self._init_ns, self._steps = now - self._requested, self._start_steps(now)

    def _start_steps(self, now: int) -> tuple[Step, ...]:
        """The steps of its start: the node's own, or a fork; then its initialization."""
        stamps = self.instance.stamps
        names = sorted((name for name in stamps if name != "requested"), key=stamps.__getitem__)
        at, steps = self._requested, []
        for name in names:
            steps.append(Step(name, at, max(at, stamps[name])))
            at = max(at, stamps[name])
        return (*steps, Step("initialize", at, now))

    def _failure(self, kind: str, message: str) -> Answer:
        answer = Answer(
            payload=b"", log_tail=self._log.since(0, _TAIL_MAX),
            init_ns=time.monotonic_ns() - self._requested,
        )  # fmt: skip
        return failure(answer, kind, message)

    async def answer(self, event: Event) -> Answer:
        """Its answer to an event, or its error. Raises Lost if it ended before it fetched the
        event.

        An instance that does not answer in time, or whose caller has gone, is ended. Raises
        NodeFailed for one that is killed from outside.
        """
        cold, self._events = self._events == 0 and not self.was_ahead, self._events + 1
        before, began = self._log.size, time.monotonic_ns()
        reply: Reply | None = None
        lost = False
        try:
            async with asyncio.timeout(event.seconds):
                reply = await self._api.ask(event)
        except TimeoutError:
            await self._give_up()
        except Lost as error:
            if not error.taken and not cold:
                raise
            lost = True
        except BaseException:
            self.instance.kill()
            raise
        answer = Answer(
            payload=reply.payload if reply else b"",
            error="Unhandled" if reply and reply.error else None,
            cause="handler" if reply and reply.error else "",
            log_tail=self._log.since(before, _TAIL_MAX), cold=cold,
            init_ns=self._init_ns if cold else 0,
            steps=self._steps if cold else (), duration_ns=time.monotonic_ns() - began,
        )  # fmt: skip
        if lost:
            kind, text = await self._ending(before)
            return failure(answer, kind, f"RequestId: {event.request_id} Error: {text}")
        if reply is None:
            text = f"RequestId: {event.request_id} Error: {timed_out(event.seconds)}"
            return failure(answer, "Sandbox.Timedout", text)
        if reply.too_large:
            return too_long(answer)
        return answer

    async def _ending(self, before: int = 0) -> tuple[str, str]:
        """How it ended, with the last line logged after this size. Raises NodeFailed."""
        ended = await self.instance.wait()
        return ending(ended, self.version.memory, self._log.since(before))

    async def stop(self) -> None:
        """End it."""
        if self.expiry:
            self.expiry.cancel()
        await self.instance.stop()


async def start(
    runtime: Runtime, version: FunctionVersion, sink: Sink, unforked: set[Import]
) -> KeptInstance:
    """Start an instance, and wait until it asks for its first event. ``unforked`` has the versions
    whose import cannot be shared.

    Raises InitFailed if it fails before, and Failed if it cannot be started.
    """
    requested = time.monotonic_ns()
    instance: Forked | Instance
    if forks(version) and import_of(version) not in unforked:
        instance, log = await _start_fork(runtime, version, requested, sink, unforked)
    else:
        instance, log = await start_logged(runtime, definition(version), sink, requested)
    api = RuntimeApi(version.owner, version.name)
    instance.ended.add_done_callback(lambda _: api.end())
    instance.ended.add_done_callback(lambda _: log.close())
    kept = KeptInstance(version, instance, api, log, requested)
    try:
        await kept.open()
    except BaseException:
        await instance.stop()
        raise
    return kept


def forks(version: FunctionVersion) -> bool:
    """Whether its instances are forks of a warm interpreter.

    Instances with volumes or secrets are not: these are mounted in each one's own root.
    """
    own = version.command or version.volumes or version.secrets
    return version.kind == "python" and not own


async def _start_fork(
    runtime: Runtime, version: FunctionVersion, requested: int, sink: Sink, unforked: set[Import]
) -> tuple[Forked | Instance, Log]:
    """Start a fork; or an interpreter of its own, if the import fails or cannot be shared."""
    try:
        forked = await runtime.serve(python_definition(version), _of_instance(version))
    except Failed as error:
        not_forked(version, error, unforked)
        return await start_logged(runtime, definition(version), sink, requested)
    return forked, Log(forked.outputs, sink)


def import_of(version: FunctionVersion) -> Import:
    """What is imported for it."""
    return version.name, version.revision


def not_forked(version: FunctionVersion, error: Failed, unforked: set[Import]) -> None:
    """Note why its instances have interpreters of their own: at their next start, if that will not
    change.
    """
    _log.info("%s is not forked: %s", version.name, error.message)
    if isinstance(error, Unconfined):
        unforked.add(import_of(version))


def python_definition(version: FunctionVersion) -> Function:
    """The function by which the interpreter that forks a version's instances is started.

    It differs between revisions, so that each can end alone.
    """
    return msgspec.structs.replace(
        definition(version), kind="python", command=(), handler=version.handler,
        env={**environment(version), "FIRSTLIGHT_REVISION": str(version.revision),
             "AWS_LAMBDA_LOG_STREAM_NAME": f"[{version.version}]"},
        timeout=max(INIT_SECONDS, version.timeout),
    )  # fmt: skip


def definition(version: FunctionVersion) -> Function:
    """The function that the node starts for a version that fetches events."""
    command = version.command or _COMMANDS.get(version.kind, ())
    if version.kind == "python" and not version.command:
        command = (*command, version.handler)
    return Function(
        rootfs=version.root, name=version.label, owner=version.owner, command=command,
        env={**environment(version), **_of_instance(version)},
        directory=version.directory, memory=version.memory, scratch=version.scratch,
        cpus=version.cpus, network=version.network, netlink=version.netlink, reuse="none",
        serves="events", volumes=version.volumes, secrets=version.secrets, pids=version.pids,
    )  # fmt: skip


def environment(version: FunctionVersion) -> dict[str, str]:
    """The variables that Lambda sets. The function's own may change the first half."""
    return {
        "LANG": "C.UTF-8",  # as few hosts have the locale en_US
        "TZ": ":UTC",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "PATH": "/usr/local/bin:/usr/bin:/bin:/opt/bin",
        "LD_LIBRARY_PATH": "/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:"
        "/var/task/lib:/opt/lib",
        **version.environment,
        "_HANDLER": version.handler,
        "LAMBDA_TASK_ROOT": "/var/task",
        "LAMBDA_RUNTIME_DIR": "/var/runtime",
        "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{EVENTS_PORT}",
        "AWS_LAMBDA_FUNCTION_NAME": version.name,
        "AWS_LAMBDA_FUNCTION_VERSION": version.version,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(version.memory >> 20),
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{version.name}",
    }


def _of_instance(version: FunctionVersion) -> dict[str, str]:
    """The variables that differ between instances."""
    today = time.strftime("%Y/%m/%d", time.gmtime())
    name = f"{today}/[{version.version}]{secrets.token_hex(16)}"
    return {"AWS_LAMBDA_LOG_STREAM_NAME": name}
