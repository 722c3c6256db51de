"""The agile runtime under conditions: pools past their end, a host that fills up, a part left out.

Each is the same runtime, served as in ``agile.py``; only its configuration and what is up differ.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from firstlight.agile import Config, Function
from firstlight.agile.client import Client
from firstlight.agile.config import Ahead, Pools, PoolSize
from firstlight.agile.function import Counts
from firstlight.errors import UnknownName
from firstlight.host import cgroups
from firstlight.host.workspace import Workspace
from firstlight.lab.backends import Prepared
from firstlight.lab.backends.agile import GATEWAY, Agile, children, payload, serving, told
from firstlight.model import EndPoint

_RATE = 1e4  # a second: as quick as the machine can
_NONE = PoolSize(low=0, high=0)

POOLS = {
    "full": "a sandbox waits for each start, and none is made meanwhile",
    "refilling": "a quarter as many sandboxes wait, and each that is taken is made again meanwhile",
    "empty": "nothing waits: each start makes its parts",
}

WITHOUT = {
    "nothing": "whole sandboxes wait",
    "sandboxes": "every part waits, and a start puts them together",
    "networks": "a start puts the other parts together, and makes its network",
    "cgroups": "a start puts the other parts together, and makes its cgroups",
    "root mounts": "a start puts the other parts together, and mounts its root file system",
    "seccomp program": "a start puts the parts together, and compiles its seccomp program",
    "neighbours": "a start puts the parts together, and its first packet asks for the gateway's "
    "link address",
    "everything": "a start makes all of its parts",
}
"""What is left out. A sandbox that waits holds all other parts, so these are left out one by one
where no sandbox waits."""


@dataclass(frozen=True)
class Churn:
    """Starts that end at once, so that one start is one stop. ``pools`` is one of POOLS.

    Counts, of the pool of sandboxes: ``hits``, ``misses``, ``made`` meanwhile; ``fill`` and
    ``refill`` are sandboxes a second while it makes them, before the starts and during them.
    """

    pools: str
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION

    @property
    def name(self) -> str:
        """How its pools are."""
        return f"{self.pools} pools"

    @property
    def note(self) -> str | None:
        """What its pools hold."""
        return f"{self.name}: {POOLS[self.pools]}"

    def probe(self) -> None:
        """Needs what the runtime needs."""
        _probe("pools", self.pools, POOLS)

    def to_first_packet(self) -> Self:
        """Until the gateway has answered."""
        return replace(self, end_point=EndPoint.FIRST_PACKET)

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """A runtime with such pools; afterwards nothing of it, and its counts."""
        waiting = {"full": instances, "refilling": max(1, instances // 4), "empty": 0}[self.pools]
        low = waiting if self.pools == "refilling" else 0
        size = PoolSize(low=low, high=waiting, rate=_RATE)
        with _base(workspace) as base:
            config = _config(
                workspace, base, Pools(network=size, cgroup=size, sandbox=size), instances, Ahead()
            )
            words = ("once", GATEWAY) if self.end_point is EndPoint.FIRST_PACKET else ("once",)
            function = payload(base, *words)
            with serving(config, function, workspace) as start, Client(config.socket) as client:
                before = _sandboxes(client)
                yield Prepared([start] * instances, lambda: _counted(before, _sandboxes(client)))


@dataclass(frozen=True)
class Crowd:
    """A start from parts while ``background`` instances are up."""

    background: int
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION

    @property
    def name(self) -> str:
        """The depth of preparation."""
        return "agile"

    @property
    def note(self) -> str | None:
        """As the depth's own."""
        return Agile(self.name).note

    def probe(self) -> None:
        """Needs what the runtime needs."""
        Agile(self.name).probe()

    def to_first_packet(self) -> Self:
        """Until the gateway has answered."""
        return replace(self, end_point=EndPoint.FIRST_PACKET)

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """A runtime whose instances are up, and full pools; afterwards nothing of either."""
        full = PoolSize(low=0, high=instances, rate=_RATE)
        pools = Pools(network=full, cgroup=full, sandbox=_NONE)
        with _base(workspace) as base:
            config = _config(workspace, base, pools, self.background + instances, Ahead())
            function = payload(base, *told(self.end_point))
            with (
                serving(config, function, workspace) as start,
                _held(config, function, self.background) as client,
            ):
                client.prepare(function)
                pid = start.daemons[0]
                yield Prepared([replace(start, daemons=(pid, *children(pid)))] * instances)


@dataclass(frozen=True)
class Ablated:
    """The runtime without one of the things that it prepares, one of WITHOUT.

    Its starts send a first packet to the gateway and hear the answer: the step ``packet``.
    """

    without: str
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION

    @property
    def name(self) -> str:
        """What is left out."""
        return f"without {self.without}"

    @property
    def note(self) -> str | None:
        """What that means for a start."""
        return f"{self.without} left out: {WITHOUT[self.without]}"

    def probe(self) -> None:
        """Needs what the runtime needs."""
        _probe("part", self.without, WITHOUT)

    def to_first_packet(self) -> Self:
        """Until the gateway has answered."""
        return replace(self, end_point=EndPoint.FIRST_PACKET)

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """A runtime without that part; afterwards nothing of it."""
        full = PoolSize(low=0, high=instances, rate=_RATE)

        def unless(*parts: str) -> PoolSize:
            return _NONE if self.without in ("everything", *parts) else full

        pools = Pools(
            network=unless("networks"),
            cgroup=unless("cgroups"),
            sandbox=full if self.without == "nothing" else _NONE,
        )
        ahead = Ahead(
            root=unless("root mounts") is full,
            seccomp=unless("seccomp program") is full,
            neighbours=unless("neighbours") is full,
        )
        with _base(workspace) as base:
            config = _config(workspace, base, pools, instances, ahead)
            word = "reach" if self.end_point is EndPoint.FIRST_PACKET else "ready"
            function = payload(base, word, GATEWAY)
            with serving(config, function, workspace) as start:
                yield Prepared([start] * instances)


def _probe(what: str, name: str, valid: dict[str, str]) -> None:
    if name not in valid:
        raise UnknownName(what, name, valid)
    Agile("agile").probe()


@contextmanager
def _base(workspace: Workspace) -> Iterator[Path]:
    base = workspace.directory / "agile"
    base.mkdir()
    try:
        yield base
    finally:
        shutil.rmtree(base)


def _config(workspace: Workspace, base: Path, pools: Pools, instances: int, ahead: Ahead) -> Config:
    return Config(
        name="lab", state=str(base / "state"), pools=pools, ahead=ahead,
        instances=10 * instances, cgroup=f"{cgroups.name(workspace.run)}/agile",
    )  # fmt: skip


@contextmanager
def _held(config: Config, function: Function, count: int) -> Iterator[Client]:
    """Instances that are up meanwhile; their standard input does not end before."""
    ours, theirs = os.pipe()
    try:
        with Client(config.socket) as client, Path(os.devnull).open("wb") as null:
            for _ in range(count):
                client.start(function, (ours, null.fileno(), null.fileno()))
            yield client
    finally:
        os.close(ours)
        os.close(theirs)


def _sandboxes(client: Client) -> Counts:
    return next(one for one in client.pools() if one.name.startswith("sandbox "))


def _counted(before: Counts, after: Counts) -> dict[str, float]:
    made, seconds = after.made - before.made, after.fill_seconds - before.fill_seconds
    return {
        "hits": after.hits - before.hits,
        "misses": after.misses - before.misses,
        "made": made,
        "fill": before.fill_rate,
        "refill": made / seconds if made else 0.0,
    }
