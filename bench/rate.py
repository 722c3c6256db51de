"""Sustained starts and stops against what any process costs, their tails, and what they leave.

The batches of all ways to start are interleaved, so that a busy machine slows each alike; the rates
themselves are this machine's, at its load of the time. Each way has the same client: connections
with one start in flight each.
"""

import os
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import numpy as np

from bench.agile_node import MEMORY, config, memory
from bench.marks import Mark
from firstlight.agile import Function, sockets
from firstlight.agile.client import Client
from firstlight.agile.config import Pools, PoolSize
from firstlight.agile.node import wire
from firstlight.agile.node.process import pid_of
from firstlight.agile.parts.cgroups import Cgroups
from firstlight.host import cgroups
from firstlight.host.workspace import Workspace, sandbox
from firstlight.lab.backends import agile_floor
from firstlight.lab.backends.agile import children, daemon, payload
from firstlight.native import native

IN_FLIGHT, STARTS, ROUNDS = 8, 400, 5
ALONE = 2000
MANY, WARM_UP = 100_000, 5_000
HELD = 64
SIZE = PoolSize(low=32, high=128, rate=2000)
Batch = Callable[[int], float]
"""Makes so many starts, waits for their ends, and returns how many there were a second."""


def bare(count: int) -> float:
    """Clone, exec, exit and wait of the same program, by the C library's posix_spawn."""
    program = str(native("payload"))
    null = os.open(os.devnull, os.O_RDWR)
    streams = [(os.POSIX_SPAWN_DUP2, null, at) for at in range(3)]
    begun = time.monotonic()
    made = up = 0
    while made < count or up:
        if made < count and up < IN_FLIGHT:
            os.posix_spawn(program, [program, "once"], {}, file_actions=streams)
            made, up = made + 1, up + 1
        else:
            os.wait()
            up -= 1
    os.close(null)
    return count / (time.monotonic() - begun)


class Asker:
    """Connections with one start in flight each. ``ended`` says what a message is the end of."""

    def __init__(self, path: Path, message: bytes, ended: Callable[[bytes], bool]) -> None:
        self._message, self._ended = message, ended
        self._null = os.open(os.devnull, os.O_RDWR)
        self._rights = sockets.rights([self._null] * 3)
        self._connections = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                             for _ in range(IN_FLIGHT)]  # fmt: skip
        self._selector = selectors.DefaultSelector()
        for connection in self._connections:
            connection.connect(str(path))
            self._selector.register(connection, selectors.EVENT_READ, connection)

    def batch(self, count: int) -> float:
        """See Batch. Raises RuntimeError if one is refused."""
        begun = time.monotonic()
        left, up = count, 0
        for connection in self._connections:
            connection.sendmsg([self._message], self._rights)
            left, up = left - 1, up + 1
        while up:
            for key, _ in self._selector.select():
                if not self._ended(key.data.recv(4096)):
                    continue
                up -= 1
                if left:
                    key.data.sendmsg([self._message], self._rights)
                    left, up = left - 1, up + 1
        return count / (time.monotonic() - begun)

    def close(self) -> None:
        """Leave."""
        os.close(self._null)
        self._selector.close()
        for connection in self._connections:
            connection.close()


def node_ended(message: bytes) -> bool:
    """Whether an answer of the node is an end."""
    verb = int.from_bytes(message[4:6], "little")
    if verb == wire.AnswerVerb.REFUSED:
        raise RuntimeError(f"a start was refused: {wire.answer(message)}")
    return verb == wire.AnswerVerb.ENDED


def floor_ended(message: bytes) -> bool:
    """Whether an answer of the floor's program is an end."""
    if b"error" in message:
        raise RuntimeError(message.decode())
    return b"ended" in message


