"""The words of firstlight as frozen records. Imports nothing of ours.

instance    one started compute unit
payload     the static program run inside an instance; stamps its first instruction
point       one setting of an experiment's axes
batch       the starts that were asked for together, by one load shape, at one point
sample      one instance's start: its stamps, its spans, how it ended
span        a named interval from one source
phase       what the work was for
cause       what the time was spent on inside a phase
run         a header and its samples

Every stamp is an integer number of nanoseconds of the host's CLOCK_MONOTONIC.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from msgspec import Struct

Setting = str | int | float | bool
Point = dict[str, Setting]

SCHEMA_VERSION = 2


class Ending(StrEnum):
    """How a start ended: ``hung`` is one that its deadline stopped."""

    READY = "ready"
    FAILED = "failed"
    HUNG = "hung"


class EndPoint(StrEnum):
    """What ``Stamps.ready`` marks; every figure names it."""

    FIRST_INSTRUCTION = "first instruction"
    FIRST_PACKET = "first packet"
    REQUEST_DONE = "request done"
    EXIT = "exit"
    BOOTED = "end of boot"


class Stamps(Struct, frozen=True):
    """When one start was asked for, made and ready, in ns of CLOCK_MONOTONIC.

    ``intended`` is the arrival that the load shape asked for; latency counts from it.
    ``spawned`` is when the load generator began the start; late by ``spawned - intended``.
    ``ready`` is the end point; ``seen`` is when the load generator read it, a check on a
    stamp that the instance itself took. ``None`` where it was never reached.
    """

    intended: int
    spawned: int
    ready: int | None = None
    seen: int | None = None
    stopped: int | None = None


class Step(Struct, frozen=True):
    """A span that the backend's own program stamped: ``start`` and ``end`` in ns."""

    name: str
    start: int
    end: int


class GuestLog(Struct, frozen=True):
    """What a guest said of its own boot, as it said it.

    ``spans`` bear the guest's own names and are in ns of the guest's ``clock``, from its own zero.
    A guest's stamp plus ``offset`` is one of the host's, to within ``uncertainty`` ns; both are
    None where nothing ties the clocks. ``console`` is the end of what it printed. ``fault`` is what
    it left out on its way to the end point: then the start has failed.
    """

    clock: str
    spans: tuple[Step, ...] = ()
    offset: int | None = None
    uncertainty: int | None = None
    console: str = ""
    fault: str | None = None


class Sample(Struct, frozen=True):
    """One instance's start. ``index`` is its place in the run and names its spans.

    ``batch`` counts batches over the run, ``instance`` the starts of one batch from 0.
    ``user_ns`` and ``system_ns`` are the CPU time of the reaped process tree.
    ``lost`` counts events that the tracer lost during the batch: such a breakdown is marked.
    ``counts`` is what the backend counted over the whole batch, in its first sample.
    """

    index: int
    batch: int
    instance: int
    repetition: int
    point: Point
    traced: bool
    ending: Ending
    stamps: Stamps
    steps: tuple[Step, ...] = ()
    pid: int = 0
    user_ns: int = 0
    system_ns: int = 0
    exit_status: int | None = None
    error: str | None = None
    output: str = ""
    lost: int = 0
    guest: GuestLog | None = None
    counts: dict[str, float] = {}

    @property
    def latency(self) -> int | None:
        """From the intended arrival to the end point, in ns; None where it was not reached."""
        return None if self.stamps.ready is None else self.stamps.ready - self.stamps.intended

    @property
    def lateness(self) -> int:
        """How late the load generator was, in ns."""
        return self.stamps.spawned - self.stamps.intended


class Presentation(Struct, frozen=True, kw_only=True):
    """How a run is shown, as its experiment declares it: so a report needs no experiment.

    ``subject`` is what one start is in a sentence, with ``{series}`` for its series. ``view`` names
    the sentences, tables and pictures of a run besides those that every run has (report.views).
    ``counterpart`` is the figure elsewhere that its bars are like. ``headline`` says of which
    starts its latencies are; a run without an untraced start has those of traced ones.
    """

    subject: str = "one start ({series})"
    view: str = ""
    counterpart: str = ""
    headline: Literal["untraced", "traced"] = "untraced"


class Header(Struct, frozen=True, kw_only=True):
    """What a run measured, where and how. ``environment`` is ``host.facts.collect()``."""

    schema: int = SCHEMA_VERSION
    run: str
    experiment: str
    question: str
    end_point: EndPoint
    axes: tuple[str, ...]
    points: tuple[Point, ...]
    argv: tuple[str, ...]
    seed: int
    started: str
    revision: str
    repetitions: int
    cold: bool = False
    environment: dict[str, str | int | float | bool | list[str]] = {}
    notes: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    """Points that could not run here, each with its reason."""
    presentation: Presentation = Presentation()


class Footer(Struct, frozen=True, kw_only=True):
    """Written last: how the run ended. A run without one was killed."""

    ended: str
    interrupted: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its confidence interval: ``low <= value <= high``."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. ``ok`` is None for a warning; ``hint`` says what to do."""

    name: str
    ok: bool | None
    fact: str
    hint: str | None = None


@dataclass(frozen=True)
class Missing:
    """Why ``parts`` of an experiment, backends by name, cannot run here, and what to do."""

    parts: tuple[str, ...]
    fact: str
    hint: str | None
