"""What firstlight adds to a CNI plugin: invocation, tracing, and a hundred at once.

Invocation: an ADD by the lab, from the intended arrival to the end point, against the same plugin
executed by a few lines of C (execute.c) with the same environment and configuration, from spawn to
exit. They alternate, in pairs of random order.
"""

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench import overhead
from bench.marks import Mark, rows
from firstlight.analysis import stats
from firstlight.errors import Failed, Unsupported
from firstlight.host.workspace import Workspace, sandbox
from firstlight.lab.backends import Execute
from firstlight.lab.backends.cni import Cni, hosting
from firstlight.lab.experiments import Case
from firstlight.lab.load import Generator
from firstlight.lab.runner import sample
from firstlight.lab.schedule import Batch
from firstlight.model import Sample
from firstlight.native import native

PAIRS = 200
BUDGET_SECONDS = 120.0
"""As many pairs as it takes, if those are fewer."""
MOST_TO_INVOKE, MOST_TO_TRACE = 1.03, 1.15
CROWD = 100
INVOKED = ("bridge", "ptp")
TRACED = ("bridge", "weave", "calico-profile")
_WARM = 5
_turns = random.Random(1)  # noqa: S311 - an order, not a secret


class Pairs(NamedTuple):
    """In ns: ADDs by firstlight, the part of each outside the plugin, and ADDs by the harness."""

    whole: list[int]
    own: list[int]
    bare: list[int]


def turns() -> list[int]:
    """Which goes first in a pair: 0 is firstlight, 1 the harness."""
    return _turns.sample([0, 1], 2)


def compiled(directory: Path) -> Path:
    """Compile the harness; with musl if installed, like the program it is compared with."""
    program = directory / "execute"
    source = Path(__file__).with_name("execute.c")
    for compiler in ("musl-gcc", "gcc"):
        command = [compiler, "-O2", "-D_GNU_SOURCE", "-static", "-o", program, source]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except FileNotFoundError:
            continue
        return program
    raise Unsupported("no C compiler is installed", "apt-get install gcc")


def pairs(conf: str, workspace: Workspace, generator: Generator, count: int) -> Pairs:
    """``count`` ADDs by firstlight, and as many by the harness; fewer where they are slow."""
    result = Pairs([], [], [])
    harness = compiled(workspace.directory)
    sides = [side for _ in range(count) for side in turns()]
    until = time.monotonic() + BUDGET_SECONDS
    with hosting(conf, 0, workspace) as pods:
        for batch, bare in enumerate(sides):
            if not batch % 2 and time.monotonic() > until:
                break
            [request] = pods.make(f"pod{batch}-", 1)
            command = _bare(harness, request) if bare else _ours(request, workspace)
            start = _start(generator, batch, command)
            plugin = start.steps[0].end - start.steps[0].start
            if not bare:
                result.whole.append(start.latency or 0)
                result.own.append((start.latency or 0) - plugin)
                continue
            result.bare.append(plugin)
            subprocess.run([native("cnirun"), "del", request], check=True, capture_output=True,
                           stdin=subprocess.DEVNULL)  # fmt: skip
    return Pairs(*(part[_WARM:] for part in result))


def _ours(request: Path, workspace: Workspace) -> Execute:
    return Execute((str(native("cnirun")), "add", str(request)), workspace.environment)


def _bare(harness: Path, request: Path) -> Execute:
    """The only plugin of a request, executed by the harness."""
    words = [line.partition(" ")[::2] for line in request.read_text().splitlines()]
    environment = dict(value.split("=", 1) for word, value in words if word == "env")
    [program] = [value for word, value in words if word == "plugin"]
    [configuration] = [value for word, value in words if word == "conf"]
    file = request.with_suffix(".json")
    file.write_text(configuration + "}")
    return Execute((str(harness), program, str(file)), {**environment, "CNI_COMMAND": "ADD"})


def _start(generator: Generator, batch: int, command: Execute) -> Sample:
    [outcome] = generator.run(batch, [command], deadline=30)
    [ended] = generator.stop(batch, deadline=30)
    alone = Batch(Case({"instances": 1}, Cni("bridge")), 0, traced=False)
    start = sample(batch, batch, 0, alone, outcome, ended, None, 0)
    if start.latency is None:
        raise Failed(f"an ADD failed: {start.error}")
    return start


def invocation(conf: str) -> Iterator[Mark]:
    """The ratios of the pairs, and firstlight's own part, which depends less on other work."""
    with sandbox(f"bench-{os.getpid()}-{conf}") as place, Generator() as generator:
        whole, own, bare = map(np.array, pairs(conf, place, generator, PAIRS))
    ratio = stats.quantile_interval(whole / bare, 0.5)
    part = stats.ratio_interval(own, bare)
    mark = f"≤ {MOST_TO_INVOKE - 1:+.0%}"
    yield Mark(
        f"to invoke {conf} through firstlight adds ({np.median(bare) / 1e6:.1f} ms, "
        f"{bare.size} pairs)",
        f"{ratio.value - 1:+.1%} [{ratio.low - 1:+.1%}, {ratio.high - 1:+.1%}]",
        mark, ratio.value <= MOST_TO_INVOKE,
    )  # fmt: skip
    yield Mark(
        f"firstlight's own part of that ({np.median(own) / 1e3:.0f} µs)",
        f"{part.value:+.1%} [{part.low:+.1%}, {part.high:+.1%}]",
        mark, part.value <= MOST_TO_INVOKE - 1,
    )  # fmt: skip


def tracing(conf: str) -> Mark:
    """What tracing adds to the median ADD."""
    workload = overhead.Workload(
        f"CNI {conf} ADD", "cni-breakdown", {"cni": conf}, networks=(conf,)
    )
    return overhead.added(workload, most=MOST_TO_TRACE)


def crowd() -> Iterator[Mark]:
    """A hundred ADDs at once: lost events, and failures."""
    workload = overhead.Workload(
        "CNI bridge ADD", "cni-burst", {"cni": "bridge"}, networks=("bridge",)
    )
    frame = overhead.run(workload, CROWD, 2)
    lost, failed = int(frame["lost"].to_numpy().max()), frame.filter(ending="failed").height
    yield Mark(f"events lost, {CROWD} ADDs at once", str(lost), "0", lost == 0)
    yield Mark(f"ADDs that failed, of {frame.height}", str(failed), "0", failed == 0)


def measure() -> Iterator[Mark]:
    """All of them; a network that cannot run here is left out."""
    invoked = [(f"invocation of {each}", lambda each=each: invocation(each))
               for each in filter(_usable, INVOKED)]  # fmt: skip
    traced = [(f"tracing of {each}", lambda each=each: [tracing(each)])
              for each in filter(_usable, TRACED)]  # fmt: skip
    yield from rows([*invoked, *traced, (f"{CROWD} at once", crowd)])


def _usable(conf: str) -> bool:
    try:
        Cni(conf).probe()
    except Unsupported:
        return False
    return True
