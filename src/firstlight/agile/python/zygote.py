"""Python functions: a warm interpreter with the handler imported, which forks for each request.

Zygote and forks run ``zygote_main.py`` inside the function's root file system. A fork is born in a
*place*, a sandbox with a trusted PID 1, and in its cgroup: the zygote is moved there in advance,
from outside. It gets its event after ``verify.py`` has verified its confinement. One fork is made
in advance, or as many as the pool ``fork`` says; a request that finds none makes its own.

Over 500 lines: the zygote's cgroup, its files and its forks change together, under two locks;
separate modules would call each other at each step.
"""

import asyncio
import json
import logging
import math
import socket
import time
from collections import deque
from collections.abc import Awaitable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from firstlight.agile import coding, verify
from firstlight.agile.config import Config
from firstlight.agile.function import (
    EVENTS_PORT,
    HANDLER_ERROR,
    Function,
    HandlerFailed,
    NodeFailed,
    Result,
)
from firstlight.agile.network.networks import Network, Networks
from firstlight.agile.node.instances import Instances
from firstlight.agile.output import Output
from firstlight.agile.parts.cgroups import Cgroup, Cgroups
from firstlight.agile.parts.pool import LoadGate, Pool
from firstlight.agile.python import interpreter
from firstlight.agile.python.fork import Fork, Line, made
from firstlight.agile.python.forked import Forked
from firstlight.agile.python.interpreter import Interpreter
from firstlight.agile.python.place import Place
from firstlight.agile.python.sources import Changes, keeps_changing
from firstlight.agile.verify import Unconfined
from firstlight.errors import Failed

T = TypeVar("T")
_TRIES = 3
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resources:
    """What a runtime's Python functions share."""

    config: Config
    instances: Instances
    networks: Networks
    cgroups: Cgroups
    gate: LoadGate
    changes: Changes