@contextmanager
def floor(workspace: Workspace, function: Function, starts: int) -> Iterator[Batch]:
    """The floor's program; each of as many starts as are in flight has parts of its own."""
    groups = Cgroups(f"{cgroups.name(workspace.run)}/floor")
    groups.open()
    with ExitStack() as parts:
        parts.callback(groups.close)
        few = [agile_floor.prepare_parts(function, groups, parts) for _ in range(2 * IN_FLIGHT)]
        path = workspace.directory / "floor"
        all_of_them = few * (starts // len(few) + 1)
        parts.enter_context(agile_floor.serving(path, function, all_of_them))
        asker = Asker(path, b"start", floor_ended)
        parts.callback(asker.close)
        yield asker.batch


def starting(path: Path, client: Client, function: Function, parts: ExitStack) -> Asker:
    """Starts of a function by the node's fast path."""
    client.prepare(function)
    number, version = client.register(function)
    message = wire.request(wire.RequestVerb.START, number, version=version)
    asker = Asker(path, message, node_ended)
    parts.callback(asker.close)
    return asker


def rates(ways: dict[str, Batch]) -> dict[str, list[float]]:
    """The rates of each way's batches, interleaved."""
    result: dict[str, list[float]] = {name: [] for name in ways}
    for batch in ways.values():
        batch(2 * IN_FLIGHT)
    for _ in range(ROUNDS):
        for name, batch in ways.items():
            result[name].append(batch(STARTS))
    return result


def compared(by_way: dict[str, list[float]]) -> Iterator[Mark]:
    """The marks, by the ratios of batches that ran side by side."""
    load = f"load {os.getloadavg()[0]:.1f}"
    for name, against, least in (
        ("reuse network", "floor", 0.75),
        ("reuse sandbox", "floor", 0.75),
        ("reuse sandbox", "bare", 0.85),
    ):
        ratios = np.array(by_way[name]) / np.array(by_way[against])
        middle = float(np.median(ratios))
        yield Mark(
            f"networked starts and stops a second, {name}, {IN_FLIGHT} in flight "
            f"({np.median(by_way[name]):.0f}) against {against} "
            f"({np.median(by_way[against]):.0f}), {load}",
            f"{middle:.2f}× [{ratios.min():.2f}, {ratios.max():.2f}]", f"≥ {least}×",
            middle >= least,
        )  # fmt: skip


def tail(name: str, path: Path, number: int, version: int) -> Mark:
    """P99 against the median of starts one by one, with full pools."""
    null = os.open(os.devnull, os.O_RDWR)
    took = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as node:
        node.connect(str(path))
        for _ in range(ALONE):
            request = time.monotonic_ns()
            message = wire.request(
                wire.RequestVerb.START, number, requested=request, version=version
            )
            node.sendmsg([message], sockets.rights([null] * 3))
            while True:
                answer = wire.answer(node.recv(4096))
                if answer.verb == wire.AnswerVerb.STARTED:
                    took.append((answer.stamps["running"] - request) / 1e3)
                elif answer.verb == wire.AnswerVerb.ENDED:
                    break
                else:
                    raise RuntimeError(f"a start was refused: {answer}")
            time.sleep(0.002)  # below the rate that refills sustain
    os.close(null)
    median, last = float(np.median(took)), float(np.percentile(took, 99))
    return Mark(
        f"{name}, P99 against the median of {ALONE} ({last:.0f}, {median:.0f} µs)",
        f"{last / median:.1f}×", "≤ 2×", last <= 2 * median,
    )  # fmt: skip


def held(pid: int) -> tuple[int, int]:
    """A process's memory in KiB, and how many descriptors it has open.

    What it shares with its own children counts as well, or it would depend on how many wait.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return kib["Rss"], sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def flat(pids: dict[str, int], batch: Batch) -> Iterator[Mark]:
    """What the manager and the node hold after many starts, against after few."""
    batch(WARM_UP)
    before = {name: held(pid) for name, pid in pids.items()}
    batch(MANY - WARM_UP)
    for name, pid in pids.items():
        (kib, files), (kib_after, files_after) = before[name], held(pid)
        grown = kib_after / kib - 1
        yield Mark(
            f"{name}'s memory after {MANY} starts, against after {WARM_UP} ({kib} KiB)",
            f"{grown:+.1%}; {files} descriptors, then {files_after}", "± 2 %",
            abs(grown) <= 0.02 and abs(files_after - files) <= 2 * IN_FLIGHT,
        )  # fmt: skip


def idle(client: Client, function: Function, node: int) -> Mark:
    """What one generic sandbox costs while it waits."""
    before, files = memory(), held(node)[1]
    client.prepare(function, HELD)
    after = memory()
    waiting = children(node)
    pss = [_pss(pid) for pid in waiting]
    each = {name: abs(after[name] - before[name]) / HELD for name in MEMORY}
    return Mark(
        f"idle cost of one generic sandbox, of {len(waiting)}",
        f"PSS {np.mean(pss):.0f} KiB, slab {each['Slab']:.0f} KiB, per-CPU {each['Percpu']:.0f} "
        f"KiB, {(held(node)[1] - files) / HELD:.1f} descriptors of the node", "none", True,
    )  # fmt: skip


def _pss(pid: int) -> int:
    line = next(
        each for each in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        if each.startswith("Pss:")
    )  # fmt: skip
    return int(line.split()[1])


def measure() -> Iterator[Mark]:
    """All of them."""
    with sandbox(f"bench-{os.getpid()}") as place:
        base = place.directory / "payload"
        base.mkdir()
        function = payload(base, "once")
        again = msgspec.structs.replace(function, reuse="sandbox")
        settings = config(
            place, Pools(window=0, network=SIZE, cgroup=SIZE, sandbox=PoolSize(low=0, high=HELD))
        )
        parts_only = msgspec.structs.replace(
            settings, pools=Pools(window=0, network=SIZE, cgroup=SIZE)
        )
        with ExitStack() as parts:
            manager = parts.enter_context(daemon(parts_only, place))
            client = parts.enter_context(Client(settings.socket))
            first = starting(settings.socket, client, function, parts)
            two = starting(settings.socket, client, again, parts)
            with floor(place, function, ROUNDS * STARTS + 4 * IN_FLIGHT) as lowest:
                ways = {"floor": lowest, "bare": bare, "reuse network": first.batch,
                        "reuse sandbox": two.batch}  # fmt: skip
                yield from compared(rates(ways))
            time.sleep(1)  # used networks are judged
            for name, made in (("from pooled parts", function), ("from reused sandboxes", again)):
                yield tail(name, settings.socket, *client.register(made))
            pids = {"the manager": manager, "the node": pid_of(settings)}
            yield from flat(pids, two.batch)
        with daemon(settings, place), Client(settings.socket) as client:
            client.prepare(function)
            node = pid_of(settings)
            yield idle(client, function, node)
        full = PoolSize(low=HELD // 2, high=HELD, rate=SIZE.rate)
        settings = config(place, Pools(window=0, network=SIZE, cgroup=SIZE, sandbox=full))
        with daemon(settings, place), Client(settings.socket) as client:
            client.prepare(function, HELD)
            yield tail("from generic sandboxes", settings.socket, *client.register(function))
