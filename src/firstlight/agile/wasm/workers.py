"""WebAssembly functions: each has a worker in a sandbox, and each request an instance in it.

The worker (``native/agile/wasm_worker.c``) compiles the module and runs its instances with
wasmtime; this process reads neither module nor compiled code. An export takes the numbers of a JSON
array and returns a number, an array of numbers, or nothing. A command, whose handler is ``_start``,
gets the event as JSON on standard input and writes its answer to standard output.
"""

import asyncio
import os
import socket
import struct
import subprocess
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import msgspec

from firstlight.agile.function import (
    HANDLER_ERROR,
    Ended,
    Function,
    HandlerFailed,
    NodeFailed,
    Result,
)
from firstlight.agile.parts.assembled import assemble
from firstlight.agile.single_flight import shared
from firstlight.agile.wasm import event as wasm_event
from firstlight.agile.wasm.channel import Channel
from firstlight.agile.wasm.event import WORDS_MOST
from firstlight.errors import Failed, Unsupported, install_extra, longer
from firstlight.native import make, native

WASMTIME = 50
"""The version of wasmtime that the worker is written for."""
THREADS = 8
"""Maximum number of running instances of a function; more wait."""
WORKER_BYTES = 512 << 20
"""A worker's memory besides its instances': for the compiler and the compiled code."""
IDLE_SECONDS = 300.0
"""After this time without a request the runtime leaves a worker, which ends with its last
client."""
COMPILE_SECONDS = longer(10.0)
"""Minimum deadline of a compilation, even if the function's is shorter."""
ELEMENTS = 1 << 16
MODULE_MAX = 256 << 20
_MEMORY_MAX = 4 << 30
_PIDS, _FILES = 128, 4096
_REFUSED = 3
_STALE_SECONDS = 0.2
_GRACE_SECONDS, _END_SECONDS = longer(2.0), longer(30.0)
_DIRECTORIES = ("proc", "dev", "tmp")


class Worker(Protocol):
    """A worker's process."""

    ended: asyncio.Future[Ended]

    def connect(self) -> socket.socket:
        """A connection to the worker. Raises Failed."""

    async def words(self) -> str:
        """Its standard error; call it after its end."""

    def keep(self, function: Function, identity: tuple[int, ...]) -> None:
        """Have the node keep its descriptors for the next manager."""

    def leave(self) -> None:
        """Give it no more connections: it ends once all are closed."""

    def kill(self) -> None:
        """End it."""


Launch = Callable[[Function, int], Awaitable[Worker]]
"""Starts a resident function on a detached tree as its root file system. Raises Failed."""


class _Serving:
    """A worker, and the version of the module that it has compiled."""

    def __init__(self, worker: Worker, channel: Channel, identity: tuple[int, ...]) -> None:
        self.worker, self.channel, self.identity = worker, channel, identity
        self.checked = self.used = time.monotonic()
        self.is_left = False


