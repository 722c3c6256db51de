"""The runtime from within: sustained starts and stops, taking from a pool, memory of parts."""

import asyncio
import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from bench.marks import Mark, rows
from firstlight.agile import Config, Function, Runtime
from firstlight.agile.config import Pools, PoolSize
from firstlight.agile.network.networks import Network
from firstlight.agile.parts.pool import LoadGate, Pool
from firstlight.host import cgroups
from firstlight.host.workspace import Workspace, sandbox
from firstlight.lab.backends.agile import payload
from firstlight.lab.backends.functions import Invoked

WORKERS, SECONDS = 8, 5.0
HELD = (10, 200, 2000)
TAKES = 2000
MEMORY = ("Slab", "Percpu", "MemAvailable")


async def sustained(workspace: Workspace, function: Function) -> Mark:
    """Networked starts of programs that exit at once, as fast as eight clients ask for them."""
    program = msgspec.structs.replace(function, command=("/bin/payload", "once"))
    size = PoolSize(low=16, high=64, rate=2000)
    async with Runtime(config(workspace, Pools(window=0, network=size, cgroup=size))) as runtime:
        await runtime.prepare(program)
        null = os.open(os.devnull, os.O_RDWR)
        ended = 0
        begun = time.monotonic()

        async def client() -> None:
            nonlocal ended
            while time.monotonic() < begun + SECONDS:
                instance = await runtime.start(program, (null, null, null))
                await instance.wait()
                ended += 1

        await asyncio.gather(*(client() for _ in range(WORKERS)))
        rate = ended / (time.monotonic() - begun)
        os.close(null)
    return Mark(
        f"networked starts and stops, {WORKERS} clients for {SECONDS:.0f} s",
        f"{rate:.0f} a second", "≥ 500", rate >= 500,
    )  # fmt: skip


async def takes(workspace: Workspace) -> list[Mark]:
    """P99 of taking a network from a small and a large pool, and the memory of a network."""
    marks = []
    tails = {}
    async with Runtime(config(workspace, Pools())) as runtime:
        size = PoolSize(low=0, high=HELD[-1], rate=1e5)
        networks = runtime._networks
        pool = Pool(
            "network", size, lambda: networks.make("outbound"), networks.discard, LoadGate()
        )
        used = {}
        for held in HELD:
            await pool.warm(held)
            used[held] = memory()
            tails[held] = await _tail(pool)
            marks.append(
                Mark(f"pool take, {held} networks prepared, P99 of {TAKES}",
                     f"{tails[held]:.1f} µs", "≤ 100 µs", tails[held] <= 100)
            )  # fmt: skip
        await pool.close()
    few, many = HELD[-2:]
    each = {name: abs(used[many][name] - used[few][name]) / (many - few) for name in MEMORY}
    spread = max(tails.values()) / min(tails.values())
    return [
        *marks,
        Mark("the slowest of these over the quickest", f"{spread:.1f}×", "none", True),
        Mark(f"memory of one prepared network, of {many - few}",
             f"{each['Slab']:.0f} KiB slab, {each['Percpu']:.0f} KiB per-CPU; "
             f"{each['MemAvailable']:.0f} KiB less available", "none", True),
    ]  # fmt: skip


async def _tail(pool: Pool[Network]) -> float:
    """The P99 of a take, in µs; each part goes back."""
    taken = []
    gc.collect()
    for _ in range(TAKES):
        begun = time.perf_counter_ns()
        part, _ = await pool.take()
        taken.append(time.perf_counter_ns() - begun)
        pool.give(part)
    return float(np.percentile(taken, 99)) / 1e3


def zygote(workspace: Workspace) -> Mark:
    """The memory of an idle zygote."""
    with Invoked("zygote").prepared(1, workspace) as prepared:
        [start] = prepared.commands
        pid = next(pid for pid in start.daemons if _command(pid).startswith("/usr/bin/python3\0"))
        rolled = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in rolled)}
    return Mark(
        "memory of one idle zygote (import json)",
        f"PSS {kib['Pss']} KiB, its own {kib['Private_Clean'] + kib['Private_Dirty']} KiB",
        "none", True,
    )  # fmt: skip


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def memory() -> dict[str, int]:
    """What /proc/meminfo says of MEMORY, in KiB."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    values = {
        name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)
    }
    return {name: values[name] for name in MEMORY}


def config(workspace: Workspace, pools: Pools) -> Config:
    """A runtime of the benchmark's own."""
    return Config(
        name="bench", state=str(workspace.directory / "state"), pools=pools,
        cgroup=f"{cgroups.name(workspace.run)}/agile",
    )  # fmt: skip


def measure() -> Iterator[Mark]:
    """All marks of the node."""
    with sandbox(f"bench-{os.getpid()}") as place:
        base = place.directory / "payload"
        base.mkdir()
        yield from rows([
            ("starts and stops", lambda: [asyncio.run(sustained(place, payload(base, "once")))]),
            ("pool take", lambda: asyncio.run(takes(place))),
            ("an idle zygote", lambda: [zygote(place)]),
        ])  # fmt: skip
