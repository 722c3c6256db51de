"""WebAssembly functions: the lightest instances, each a store of its own in this process.

What keeps one from the host and from its neighbours is WebAssembly itself, as wasmtime compiles
it, and nothing of the kernel: no namespace, no cgroup, no seccomp. It is given no imports, so it
can compute and no more; its memory and its time are limited. A handler takes the numbers of a
JSON array and returns a number, an array of them, or nothing.
"""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from firstlight.agile.function import Function, Result
from firstlight.errors import Failed, Unsupported

_TICK_SECONDS = 0.005
_IDLE_TICKS = 20
_THREADS = 2


class Wasm:
    """One function's module, compiled. Raises Unsupported, Failed."""

    def __init__(self, function: Function) -> None:
        try:
            import wasmtime  # an optional dependency
        except ImportError:
            raise Unsupported("wasmtime is not installed", "pip install firstlight[wasm]") from None
        self._wasmtime = wasmtime
        self._function = function
        config = wasmtime.Config()
        config.epoch_interruption = True
        self._engine = wasmtime.Engine(config)
        try:
            self._module = wasmtime.Module(self._engine, Path(function.rootfs).read_bytes())
        except OSError as error:
            raise Failed(f"cannot read the module {function.rootfs}: {error.strerror}") from error
        except wasmtime.WasmtimeError as error:
            raise Failed(f"{function.rootfs} is not a WebAssembly module: {error}") from error
        exports = {export.name for export in self._module.exports}
        if function.handler not in exports:
            raise Failed(f"the module {function.rootfs} exports no {function.handler!r}",
                         f"it exports: {', '.join(sorted(exports))}")  # fmt: skip
        if self._module.imports:
            names = ", ".join(f"{one.module}.{one.name}" for one in self._module.imports)
            raise Failed(f"the module {function.rootfs} imports {names}", "it is given no imports")
        self._threads = ThreadPoolExecutor(_THREADS, "wasm")
        self._is_quick = True
        self._last = 0.0
        self._under_way = 0
        self._awake = threading.Event()
        self._closed = False
        threading.Thread(target=self._tick, name="wasm clock", daemon=True).start()

    async def invoke(self, event: object, requested: int) -> Result:
        """Run the export in an instance of its own; no event is no arguments. Raises Failed.

        It runs in this thread for a tick or two; a handler that takes longer is run again in
        another, from then on at once: without imports, a run that was cut off has no effects.
        """
        event = [] if event is None else event
        if not isinstance(event, list) or not all(type(n) in (int, float) for n in event):
            raise Failed(f"{self._function.handler} takes numbers", "write them [1, 2]")
        self._under_way += 1
        self._last = time.monotonic()
        self._awake.set()
        try:
            began, value = await self._answered(event)
        finally:
            self._under_way -= 1
        return Result(
            value=msgspec.Raw(msgspec.json.encode(value)), requested=requested, began=began,
            finished=time.monotonic_ns(), warm=True,
        )  # fmt: skip

    async def _answered(self, event: list[Any]) -> tuple[int, object]:
        if self._is_quick:
            try:
                return self._run(event, 2)
            except _CutOff:
                self._is_quick = False
        ticks = 1 + int(self._function.timeout / _TICK_SECONDS)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._run, event, ticks)
        except _CutOff:
            raise Failed(
                f"{self._function.handler} did not answer in {self._function.timeout} s"
            ) from None

    def _run(self, event: list[Any], ticks: int) -> tuple[int, object]:
        store = self._wasmtime.Store(self._engine)
        store.set_limits(memory_size=self._function.memory, instances=1)
        store.set_epoch_deadline(ticks)
        name = self._function.handler
        try:
            instance = self._wasmtime.Instance(store, self._module, [])
            handler = instance.exports(store)[name]
            if not isinstance(handler, self._wasmtime.Func):
                raise Failed(f"the export {name!r} is not a function")
            began = time.monotonic_ns()
            return began, handler(store, *event)
        except (self._wasmtime.WasmtimeError, self._wasmtime.Trap) as error:
            said = str(error).strip().splitlines()[-1]
            if "interrupt" in str(error):
                raise _CutOff from None
            raise Failed(f"{name} trapped: {said}") from None
        except (TypeError, ValueError, OverflowError) as error:
            raise Failed(f"{name} cannot take {event}: {error}") from None

    def _tick(self) -> None:
        """A thread: it must count on while a handler holds the event loop."""
        while self._awake.wait() and not self._closed:
            time.sleep(_TICK_SECONDS)
            self._engine.increment_epoch()
            if not self._under_way and time.monotonic() - self._last > _IDLE_TICKS * _TICK_SECONDS:
                self._awake.clear()

    def close(self) -> None:
        """Let its threads go."""
        self._closed = True
        self._awake.set()
        self._threads.shutdown(wait=False, cancel_futures=True)


class _CutOff(Exception):
    """The handler took longer than it was given."""
