"""The CNI plugin ``firstlight`` against ``bridge``, and what a refill of its pool costs an ADD.

Plugins are executed, one process each, as a runtime does it. Batches of the compared sides are
interleaved, so that a busy machine slows each alike.
"""

import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench.marks import Mark, rows
from firstlight.agile.pods import daemon
from firstlight.agile.pods.wire import ask_counts
from firstlight.analysis import stats
from firstlight.host.workspace import Workspace, sandbox
from firstlight.lab.backends import Execute
from firstlight.lab.backends.cni import Cni, hosting
from firstlight.lab.experiments import Case
from firstlight.lab.load import Generator
from firstlight.lab.runner import sample
from firstlight.lab.schedule import Batch
from firstlight.native import native

OLD, NEW = "bridge", "firstlight"
LEAST = {1: 6, 30: 20, 100: 20}
REPETITIONS = {1: 24, 30: 12, 100: 8}
BUDGET_SECONDS, LEAST_TURNS, BURST_SECONDS = 200.0, 4, 60.0
ADDS, ROUNDS, PAUSE_SECONDS = 120, 10, 0.005  # twelve of all lie above the 99th percentile
REFILL_SECONDS = 120.0
POOLS = {"full": (0, ADDS + 8), "refilling": (32, 32)}
"""The marks of a pool that need not be filled meanwhile, and of one that is after each ADD."""
SOCKET = "state/bench/socket"
_ALONE = Batch(Case({"instances": 1}, Cni(NEW)), 0, traced=False)


def burst(network: str, crowd: int, workspace: Workspace) -> list[float]:
    """When each of ``crowd`` ADDs at once from one resident caller has ended, in ms."""
    with hosting(network, 0, workspace) as pods:
        requests = pods.make("pod", crowd)
        called = subprocess.run(
            [native("cnirun"), "burst", *requests], env=dict(workspace.environment) or None,
            capture_output=True, text=True, timeout=BURST_SECONDS, check=False,
        )  # fmt: skip
    if called.returncode:
        raise RuntimeError(f"an ADD by {network} failed: {called.stderr.strip()}")
    stamps = [tuple(map(int, line.split()[-2:])) for line in called.stdout.splitlines()]
    start = min(begin for begin, _ in stamps)
    return [(end - start) / 1e6 for _, end in stamps]


def bursts() -> Iterator[Mark]:
    """The median ADD, one and many at once, by a resident caller, as a runtime is."""
    took: dict[tuple[str, int], list[list[float]]] = {}
    until = time.monotonic() + BUDGET_SECONDS
    with sandbox(f"bench-{os.getpid()}") as place:
        for turn in range(REPETITIONS[1]):
            for crowd, name in itertools.product(LEAST, (OLD, NEW)):
                if turn < REPETITIONS[crowd] and (turn < LEAST_TURNS or time.monotonic() < until):
                    took.setdefault((name, crowd), []).append(burst(name, crowd, place))
    load = f"load {os.getloadavg()[0]:.1f}"
    for crowd, least in LEAST.items():
        (old, before), (new, after) = (_flat(took[name, crowd]) for name in (OLD, NEW))
        gain = stats.ratio_interval(old, new, groups_a=before, groups_b=after)
        yield Mark(
            f"CNI ADD by {NEW} against {OLD}, {crowd} at once, median ({np.median(new):.2f}, "
            f"{np.median(old):.1f} ms, {load})",
            f"{gain.value:.1f}× [{gain.low:.1f}, {gain.high:.1f}]", f"≥ {least}×",
            gain.value >= least,
        )  # fmt: skip


def _flat(batches: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """The values of all batches, and the batch of each."""
    return np.concatenate(batches), np.repeat(np.arange(len(batches)), list(map(len, batches)))


@contextmanager
def agent(directory: Path, low: int, high: int) -> Iterator[Path]:
    """The agent with a pool between these marks; yields a configuration of the plugin."""
    directory.mkdir()
    configuration, conflist = directory / "pods.toml", directory / "pods.conflist"
    state = directory / "state"
    configuration.write_text(
        f'name = "bench"\nstate = "{state}"\n'
        f'[pods]\nrange = "10.244.0.0/22"\npool = {{low = {low}, high = {high}}}\n'
    )
    plugin = {"type": NEW, "socket": str(directory / SOCKET)}
    about = {"about": "for the benchmark", "packet": "10.244.0.1"}
    conflist.write_text(json.dumps({
        "cniVersion": "1.1.0", "name": NEW, "plugins": [plugin], "firstlight": about,
    }))  # fmt: skip
    argv = [sys.executable, daemon.__file__, str(configuration)]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + 60
            while not Path(str(plugin["socket"])).exists():
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError("the agent does not start")
                time.sleep(0.05)
            yield conflist
        finally:
            process.terminate()
            process.wait(60)


def adds(conflist: Path, workspace: Workspace, generator: Generator) -> list[float]:
    """ADDs one after the other, in ms."""
    took = []
    with hosting(str(conflist), 0, workspace) as pods:
        for number, request in enumerate(pods.make("pod", ADDS)):
            argv = (str(native("cnirun")), "add", str(request))
            [outcome] = generator.run(number, [Execute(argv, workspace.environment)], deadline=30)
            [ended] = generator.stop(number, deadline=30)
            start = sample(number, number, 0, _ALONE, outcome, ended, None, 0)
            if start.latency is None:
                raise RuntimeError(f"an ADD failed: {start.error}")
            took.append(start.latency / 1e6)
            time.sleep(PAUSE_SECONDS)
    return took


def refill() -> Iterator[Mark]:
    """P99 of ADD while the pool refills, against a pool that need not."""
    took: dict[str, list[list[float]]] = {name: [] for name in POOLS}
    misses, until = 0, time.monotonic() + REFILL_SECONDS
    with sandbox(f"bench-{os.getpid()}") as place, Generator() as generator:
        for turn in range(ROUNDS):
            if turn >= LEAST_TURNS and time.monotonic() > until:
                break
            for name in random.sample(list(POOLS), len(POOLS)):
                directory = place.directory / f"{name}{turn}"
                with agent(directory, *POOLS[name]) as conflist:
                    took[name].append(adds(conflist, place, generator))
                    misses += ask_counts(directory / SOCKET).misses
    (full, rounds_full), (refilling, rounds) = (_flat(took[name]) for name in POOLS)
    shares = (50, 90, 99)
    tails = [
        "/".join(f"{each:.2f}" for each in np.percentile(side, shares))
        for side in (refilling, full)
    ]
    ratio = stats.ratio_interval(refilling, full, q=0.99, groups_a=rounds, groups_b=rounds_full)
    yield Mark(
        f"ADD while the pool refills, P99 of {full.size} each (P50/90/99 {tails[0]}, {tails[1]} "
        f"ms; {misses} found no network; load {os.getloadavg()[0]:.1f})",
        f"{ratio.value:.2f}× [{ratio.low:.2f}, {ratio.high:.2f}]", "≤ 1.5×", ratio.value <= 1.5,
    )  # fmt: skip


def measure() -> Iterator[Mark]:
    """All of them."""
    yield from rows([("ADD while the pool refills", refill), ("bursts of ADD", bursts)])
