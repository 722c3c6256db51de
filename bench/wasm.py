"""WebAssembly instances: in the worker, over its socket, and as many as answer within one second.

The module has a memory, which it writes to, and a global: what an instance must not find as another
left it. Each event is another number, and each answer is checked.
"""

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.agile_node import config
from bench.marks import Mark
from firstlight.agile import Function, Runtime
from firstlight.agile.client import Client
from firstlight.agile.config import Pools
from firstlight.agile.wasm import wire
from firstlight.host.workspace import sandbox
from firstlight.lab.backends.agile import daemon

ONE_BY_ONE, BATCH, BATCHES, IN_FLIGHT, CONNECTIONS = 3000, 1000, 30, 4, 2
MODULE = bytes.fromhex(
    "0061736d0100000001060160017f017f0302010005030100010606017f0141000b070801046e65787400000a1c011a00"
    "230041016a240041e4002000360200230041e4002802006a0b"
)
"""
(module (memory 1) (global (mut i32) (i32.const 0))
  (func (export "next") (param i32) (result i32)
    (global.set 0 (i32.add (global.get 0) (i32.const 1)))
    (i32.store (i32.const 100) (local.get 0))
    (i32.add (global.get 0) (i32.load (i32.const 100)))))
"""
HELD = "a memory of 64 KiB, written to"


class Connection:
    """A blocking client of the worker, which checks what it is answered."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._next = self._answered = 0

    def ask(self, events: int = 1) -> None:
        """Send a message of so many events, each another number."""
        numbers = range(self._next, self._next + events)
        self._socket.send(wire.request(self._next, [wire.event([n]) for n in numbers]))
        self._next += events

    def hear(self) -> int:
        """How many events the next message answers, each rightly."""
        message = self._socket.recv(wire.MESSAGE_MAX)
        first, place, replies = wire.answer(message)
        for number, reply in enumerate(replies, first + place):
            if reply.values != (number + 1,):
                raise RuntimeError(f"event {number} was answered {reply}")
        self._answered += len(replies)
        return len(replies)

    def all(self) -> None:
        """Read until every event is answered."""
        while self._answered < self._next:
            self.hear()


def raw_batches() -> tuple[list[bytes], list[bytes]]:
    """Messages and the values that answer them, prepared: the client is not what is measured."""
    requests, values = [], []
    for batch in range(IN_FLIGHT * CONNECTIONS):
        numbers = range(batch * BATCH, (batch + 1) * BATCH)
        requests.append(wire.request(batch, [wire.event([n]) for n in numbers]))
        values.append(np.arange(batch * BATCH + 1, (batch + 1) * BATCH + 1, dtype="<i8").tobytes())
    return requests, values


def active(connections: list[socket.socket], seconds: float = 1.0) -> int:
    """How many instances answered within this time; each answer is checked."""
    requests, values = raw_batches()
    places: dict[int, tuple[socket.socket, int]] = {}
    for number, request in enumerate(requests):
        connection = connections[number % len(connections)]
        places[number] = (connection, 0)
        connection.send(request)
    answered, end = 0, time.monotonic() + seconds
    while True:
        for connection in connections:
            message = connection.recv(wire.MESSAGE_MAX)
            if time.monotonic() >= end:
                return answered
            number = int.from_bytes(message[:8], "little")
            table = np.frombuffer(message, dtype="<i8", offset=16).reshape(-1, 7)
            asker, first = places[number]
            if table[:, 6].tobytes() != values[number][8 * first : 8 * (first + len(table))]:
                raise RuntimeError(f"batch {number} was answered wrongly")
            answered += len(table)
            rest = (first + len(table)) % BATCH
            places[number] = (asker, rest)
            if not rest:
                connection.send(requests[number])


def measured(connections: list[socket.socket]) -> Iterator[Mark]:
    """The marks, of a worker that has answered before."""
    load = f"load {os.getloadavg()[0]:.1f}"
    client = Connection(connections[0])
    took = []
    for _ in range(ONE_BY_ONE):
        began = time.perf_counter_ns()
        client.ask()
        client.all()
        took.append((time.perf_counter_ns() - began) / 1e3)
    [request, *_], _ = raw_batches()
    spent = []
    for _ in range(BATCHES):
        began = time.perf_counter_ns()
        connections[0].send(request)
        answered = 0
        while answered < BATCH:
            message = connections[0].recv(wire.MESSAGE_MAX)
            answered += int.from_bytes(message[12:16], "little")
        spent.append((time.perf_counter_ns() - began) / 1e3 / BATCH)
    inside, median = float(np.median(spent)), float(np.median(took))
    yield Mark(f"WebAssembly instance in the worker ({HELD}), median of {BATCHES} batches, {load}",
               f"{inside:.1f} µs", "≤ 25 µs", inside <= 25)  # fmt: skip
    yield Mark(
        f"WebAssembly, request to result over the worker's socket, median of {ONE_BY_ONE} "
        f"(P99 {np.percentile(took, 99):.0f} µs)", f"{median:.0f} µs", "≤ 60 µs", median <= 60,
    )  # fmt: skip
    count, cores = active(connections), os.cpu_count() or 1
    yield Mark(
        f"WebAssembly instances active within one second, {BATCH} events a message",
        f"{count} ({count // cores} per core)", "≥ 80,000", count >= 80_000,
    )  # fmt: skip


async def measure_worker(runtime: Runtime, module: Path) -> list[Mark]:
    """The marks of one function's worker, and what the runtime's own socket adds."""
    cpus = float(os.cpu_count() or 1)
    function = Function(rootfs=str(module), kind="wasm", handler="next", cpus=cpus)
    await runtime.invoke(function, [1])
    connections = [await runtime.attach(function) for _ in range(CONNECTIONS)]
    for connection in connections:
        connection.setblocking(True)
    marks = await asyncio.to_thread(lambda: list(measured(connections)))
    took = []
    for number in range(ONE_BY_ONE):
        began = time.perf_counter_ns()
        await runtime.invoke(function, [number])
        took.append((time.perf_counter_ns() - began) / 1e3)
    marks.append(Mark(f"the same by the runtime's invoke, in Python, median of {ONE_BY_ONE}",
                      f"{np.median(took):.0f} µs", "none", True))  # fmt: skip
    for connection in connections:
        connection.close()
    return marks


def measure_attached(module: Path, path: Path) -> Mark:
    """A client of the runtime's socket, attached to the worker: all of it in Python."""
    function = Function(rootfs=str(module), kind="wasm", handler="next", cpus=1.0)
    took = []
    with Client(path) as client, client.attach(function) as attached:
        for number in range(ONE_BY_ONE):
            began = time.perf_counter_ns()
            attached.invoke([number])
            took.append((time.perf_counter_ns() - began) / 1e3)
    median = float(np.median(took))
    return Mark(
        f"WebAssembly instance over the socket, request to result, by Client.attach, median of "
        f"{ONE_BY_ONE} (P99 {np.percentile(took, 99):.0f} µs)", f"{median:.0f} µs", "≤ 60 µs",
        median <= 60,
    )  # fmt: skip


def measure() -> Iterator[Mark]:
    """All of them."""
    with sandbox(f"bench-{os.getpid()}") as workspace:
        module = workspace.directory / "next.wasm"
        module.write_bytes(MODULE)

        async def main() -> list[Mark]:
            async with Runtime(config(workspace, Pools())) as runtime:
                return await measure_worker(runtime, module)

        yield from asyncio.run(main())
        settings = config(workspace, Pools())
        with daemon(settings, workspace):
            yield measure_attached(module, settings.socket)