class Wasm:
    """A function and its worker, started by the first request and again after its end.

    ``forget`` is called when it has had no request for a while and its worker has ended.
    """

    def __init__(
        self, function: Function, launch: Launch, forget: "Callable[[Wasm], None]"
    ) -> None:  # fmt: skip
        self.function, self._launch, self._forget = function, launch, forget
        self._serving: _Serving | None = None
        self._starting: asyncio.Future[_Serving] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def invoke(self, event: object, requested: int) -> Result:
        """Run the handler on an event in a new instance. Raises Failed, Unsupported."""
        [result] = await self.invoke_all([event], requested)
        if isinstance(result, Failed):
            raise result
        return result

    async def invoke_all(self, events: list[object], requested: int) -> list[Result | Failed]:
        """Run the handler on each event in a new instance, with one message for all."""
        encoded = [wasm_event.encoded(self.function, event) for event in events]
        warm = self._serving is not None
        serving = await self._current()
        serving.used = since = time.monotonic()
        try:
            seconds = self.function.timeout * max(len(events), 1) + _GRACE_SECONDS
            async with asyncio.timeout(seconds):
                replies = await serving.channel.ask(encoded)
        except TimeoutError:
            hangs = serving.channel.answered < since
            if hangs:
                serving.worker.kill()
            raise HandlerFailed(
                "Sandbox.Timedout",
                f"{self.function.handler} did not answer in {self.function.timeout} s",
                f"its worker {'hung and was ended' if hangs else 'is busy with other requests'}",
            ) from None
        return [wasm_event.result(self.function, reply, requested, warm) for reply in replies]

    async def connect(self) -> socket.socket:
        """Connect to the worker; the protocol is ``wasm.wire``. Raises Failed, Unsupported."""
        return (await self._current()).worker.connect()

    async def _current(self) -> _Serving:
        """The worker of the module's current version."""
        serving = self._serving
        if serving and time.monotonic() - serving.checked > _STALE_SECONDS:
            serving.checked = time.monotonic()
            identity = await asyncio.to_thread(_identity, self.function.rootfs)
            if self._serving is serving and identity != serving.identity:
                self._serving = None
                self._task(self._retire_stale(serving))
        if self._serving:
            return self._serving
        if not self._starting:
            self._starting = asyncio.ensure_future(self._start())
            self._starting.add_done_callback(_retrieve_error)
        return await shared(self._starting)

    async def _start(self) -> _Serving:
        function = self.function
        try:
            definition = _definition(function)
            tree, identity = await asyncio.to_thread(_tree, function)
            try:
                worker = await self._launch(definition, tree)
            finally:
                os.close(tree)
            connection = await self._connect(worker)
            serving = _Serving(worker, Channel(connection, function.handler), identity)
            self._task(self._watch(serving))
            seconds = max(function.timeout, COMPILE_SECONDS)
            try:
                async with asyncio.timeout(seconds):
                    await serving.channel.ask([])
            except BaseException as error:
                worker.kill()
                if isinstance(error, TimeoutError):
                    raise HandlerFailed(
                        HANDLER_ERROR,
                        f"compiling {function.rootfs} took more than {seconds} s",
                        "give the function more time or CPUs",
                    ) from None
                raise
            worker.keep(function, identity)
            return self._serves(serving)
        finally:
            self._starting = None

    def take_over(self, worker: Worker, identity: tuple[int, ...]) -> None:
        """Take over an earlier manager's worker, which has compiled the module."""
        self._starting = asyncio.ensure_future(self._resume(worker, identity))
        self._starting.add_done_callback(_retrieve_error)

    async def _resume(self, worker: Worker, identity: tuple[int, ...]) -> _Serving:
        try:
            connection = await self._connect(worker)
            serving = _Serving(worker, Channel(connection, self.function.handler), identity)
            self._task(self._watch(serving))
            try:
                async with asyncio.timeout(_END_SECONDS):
                    await serving.channel.ask([])
            except BaseException:
                worker.kill()
                raise
            return self._serves(serving)
        finally:
            self._starting = None

    def _serves(self, serving: _Serving) -> _Serving:
        self._serving = serving
        self._task(self._leave(serving))
        return serving

    async def _connect(self, worker: Worker) -> socket.socket:
        try:
            return worker.connect()
        except Failed:
            worker.kill()  # it has ended already, or does not serve
            raise await self._epitaph(worker) from None

    async def _watch(self, serving: _Serving) -> None:
        """Tell waiting requests how the worker ended."""
        worker, channel = serving.worker, serving.channel
        await asyncio.wait((worker.ended, channel.over), return_when=asyncio.FIRST_COMPLETED)
        if not worker.ended.done() and not serving.is_left:  # it is about to end, or hangs
            await asyncio.wait((worker.ended,), timeout=_GRACE_SECONDS)
            worker.kill()
        epitaph = await self._epitaph(worker)
        if self._serving is serving:
            self._serving = None
        channel.fail(epitaph)
        if serving.is_left and not self._serving and not self._starting:
            self._forget(self)

    async def _leave(self, serving: _Serving) -> None:
        """Disconnect from a worker without recent requests."""
        while not serving.channel.over.done():
            left = serving.used + IDLE_SECONDS - time.monotonic()
            if left <= 0 and not serving.channel.waiting:
                self._retire(serving)
                return
            await asyncio.wait((serving.channel.over,), timeout=max(left, _STALE_SECONDS))

    async def _retire_stale(self, serving: _Serving) -> None:
        """Retire a worker whose module was replaced: it answers pending requests only."""
        while serving.channel.waiting and not serving.channel.over.done():
            await asyncio.wait((serving.channel.over,), timeout=_STALE_SECONDS)
        self._retire(serving)

    def _retire(self, serving: _Serving) -> None:
        """Let a worker serve its connections; the next request starts another."""
        serving.is_left = True
        if self._serving is serving:
            self._serving = None
        serving.channel.close()
        serving.worker.leave()

    async def _epitaph(self, worker: Worker) -> Failed:
        """Describe a worker's end."""
        await asyncio.wait((worker.ended,), timeout=_END_SECONDS)
        if not worker.ended.done():
            return Failed(f"the worker of {self.function.handler} was killed, and does not end",
                          "see the runtime's log: the node may hang")  # fmt: skip
        ended = worker.ended.result()
        words = (await worker.words()).strip()
        name, path = self.function.handler, self.function.rootfs
        again = "the next request starts another"
        if ended.status == _REFUSED:
            what, _, remedy = words.partition("\n")
            return HandlerFailed(
                HANDLER_ERROR, f"cannot run the module {path}: {what}", remedy or None
            )
        if ended.out_of_memory:
            limit = _definition(self.function).memory
            return HandlerFailed(
                "Runtime.OutOfMemory", f"the worker of {name} exceeded its memory limit",
                f"the limit is {limit} bytes: {self.function.memory} for each of "
                f"{THREADS} instances, {WORKER_BYTES} for the compiler",
            )  # fmt: skip
        what, hint = f"the worker of {name} ended: {ended}", again
        if words:
            hint = f"it wrote: {words[-WORDS_MOST:]}; {again}"
        return NodeFailed(what, hint) if ended.lost else HandlerFailed(
            "Runtime.ExitError", what, hint
        )  # fmt: skip

    def _task(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def left(self) -> None:
        """Stop; the worker stays for the next manager."""
        if self._starting:
            self._starting.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """End the worker."""
        if self._starting:
            self._starting.cancel()
        if self._serving:
            self._serving.worker.kill()
        for task in list(self._tasks):
            with suppress(asyncio.CancelledError):
                await task


def _retrieve_error(starting: "asyncio.Future[_Serving]") -> None:
    """Retrieve the error, which nobody awaits if the requester has given up."""
    if not starting.cancelled():
        starting.exception()


def _definition(function: Function) -> Function:
    """The worker as a function of kind ``command``, with the limits of its function."""
    memory = min(function.memory, _MEMORY_MAX)
    arguments = (Path(function.rootfs).name, *function.command)
    variables = {f"+{name}": value for name, value in function.env.items()}
    words = (*arguments, *variables, *variables.values(), function.handler)
    if not all(_is_text(word) for word in words):
        raise Failed(f"an argument or variable of {function.handler} is not UTF-8 without NUL",
                     "WASI allows nothing else")  # fmt: skip
    return msgspec.structs.replace(
        function, kind="command", env={"LD_LIBRARY_PATH": "/lib", **variables}, directory="/",
        network="none", ports={}, ready=None,
        pids=_PIDS, files=_FILES, memory=WORKER_BYTES + THREADS * memory,
        command=(
            "/worker", "/lib/libwasmtime.so", "/module", "/tmp", str(memory), str(ELEMENTS),  # noqa: S108
            str(int(function.timeout * 1e9)), str(THREADS), function.handler, *arguments,
        ),
    )  # fmt: skip


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in word


def _identity(path: str) -> tuple[int, ...]:
    try:
        status = Path(path).stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _tree(function: Function) -> tuple[int, tuple[int, ...]]:
    """The worker's root file system, and the version of its module. Blocks."""
    identity = _identity(function.rootfs)
    if not identity:
        raise Failed(
            f"the module {function.rootfs} does not exist", "give the path of a .wasm file"
        )
    worker = native("wasm-worker")
    interpreter, libraries = _libraries(worker, _library())
    files = {
        "/worker": worker, "/lib/libwasmtime.so": _library(), "/module": Path(function.rootfs),
        interpreter: Path(interpreter), **{f"/lib/{path.name}": path for path in libraries},
    }  # fmt: skip
    return assemble(files, _DIRECTORIES, MODULE_MAX), identity


@lru_cache
def _library() -> Path:
    """The path of wasmtime's shared library, without importing the Python package."""
    package = find_spec("wasmtime")
    if not package or not package.submodule_search_locations:
        raise Unsupported("wasmtime is not installed", install_extra("wasm"))
    if version("wasmtime").split(".")[0] != str(WASMTIME):
        raise Unsupported(f"wasmtime {WASMTIME} is needed, but {version('wasmtime')} is installed",
                          install_extra("wasm"))  # fmt: skip
    libraries = [
        *Path(package.submodule_search_locations[0]).glob(f"linux-{os.uname().machine}/*.so")
    ]
    if len(libraries) != 1:
        raise Unsupported(f"wasmtime does not support {os.uname().machine}",
                          "use x86_64 or aarch64")  # fmt: skip
    return libraries[0]


@lru_cache
def _libraries(program: Path, library: Path) -> tuple[str, tuple[Path, ...]]:
    """A program's dynamic loader, and the host's libraries that it and wasmtime's library need."""
    interpreter = _interpreter(program.read_bytes())
    needed: dict[str, Path] = {}
    for path in (program, library):
        done = subprocess.run(
            [interpreter, "--list", path], capture_output=True, text=True, env={}, check=False
        )
        if done.returncode:
            raise Failed(f"cannot find the libraries of {path}: {done.stderr.strip()}")
        for line in done.stdout.splitlines():
            name, arrow, rest = line.strip().partition(" => ")
            if arrow:
                needed[name] = Path(rest.split(" (")[0])
    return interpreter, tuple(needed.values())


def _interpreter(program: bytes) -> str:
    """The dynamic loader of a 64-bit ELF program, from its PT_INTERP."""
    [table] = struct.unpack_from("=Q", program, 32)
    size, count = struct.unpack_from("=HH", program, 54)
    for place in range(table, table + size * count, size):
        kind, _, offset, _, _, length = struct.unpack_from("=IIQQQQ", program, place)
        if kind == 3:
            return program[offset : offset + length].rstrip(b"\0").decode()
    raise Failed("the worker has no dynamic loader", make("setup"))
