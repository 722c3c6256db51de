"""Python functions: a warm interpreter with the handler imported, which forks for each request.

Zygote and forks run inside the function's root file system (``zygote_main.py`` is what they
execute). A fork that waits for its event is the deepest level of preparation; one is made on
request where none does.
"""

import asyncio
import json
import os
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import msgspec
from msgspec import Struct

from firstlight.agile import seccomp, wire
from firstlight.agile.cgroups import Cgroup, Cgroups
from firstlight.agile.config import Config
from firstlight.agile.function import Function, Result
from firstlight.agile.network import Network, Networks
from firstlight.agile.output import Output, pipes
from firstlight.agile.pool import Pool, Traffic
from firstlight.agile.spawner import Child, Spawner
from firstlight.agile.wire import Flag
from firstlight.errors import Failed

ZYGOTE_PROFILE = 1
ZYGOTE_CALLS = ("clone", "mount", "setns", "sethostname", "umount2", "unshare")
INTERPRETER = "/usr/bin/python3"
_ANSWER_MOST = 8 << 20
_OUTPUT_MOST = 1 << 16
_MASKED = ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts",
           "/proc/acpi", "/proc/scsi", "/proc/asound")  # fmt: skip


class _Said(Struct, frozen=True):
    """A line of a fork: it waits, its handler returned or raised, or it is no sandbox."""

    ready: int | None = None
    began: int | None = None
    result: Any = None
    raised: str | None = None
    failed: str = "it did not say why"


@dataclass
class Node:
    """What the functions of one runtime have in common."""

    config: Config
    networks: Networks
    cgroups: Cgroups
    traffic: Traffic
    spawner: Callable[[], Spawner]
    take_cgroup: Callable[[], Awaitable[Cgroup]]


@dataclass(eq=False)
class Fork:
    """One fork of the zygote, with its parts. ``lines`` and ``writer`` are its event socket."""

    lines: asyncio.StreamReader
    writer: asyncio.StreamWriter
    outputs: list[Output]
    network: Network
    cgroup: Cgroup
    generation: int