class Zygote:
    """A function's zygote and its forks, which are born in cgroups of a pool."""

    def __init__(self, resources: Resources, function: Function, cgroups: Pool[Cgroup]) -> None:
        self.function = function
        self._resources, self._cgroup_pool = resources, cgroups
        self._networks: deque[Network] = deque()  # used, but verified as new
        self._cgroups: deque[Cgroup] = deque()  # used, but emptied
        self._up: Interpreter | None = None
        self._starting, self._forking = asyncio.Lock(), asyncio.Lock()
        self._generation = 0
        self._suspect, self._looked, self.used = False, 0.0, time.monotonic()
        self.working = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = self._leaves = self._settles = False
        self._refusal: Unconfined | None = None  # not yet reported to a request
        self._prepared: asyncio.Task[Fork] | None = None  # the next fork
        self._next: asyncio.Task[Fork | None] | None = None  # the fork that the zygote was told of
        self._standing: Place | None = None  # the zygote is in its cgroup
        self._tasks: set[asyncio.Task[Any]] = set()
        pools = resources.config.pools
        places = msgspec.structs.replace(pools.network, low=min(1, pools.network.high))
        self.forks: Pool[Fork] = Pool(
            f"fork {function.handler}", pools.fork, self._ready_fork, self._discard, None,
            pools.window,
        )  # fmt: skip
        self._places: Pool[Place] = Pool(
            f"place of {function.handler}", places, self._make_place, self._give_back,
            resources.gate, math.inf if pools.window else 0.0,
        )  # fmt: skip
        self._request = json.dumps(
            {"files": function.files, "directory": function.directory}
        ).encode()

    @property
    def pools(self) -> list[Pool[Any]]:
        """Its pools."""
        return [self.forks, self._places]

    @property
    def pid(self) -> int:
        """The zygote's pid, or -1."""
        return self._up.pid if self._up else -1

    async def prepare(self, forks: int) -> None:
        """Make places up to the mark, and this many waiting forks. Raises Failed."""
        await self._places.warm()
        await self.forks.warm(forks)

    async def invoke(self, event: object, requested: int) -> Result:
        """Run the handler on an event in a new instance. Raises Failed."""
        return await self._works(self._invoke(event, requested))

    async def _invoke(self, event: object, requested: int) -> Result:
        handler, seconds = self.function.handler, self.function.timeout
        try:
            line = msgspec.json.encode(event) + b"\n"
        except (UnicodeEncodeError, TypeError, RecursionError) as error:
            raise HandlerFailed(
                "Runtime.UnmarshalError", f"the event of {handler} is not JSON: {error}"
            ) from error
        with self._resources.gate:
            fork, warm = await self._take_fork()
        node = self._resources.instances.pid
        try:
            async with asyncio.timeout(seconds):
                answer, texts = await fork.ask(line)
        except TimeoutError:
            raise HandlerFailed(
                "Sandbox.Timedout", f"{handler} did not answer in {seconds} s",
                "give the function a longer timeout", output=fork.written(),
            ) from None  # fmt: skip
        except Failed as error:
            self._raise_refusal()  # its zygote was ended, and this fork with it
            if self._resources.cgroups.ran_out_of_memory(fork.place.cgroup):
                raise HandlerFailed(
                    "Runtime.OutOfMemory",
                    f"{handler} exceeded its memory limit of {self.function.memory >> 20} MiB",
                    output=fork.written(),
                ) from None  # fmt: skip
            if await self._is_lost(fork, node):
                raise NodeFailed(
                    f"the instance, or its node, was ended while {handler} ran", "try again"
                ) from error
            if isinstance(error, HandlerFailed):
                error.output = fork.written()
            raise
        finally:
            self._discard(fork)
        stdout, stderr = (text.decode(errors="replace") for text in texts)
        try:
            value = self._value(answer)
        except HandlerFailed as error:
            error.output = stdout + stderr
            raise
        return Result(
            value=value, requested=requested, began=answer.began or 0,
            finished=time.monotonic_ns(), warm=warm, stdout=stdout, stderr=stderr,
        )  # fmt: skip

    async def serve(self, environment: dict[str, str]) -> Forked:
        """Make an instance that fetches events, with these variables added. Raises Failed."""
        with self._resources.gate:
            fork, warm = await self._works(self._take_fork())
        node = self._resources.instances.pid
        forked = Forked(
            fork, warm, lambda: self._resources.cgroups.ran_out_of_memory(fork.place.cgroup),
            lambda: self._is_lost(fork, node),
        )  # fmt: skip
        line = msgspec.json.encode(environment) + b"\n"
        self._task(self._works(forked.run(line, self._discard)))
        return forked

    def _value(self, answer: Line) -> msgspec.Raw:
        """The handler's result. Raises Failed."""
        handler = self.function.handler
        if answer.raised is not None:
            kind, text = answer.error or ("Error", None)
            raise HandlerFailed(
                kind, f"{handler} raised: {answer.raised.rstrip()}", text=text,
                trace=tuple(answer.raised.splitlines(keepends=True)),
            )  # fmt: skip
        if answer.exited is not None:
            raise HandlerFailed(
                "Runtime.ExitError", f"{handler} called sys.exit({answer.exited})",
                "return the answer instead",
            )  # fmt: skip
        if answer.unfit is not None:
            raise HandlerFailed(
                "Runtime.MarshalError",
                f"{handler} returned something that is not JSON: {answer.unfit}",
                "return None, booleans, finite numbers, text, lists or dicts",
            )
        if answer.began is None:
            raise HandlerFailed(HANDLER_ERROR, f"{handler} failed: {answer.failed}")
        if isinstance(answer.result, msgspec.Raw):
            return answer.result
        try:
            return msgspec.Raw(coding.encode(answer.result))
        except (RecursionError, ValueError) as error:
            raise HandlerFailed(
                "Runtime.MarshalError", f"{handler} returned something that is not JSON: {error}",
                "return fewer lists in lists, and finite numbers",
            ) from None  # fmt: skip

    async def _take_fork(self) -> tuple[Fork, bool]:
        """A fork, and whether it was waiting; of the next zygote if the node ends meanwhile."""
        node = self._resources.instances.pid
        try:
            return await self._take()
        except Failed:
            if not await self._has_lost(node):
                raise
        return await self._take()

    async def _is_lost(self, fork: Fork, node: int) -> bool:
        """Whether a fork that did not answer was killed from outside its sandbox."""
        if fork.place.hold.fileno() < 0:
            return False
        zygote_lost = fork.zygote is not None and await fork.zygote.is_lost()
        return zygote_lost or fork.place.is_killed or await self._has_lost(node)

    async def _has_lost(self, node: int) -> bool:
        return not self._closing and await self._resources.instances.has_lost(node)

    async def _take(self) -> tuple[Fork, bool]:
        self._raise_refusal()
        while fork := self.forks.take_ready():
            if fork.place.is_alive and self._is_up():
                return fork, True
            self._discard(fork)  # it ended with its zygote
        try:
            return await self.forks.take_first(), False
        except Unconfined as error:
            self._refusal = None if self._refusal is error else self._refusal
            raise

    def _raise_refusal(self) -> None:
        """Raise the failure of a fork that was made in advance, as Unconfined."""
        refusal, self._refusal = self._refusal, None
        if refusal:
            raise refusal

    def _is_up(self) -> bool:
        return self._up is not None and self._up.is_up

    async def start(self) -> None:
        """Start the zygote if needed; wait for the import. Raises Failed, Unsupported."""
        async with self._starting:
            if self._closing:
                raise Failed("the runtime is stopping")
            if self._settles and self._up:
                self._settles = False
                await self._up.settle()
            if not self._is_up():
                await self._forget()
                self._up = await self._start_interpreter()
                self._is_new()

    async def take_over(self, up: Interpreter) -> None:
        """Take over an earlier manager's zygote."""
        self._up = up
        await self._watch(up)
        self._suspect = True
        self._settles = True
        self._is_new()

    def outlive(
        self, place: Place, events: socket.socket, outputs: list[Output], busy: bool
    ) -> None:
        """Let an earlier manager's fork end its work; its answer is dropped."""
        place.generation = self._generation
        fork = Fork(self.function, place, events, outputs)
        self._task(self._works(self._finish(fork, busy)))

    async def _finish(self, fork: Fork, busy: bool) -> None:
        try:
            if busy:
                await fork.listen()
                async with asyncio.timeout(self.function.timeout):
                    await fork.answer()
        except (TimeoutError, Failed) as error:
            _log.info("a fork of %s: %s", self.function.handler, error)
        finally:
            self._discard(fork)

    def _is_new(self) -> None:
        assert self._up
        self._up.instance.ended.add_done_callback(lambda _: self._stands_in(None))
        self._generation += 1
        self.used = time.monotonic()  # the import may have taken longer than the idle time

    async def _start_interpreter(self) -> Interpreter:
        instances, looks = self._resources.instances, dict[str, tuple[int, ...]]()
        for _ in range(_TRIES):
            up = await interpreter.start(self.function, instances, self._resources.cgroups)
            try:
                await up.await_import()
                await self._watch(up)
                changed = await asyncio.to_thread(up.sources.changed_since, up.began, looks)
                looks |= changed
                if not changed:
                    up.digest = await asyncio.to_thread(up.sources.digest)
                    up.keep(instances)
                    return up
            except BaseException:
                self._end(up)
                raise
            self._end(up)
            with suppress(Failed):  # the node hangs
                await up.instance.wait()
        raise keeps_changing(self.function.handler, list(changed))

    async def _watch(self, up: Interpreter) -> None:
        self._suspect, self._looked = False, time.monotonic()
        await self._resources.changes.watch(up.sources, self._note_suspicion)

    def _note_suspicion(self) -> None:
        self._suspect = True

    async def is_stale(self) -> bool:
        """Whether the files that its zygote loaded have changed."""
        up, seconds = self._up, self._resources.config.functions.look_seconds
        self.used = now = time.monotonic()
        if up is None or not (self._suspect or now - self._looked > seconds):
            return False
        self._suspect, self._looked = False, now
        if await asyncio.to_thread(up.sources.digest) == up.digest:
            return False
        self._suspect = True  # for requests that come meanwhile
        return up is self._up

    def _end(self, up: Interpreter) -> None:
        self._resources.changes.forget(up.sources)
        up.close()

    async def _make_place(self) -> Place:
        """Make a place for the current zygote. Raises Failed."""
        await self.start()
        assert self._up is not None
        up, generation, resources = self._up, self._generation, self._resources
        if self._networks:
            network = self._networks.popleft()
        elif self.function.serves == "events":
            network = await resources.networks.make_listening(
                self.function.network, EVENTS_PORT, up.owner
            )
        else:
            network = await resources.networks.make(self.function.network, up.owner)
        try:
            cgroup = self._cgroups.popleft() if self._cgroups else await self._take_cgroup()
            try:
                return await up.placer.make(resources.cgroups, network, cgroup, generation)
            except BaseException:
                self._task(self._empty(cgroup))
                raise
        except BaseException:
            resources.networks.discard(network)
            raise

    async def _take_cgroup(self) -> Cgroup:
        return (await self._cgroup_pool.take())[0]

    def _prepare(self) -> None:
        """Prepare a fork while the previous one is born."""
        if self._prepared is None and not self._closing:
            self._prepared = self._task(self._prepare_fork())

    async def _prepare_fork(self) -> Fork:
        """Prepare a fork before the zygote is told: its place and its descriptors."""
        place, up = await self._next_place(), self._up
        assert up is not None
        try:
            function = self.function
            expected = place.expected(*up.identity, up.filters + 1)
            fork = made(function, place, expected, up)
            try:
                fork.keep(self._resources.instances.keep, up.instance.number)
                await fork.listen()
            except BaseException:
                fork.close()
                raise
        except BaseException as error:
            self._give_back(place)
            if isinstance(error, OSError):
                raise self._gone(error) from error
            raise
        return fork

    async def _next_prepared(self) -> Fork:
        """A prepared fork of the current zygote. Raises what preparing it raises."""
        while True:
            self._prepare()
            task, self._prepared = self._prepared, None
            if task is None:
                raise Failed("the runtime is stopping")
            fork = await task
            if self._is_current(fork.place) and fork.place.is_alive:
                return fork
            self._discard(fork)

    async def _arm_fork(self) -> Fork | None:
        """Move the zygote into the next fork's cgroup, and send the fork's descriptors. Returns
        None if it ended before: another zygote must not be told of two forks.
        """
        up = self._up
        assert up is not None
        try:
            fork = await self._next_prepared()
        except BaseException:
            if up is self._up:  # its cgroup may be the last part for a place
                with suppress(OSError):
                    up.go_home()
                    self._stands_in(None)
            raise
        place = fork.place
        if up is not self._up:
            self._discard(fork)
            return None
        place.left.clear()
        try:
            await asyncio.to_thread(self._move, up, place)
            if up is not self._up or not up.is_up:
                raise self._gone()
            self._stands_in(place)
            await up.send(self._request, fork.given)
            fork.hand_over()
        except BaseException as error:
            self._spoil(up, error)
            place.left.set()
            self._discard(fork)
            if isinstance(error, OSError):
                raise self._gone(error) from error
            raise
        return fork

    def _gone(self, error: OSError | None = None) -> NodeFailed:
        why = f": {error.strerror}" if error else ""
        return NodeFailed(f"the zygote of {self.function.handler} is gone{why}", "try again")

    def _spoil(self, up: Interpreter, error: BaseException) -> None:
        """End a zygote that failed while it was told to fork: its state is unknown."""
        if self._leaves:
            return
        if isinstance(error, Unconfined):
            self._refusal = error
        up.kill()

    def _move(self, up: Interpreter, place: Place) -> None:
        """Move it, if its forks have left it unchanged. Raises Failed, OSError."""
        up.check()
        self._resources.cgroups.move(up.pid, place.cgroup)

    async def _next_place(self) -> Place:
        while True:
            place, _ = await self._places.take()
            if self._is_current(place) and place.is_alive:
                return place
            self._give_back(place)

    def _stands_in(self, place: Place | None) -> None:
        before, self._standing = self._standing, place
        if before:
            before.left.set()

    def _arm_ahead(self) -> None:
        """Prepare the next fork while no request waits."""
        if not self._forking.locked():  # its owner needs the zygote where it is
            self._arm()

    def _arm(self) -> None:
        if self._next is None and self._is_up() and not self._closing:
            self._next = self._task(self._arm_fork())

    async def _take_announced(self) -> Fork:
        """Take the fork that the zygote has been told of. Raises Failed."""
        for _ in range(_TRIES):
            await self.start()
            self._arm()
            task, self._next = self._next, None
            if task and (fork := await task):
                return fork
        raise self._gone()

    async def _ready_fork(self) -> Fork:
        async with self._forking:
            fork, up = await self._take_announced(), self._up
            node = self._resources.instances.pid
            try:
                if up is None:
                    raise self._gone()
                await up.send(b"fork", [])
                self._prepare()
                async with asyncio.timeout(self.function.timeout):
                    await fork.ready()
                fork.check(await self._born(fork, up.pid), up.pid)
            except BaseException as error:
                if isinstance(error, TimeoutError):
                    name, seconds = self.function.handler, self.function.timeout
                    error = HandlerFailed(
                        "Sandbox.Timedout", f"a fork of {name} was not ready in {seconds} s"
                    )
                elif isinstance(error, HandlerFailed) and await self._is_lost(fork, node):
                    error = self._gone()
                if up:
                    if isinstance(error, Failed):
                        error.hint = error.hint or up.words
                    self._spoil(up, error)
                self._discard(fork)
                raise error from None
        asyncio.get_running_loop().call_soon(self._arm_ahead)
        return fork

    async def _born(self, fork: Fork, zygote: int) -> int:
        """The new process in a place. Raises Failed."""
        others = zygote, fork.place.pid
        try:
            pids = self._resources.cgroups.processes(fork.place.cgroup).difference(others)
            if len(pids) == 1:
                return pids.pop()
            for pid in others:  # the fork ends with either; the import is not at fault
                verify.check_alive(pid)
        except OSError as error:
            raise self._gone(error) from error
        if not pids and await fork.has_ended():
            raise HandlerFailed(
                "Runtime.ExitError",
                f"a fork of {self.function.handler} ended before it was ready",
            )
        raise Unconfined(f"the zygote of {self.function.handler} did not make exactly one process",
                         "the import must not change os.fork or start processes")  # fmt: skip

    def _discard(self, fork: Fork) -> None:
        if self._leaves:
            return
        fork.close()
        self._give_back(fork.place)

    async def _works(self, work: Awaitable[T]) -> T:
        """Do work for a request, before which the zygote does not retire."""
        self.working += 1
        self._idle.clear()
        try:
            return await work
        finally:
            self.working -= 1
            if not self.working:
                self._idle.set()

    def _give_back(self, place: Place) -> None:
        """End the processes in a place; this function can reuse its parts."""
        place.end()
        self._task(self._recycle(place))

    async def _recycle(self, place: Place) -> None:
        await place.left.wait()
        groups, networks = self._resources.cgroups, self._resources.networks
        await groups.kill(place.cgroup)
        high = self._resources.config.pools.network.high
        serves = self.function.serves != "nothing"
        again = len(self._networks) < high and not self.function.ports and not serves
        if again:  # the check takes CPU time from requests, unless they wait for the network
            await self._resources.gate.wait_idle(lambda: not len(self._places), lambda: False)
        again = again and self._is_current(place) and await networks.is_as_new(place.network)
        if again and self._is_current(place):  # a later zygote could not enter it
            self._networks.append(place.network)
        else:
            networks.discard(place.network)
        # A zygote's memory stays charged to the cgroup, so there are few, and they are reused.
        if len(self._cgroups) < high and not groups.ran_out_of_memory(place.cgroup):
            self._cgroups.append(place.cgroup)
        else:
            groups.remove(place.cgroup)

    def _is_current(self, place: Place) -> bool:
        return place.generation == self._generation and self._is_up()

    async def _empty(self, cgroup: Cgroup) -> None:
        await self._resources.cgroups.kill(cgroup)
        self._resources.cgroups.remove(cgroup)

    async def _forget(self) -> None:
        """Release a zygote that has ended, and its parts."""
        up, self._up = self._up, None
        if up:
            self._end(up)
            with suppress(Failed):  # the node hangs
                await up.instance.wait()
        self._stands_in(None)
        for task in (self._prepared, self._next):
            if task:
                task.add_done_callback(self._not_needed)
        self._prepared = self._next = None
        while self._networks:
            self._resources.networks.discard(self._networks.popleft())

    def _not_needed(self, task: asyncio.Task[Fork] | asyncio.Task[Fork | None]) -> None:
        if not task.cancelled() and not task.exception() and (fork := task.result()):
            self._discard(fork)

    def _task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or not (error := task.exception()):
            return
        if isinstance(error, Failed):  # the next request fails too, and reports it
            _log.info("of %s: %s", self.function.handler, error.message)
        else:
            _log.error("a zygote's upkeep failed", exc_info=error)

    def leave(self) -> None:
        """Stop without ending anything: the next manager takes over."""
        self._closing = self._leaves = True

    async def left(self) -> None:
        """Stop."""
        for pool in self.pools:
            await pool.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._up:
            self._up.leave()

    def follow(self) -> None:
        """Discard forks and places beyond the demand."""
        for pool in self.pools:
            pool.follow()

    async def retire(self) -> None:
        """End, but let the handlers that are at work end first."""
        await self._idle.wait()
        await self.close()

    @property
    def is_idle(self) -> bool:
        """Whether no handler is at work."""
        return not self.working

    async def close(self) -> None:
        """End the zygote and its forks, and release their parts."""
        self._closing = True
        for pool in self.pools:
            await pool.close()
        if self._up:
            self._up.kill()
        await self._forget()
        while self._tasks:
            await asyncio.wait(self._tasks)
        while self._cgroups:
            self._resources.cgroups.remove(self._cgroups.popleft())
