"""The agile runtime under conditions: exhausted pools, a full host, one part left out.

Each is the runtime of ``agile.py`` with another configuration or other running instances.
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
from firstlight.lab.backends.agile import (
    GATEWAY,
    Agile,
    payload,
    payload_arguments,
    serving,
)
from firstlight.model import EndPoint

_RATE = 1e4  # per second: as fast as possible
_NONE = PoolSize(low=0, high=0)

POOLS = {
    "full": "a sandbox waits for each start, and none is made during the run",
    "refilling": "a quarter as many sandboxes wait, and each one used is replaced during the run",
    "empty": "nothing waits: each start makes its parts",
}

WITHOUT = {
    "nothing": "whole sandboxes wait",
    "sandboxes": "every part waits, and a start combines them",
    "networks": "a start combines the other parts and makes its network",
    "cgroups": "a start combines the other parts and makes its cgroups",
    "neighbours": "a start combines the parts, and its first packet asks for the gateway's "
    "link address",
    "everything": "a start makes all of its parts",
}
"""What can be left out. A waiting sandbox contains all other parts, so those are left out, one by
one, where no sandbox waits."""


@dataclass(frozen=True)
class Churn:
    """Starts that end at once, so there are as many stops. ``pools`` is one of POOLS.

    Counts of the sandbox pool: ``hits``, ``misses``, ``made`` during the batch; ``fill`` and
    ``refill`` are sandboxes per second of filling, before and during the batch.
    """

    pools: str
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION

    @property
    def name(self) -> str:
        """The state of its pools."""
        return f"{self.pools} pools"

    @property
    def note(self) -> str | None:
        """What the pools contain."""
        return f"{self.name}: {POOLS[self.pools]}"

    def probe(self) -> None:
        """Has the needs of the runtime."""
        _probe("pools", self.pools, POOLS)

    def to_first_packet(self) -> Self:
        """The same, to the gateway's answer."""
        return replace(self, end_point=EndPoint.FIRST_PACKET)

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """A runtime with such pools, and its counts."""
        waiting = {"full": instances, "refilling": max(1, instances // 4), "empty": 0}[self.pools]
        low = waiting if self.pools == "refilling" else 0
        size = PoolSize(low=low, high=waiting, rate=_RATE)
        with _base(workspace) as base:
            config = _config(
                workspace,
                base,
                Pools(window=0, network=size, cgroup=size, sandbox=size),
                instances,
                Ahead(),
            )
            words = ("once", GATEWAY) if self.end_point is EndPoint.FIRST_PACKET else ("once",)
            function = payload(base, *words)
            with serving(config, function, workspace) as start, Client(config.socket) as client:
                before = _sandboxes(client)

                def counts() -> dict[str, float]:
                    return _counted(before, _sandboxes(client))

                yield Prepared([start] * instances, counts)


@dataclass(frozen=True)
class Crowd:
    """A start from parts while ``background`` instances run."""

    background: int
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION

    @property
    def name(self) -> str:
        """The depth of preparation."""
        return "agile"

    @property
    def note(self) -> str | None:
        """The depth's note."""
        return Agile(self.name).note

    def probe(self) -> None:
        """Has the needs of the runtime."""
        Agile(self.name).probe()

    def to_first_packet(self) -> Self:
        """The same, to the gateway's answer."""
        return replace(self, end_point=EndPoint.FIRST_PACKET)

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """A runtime with running instances and full pools."""
        full = PoolSize(low=0, high=instances, rate=_RATE)
        pools = Pools(window=0, network=full, cgroup=full, sandbox=_NONE)
        with _base(workspace) as base:
            config = _config(workspace, base, pools, self.background + instances, Ahead())
            function = payload(base, *payload_arguments(self.end_point))
            with (
                serving(config, function, workspace) as start,
                _held(config, function, self.background) as client,
            ):
                client.prepare(function)
                yield Prepared([start] * instances)


@dataclass(frozen=True)
class Ablated:
    """The runtime without one prepared part, one of WITHOUT.

    Its starts ping the gateway: the step ``packet``.
    """

    without: str
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION

    @property
    def name(self) -> str:
        """The part that is left out."""
        return f"without {self.without}"

    @property
    def note(self) -> str | None:
        """What this means for a start."""
        return f"{self.without} left out: {WITHOUT[self.without]}"

    def probe(self) -> None:
        """Has the needs of the runtime."""
        _probe("part", self.without, WITHOUT)

    def to_first_packet(self) -> Self:
        """The same, to the gateway's answer."""
        return replace(self, end_point=EndPoint.FIRST_PACKET)

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """A runtime without that part."""
        full = PoolSize(low=0, high=instances, rate=_RATE)

        def unless(*parts: str) -> PoolSize:
            return _NONE if self.without in ("everything", *parts) else full

        pools = Pools(
            window=0,
            network=unless("networks"),
            cgroup=unless("cgroups"),
            sandbox=full if self.without == "nothing" else _NONE,
        )
        ahead = Ahead(
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
    """Keep instances running; their standard input stays open."""
    ours, theirs = os.pipe()
    try:
        with Client(config.socket) as client, Path(os.devnull).open("wb") as null:
            for _ in range(count):
                client.start(function, (ours, null.fileno(), null.fileno()))
            yield client
    finally:
        os.close(ours)
        os.close(theirs)


_NO_POOL = Counts(
    name="sandbox", ready=0, low=0, high=0, hits=0, misses=0, made=0, returned=0, failed=0,
    fill_rate=0.0, fill_seconds=0.0,
)  # fmt: skip


def _sandboxes(client: Client) -> Counts:
    return next((pool for pool in client.pools() if pool.name == "sandbox"), _NO_POOL)


def _counted(before: Counts, after: Counts) -> dict[str, float]:
    made, seconds = after.made - before.made, after.fill_seconds - before.fill_seconds
    return {
        "hits": after.hits - before.hits,
        "misses": after.misses - before.misses,
        "made": made,
        "fill": before.fill_rate,
        "refill": made / seconds if made else 0.0,
    }