class Zygote:
    """The zygote of one function, and its forks."""

    def __init__(self, node: Node, function: Function, template: int) -> None:
        self.function = function
        self._node, self._template = node, template
        self._used: deque[Network] = deque()
        self._child: Child | None = None
        self._control: socket.socket | None = None
        self._cgroup: Cgroup | None = None
        self._owner = -1
        self._starting = asyncio.Lock()
        self.forks: Pool[Fork] = Pool(
            f"fork {function.handler}", node.config.pools.sandbox,
            self._ready_fork, self._discard, node.traffic,
        )  # fmt: skip
        self._generation = 0
        self._networks: Pool[tuple[int, Network]] = Pool(
            f"network of {function.handler}", node.config.pools.network,
            self._make_network, lambda made: node.networks.discard(made[1]), node.traffic,
        )  # fmt: skip
        self._request = json.dumps({
            "masked": _MASKED, "files": function.files,
            "tmpfs": f"size={function.scratch},nr_inodes=65536,mode=1777",
        }).encode()  # fmt: skip

    @property
    def pools(self) -> list[Pool[Any]]:
        """Its own pools."""
        return [self.forks, self._networks]

    @property
    def pid(self) -> int:
        """The zygote's process, or -1."""
        return self._child.pid if self._child else -1

    async def prepare(self, forks: int) -> None:
        """Make the networks of forks, and that many forks that wait. Raises Failed."""
        await self._networks.warm()
        await self.forks.warm(forks)

    async def invoke(self, event: object, requested: int) -> Result:
        """Run the handler on one event in an instance of its own. Raises Failed."""
        with self._node.traffic:
            fork, warm = await self._taken()
        try:
            answer, texts = await asyncio.wait_for(self._ask(fork, event), self.function.timeout)
        except TimeoutError:
            raise Failed(
                f"{self.function.handler} did not answer in {self.function.timeout} s"
            ) from None
        finally:
            await self._end(fork)
        if answer.raised is not None:
            raise Failed(f"{self.function.handler} raised: {answer.raised.rstrip()}")
        if answer.began is None:
            raise Failed(f"{self.function.handler} failed: {answer.failed}")
        return Result(
            value=msgspec.Raw(msgspec.json.encode(answer.result)), requested=requested,
            began=answer.began, finished=time.monotonic_ns(), warm=warm,
            stdout=texts[0], stderr=texts[1],
        )  # fmt: skip

    async def _taken(self) -> tuple[Fork, bool]:
        """A fork, and whether it was waiting."""
        if self._child and self._child.ended.done():
            self._generation += 1
        while (fork := self.forks.take_ready()) and fork.generation != self._generation:
            self._discard(fork)  # it ended with its zygote
        return (fork, True) if fork else (await self._ready_fork(), False)

    async def start(self) -> None:
        """Have the zygote up: return when the handler is imported. Raises Failed."""
        async with self._starting:
            if not self._child or self._child.ended.done():
                await self._start()

    async def _start(self) -> None:
        self._forget()
        node, function = self._node, self.function
        code = files("firstlight.agile").joinpath("zygote_main.py").read_text()
        self._cgroup = await node.take_cgroup()
        with ExitStack() as passed, ExitStack() as failed:
            alone = await node.networks.make("none")
            passed.callback(os.close, alone.descriptor)
            outputs, streams = pipes()
            for output in outputs:
                passed.callback(output.close)
            for descriptor in streams:
                passed.callback(os.close, descriptor)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            passed.callback(theirs.close)
            failed.callback(ours.close)
            ours.setblocking(False)
            flags = Flag.USER_NAMESPACE | Flag.ZYGOTE
            flags |= Flag.CLONE_INTO if node.cgroups.unified else Flag(0)
            child = node.spawner().spawn(
                wire.sandbox(
                    flags, ZYGOTE_PROFILE, function.uid, function.gid, 4096,
                    f"size={function.scratch},nr_inodes=65536,mode=1777", "zygote",
                ),
                [self._template, alone.descriptor, *self._cgroup.descriptors],
            )  # fmt: skip
            failed.callback(child.kill)
            command = (INTERPRETER, "-c", code, function.handler)
            env = {"PYTHONDONTWRITEBYTECODE": "1", **function.env}
            child.wake(
                wire.start(command, env, function.directory),
                [theirs.fileno(), streams[1], streams[2]],
            )
            await child.runs
            await child.made
            self._owner = os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY)
            await self._imported(ours, outputs[1])
            self._child, self._control = child, ours
            failed.pop_all()

    async def _imported(self, control: socket.socket, err: Output) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(control, seccomp.program())
        try:
            message = await asyncio.wait_for(
                loop.sock_recv(control, 1 << 16), self.function.timeout
            )
        except TimeoutError:
            raise Failed(
                f"importing {self.function.handler} took over {self.function.timeout} s"
            ) from None
        answer = json.loads(message) if message else {"failed": (await err.all()).decode()}
        if "imported" not in answer:
            raise Failed(f"cannot import {self.function.handler}: {answer['failed'].rstrip()}")

    async def _make_network(self) -> tuple[int, Network]:
        await self.start()
        generation = self._generation
        reach = self.function.network
        return generation, await self._node.networks.make(reach, self._owner)

    async def _network(self) -> Network:
        """One that this zygote's user namespace owns, and not that of one before it."""
        if self._used:
            return self._used.popleft()
        while True:
            (generation, network), _ = await self._networks.take()
            if generation == self._generation:
                return network
            self._node.networks.discard(network)

    async def _ready_fork(self) -> Fork:
        await self.start()
        generation = self._generation
        with ExitStack() as passed, ExitStack() as failed:
            network = await self._network()
            failed.callback(self._node.networks.discard, network)
            cgroup = await self._node.take_cgroup()
            failed.callback(self._node.cgroups.remove, cgroup)
            outputs, streams = pipes()
            for output in outputs:
                failed.callback(output.close)
            for descriptor in streams:
                passed.callback(os.close, descriptor)
            ours, theirs = socket.socketpair()
            passed.callback(theirs.close)
            failed.callback(ours.close)
            ours.setblocking(False)
            doors = passed.enter_context(self._node.cgroups.doors(cgroup))
            await self._send_fork(
                [theirs.fileno(), streams[1], streams[2], network.descriptor, *doors]
            )
            lines, writer = await asyncio.open_connection(sock=ours, limit=_ANSWER_MOST)
            failed.pop_all()
        fork = Fork(lines, writer, outputs, network, cgroup, generation)
        try:
            said = await asyncio.wait_for(self._line(fork), self.function.timeout)
            if said.ready is None:
                raise Failed(f"cannot fork {self.function.handler}: {said.failed}")
        except TimeoutError:
            self._discard(fork)
            raise Failed(
                f"a fork of {self.function.handler} was not ready in {self.function.timeout} s"
            ) from None
        except BaseException:
            self._discard(fork)
            raise
        return fork

    async def _send_fork(self, descriptors: list[int]) -> None:
        while True:
            try:
                if self._control is None:
                    raise ConnectionError("it has ended meanwhile")
                self._control.sendmsg([self._request], wire.rights(descriptors))
            except BlockingIOError:
                await asyncio.sleep(0.001)  # a burst: the zygote has as many requests as fit
                continue
            except OSError as error:
                raise Failed(f"the zygote of {self.function.handler} is gone") from error
            return

    async def _ask(self, fork: Fork, event: object) -> tuple[_Said, list[str]]:
        texts = [asyncio.ensure_future(output.all(_OUTPUT_MOST)) for output in fork.outputs]
        try:
            fork.writer.write(msgspec.json.encode(event) + b"\n")
            answer = await self._line(fork)
            said = await asyncio.gather(*texts)
        finally:
            for text in texts:
                text.cancel()
        return answer, [one.decode(errors="replace") for one in said]

    async def _line(self, fork: Fork) -> _Said:
        try:
            line = await fork.lines.readline()
        except ValueError:
            raise Failed(f"{self.function.handler} answered more than {_ANSWER_MOST} bytes",
                         "return less, or write it elsewhere") from None  # fmt: skip
        except ConnectionError:
            line = b""
        if line:
            try:
                return msgspec.convert(json.loads(line), _Said)
            except (ValueError, RecursionError, msgspec.ValidationError) as error:
                raise Failed(f"{self.function.handler} wrote what is no answer: {error}",
                             "its descriptor 3 is the runtime's") from None  # fmt: skip
        if self._node.cgroups.ran_out_of_memory(fork.cgroup):
            raise Failed(f"{self.function.handler} was killed for memory",
                         f"its limit is {self.function.memory} bytes")  # fmt: skip
        raise Failed(f"{self.function.handler} ended without an answer")

    async def _end(self, fork: Fork) -> None:
        """The fork's processes end; then its network may serve this function again."""
        self._close(fork)
        await self._node.cgroups.kill(fork.cgroup)
        self._node.cgroups.remove(fork.cgroup)
        if (
            len(self._used) < self._node.config.pools.network.high
            and fork.generation == self._generation
            and not self.function.ports
            and await self._node.networks.is_as_new(fork.network)
        ):
            self._used.append(fork.network)
        else:
            self._node.networks.discard(fork.network)

    def _close(self, fork: Fork) -> None:
        fork.writer.close()
        for output in fork.outputs:
            output.close()

    def _discard(self, fork: Fork) -> None:
        self._close(fork)
        self._node.cgroups.kill_now(fork.cgroup)
        self._node.cgroups.remove(fork.cgroup)
        self._node.networks.discard(fork.network)

    def _forget(self) -> None:
        if self._owner >= 0:
            os.close(self._owner)
            self._owner = -1
        if self._control:
            self._control.close()
            self._control = None
        if self._cgroup:
            self._node.cgroups.remove(self._cgroup)
            self._cgroup = None
        self._generation += 1
        while self._used:
            self._node.networks.discard(self._used.pop())

    async def close(self) -> None:
        """End the zygote and its forks, and what they had."""
        for pool in self.pools:
            await pool.close()
        if self._child:
            self._child.kill()
            with suppress(asyncio.CancelledError):
                await self._child.ended
        self._forget()
        os.close(self._template)
