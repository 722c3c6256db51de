"""The glossary of firstlight, as frozen records. Imports nothing else of firstlight.

instance    one started compute unit
payload     the static program run inside an instance; stamps its first instruction
point       one setting of an experiment's axes
batch       the starts asked for together, by one load shape, at one point
sample      one instance's start: its stamps, its spans, how it ended
span        a named interval from one source
phase       what the work was for
cause       what the time was spent on inside a phase
run         a header and its samples

Stamps are integers in nanoseconds of the host's CLOCK_MONOTONIC.
"""

import os
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

Integer = Annotated[int, Meta(ge=-(1 << 62), lt=1 << 62)]
Setting = str | Integer | float | bool
Point = dict[str, Setting]
Count = Annotated[int, Meta(ge=0, lt=1 << 31)]
Time = Integer
"""In ns."""

SCHEMA_VERSION = 2


class Ending(StrEnum):
    """How a start ended. A ``hung`` start was stopped at its deadline."""

    READY = "ready"
    FAILED = "failed"
    HUNG = "hung"


class EndPoint(StrEnum):
    """What ``Stamps.ready`` marks. Every figure names its end point."""

    FIRST_INSTRUCTION = "first instruction"
    FIRST_PACKET = "first packet"
    REQUEST_DONE = "request done"
    READY_AT_API = "Ready at the API"
    EXIT = "exit"
    BOOTED = "end of boot"


class Stamps(Struct, frozen=True):
    """When one start was asked for, begun and ready, in ns of CLOCK_MONOTONIC.

    ``intended`` is the arrival that the load shape asked for; latency counts from it.
    ``spawned`` is when the load generator began the start. ``ready`` is the end point.
    ``seen`` is when the load generator read it: a check on a stamp taken by the instance.
    ``stopped`` is when the instance was gone. ``None`` means never reached.
    """

    intended: Time
    spawned: Time
    ready: Time | None = None
    seen: Time | None = None
    stopped: Time | None = None


class Step(Struct, frozen=True):
    """A span stamped by the backend's own program: ``start`` and ``end`` in ns."""

    name: str
    start: Time
    end: Time


class GuestLog(Struct, frozen=True):
    """A guest's own log of its boot.

    ``spans`` have the guest's names and are in ns of the guest's ``clock``, from its own zero.
    A guest's stamp plus ``offset`` is a host's stamp, to within ``uncertainty`` ns; both are None
    where nothing ties the clocks. ``console`` is the end of the console's output. ``fault`` is a
    step that the guest skipped on its way to the end point, which makes the start a failure.
    """

    clock: str
    spans: tuple[Step, ...] = ()
    offset: int | None = None
    uncertainty: int | None = None
    console: str = ""
    fault: str | None = None


OPERATIONS = ("run_podsandbox", "network", "create_container", "start_container")
"""A container runtime's operations for a pod, as the kubelet names them; ``network`` is CNI's part
of the first."""


class ComponentSpan(Struct, frozen=True):
    """A component's own span of its part in a start; ``start`` and ``end`` in ns.

    ``name`` is what the part was for, a space, and the component's own name for the span.
    """

    name: str
    start: Time
    end: Time


class Telemetry(Struct, frozen=True):
    """The spans of the components that made an instance, by their own tracing.

    They stamp by CLOCK_REALTIME, which is laid on CLOCK_MONOTONIC to within ``uncertainty`` ns.
    There are none if that clock was set meanwhile, or nothing arrived.
    """

    spans: tuple[ComponentSpan, ...]
    uncertainty: int


class Sample(Struct, frozen=True):
    """One instance's start. ``index`` is its number in the run; spans refer to it.

    ``batch`` numbers the batches of the run, ``instance`` the starts of a batch, both from 0.
    ``user_ns``, ``system_ns`` and ``page_faults`` are of the process tree, to its end; 0 where
    nobody waits for it. ``lost`` counts the events that the tracer lost during the batch; such a
    breakdown is marked. ``counts`` are the backend's
    counts over the whole batch, in its first sample.
    """

    index: Count
    batch: Count
    instance: Count
    repetition: Count
    point: Point
    traced: bool
    ending: Ending
    stamps: Stamps
    steps: tuple[Step, ...] = ()
    pid: Count = 0
    user_ns: Time = 0
    system_ns: Time = 0
    page_faults: Count = 0
    exit_status: int | None = None
    error: str | None = None
    output: str = ""
    lost: Count = 0
    guest: GuestLog | None = None
    counts: dict[str, float] = {}
    telemetry: Telemetry | None = None
    labels: dict[str, str] = {}

    @property
    def latency(self) -> int | None:
        """From the intended arrival to the end point, in ns; None if it was not reached."""
        return None if self.stamps.ready is None else self.stamps.ready - self.stamps.intended

    @property
    def lateness(self) -> int:
        """Lateness of the load generator, in ns."""
        return self.stamps.spawned - self.stamps.intended


class Presentation(Struct, frozen=True, kw_only=True):
    """How an experiment wants its runs shown, stored so that a report needs no experiment.

    ``subject`` names one start in a sentence, with ``{series}`` for its series and
    ``{experiment}``. ``view`` names the sentences, tables and pictures that a run has besides those
    of every run (report.views).
    ``counterpart`` is the paper's figure that the bars resemble. ``headline`` says which starts the
    latencies come from.
    """

    subject: str = "one start ({series}, {experiment})"
    view: str = ""
    counterpart: str = ""
    headline: Literal["untraced", "traced", "all"] = "untraced"

    def name(self, series: str, experiment: str) -> str:
        """The subject for a series. Other braces stay: a run may come from anybody."""
        return self.subject.replace("{experiment}", experiment).replace("{series}", series)


class Header(Struct, frozen=True, kw_only=True):
    """What a run measured, where and how. ``environment`` is from ``host.facts.collect()``."""

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
    """Points that could not run here, with the reason of each."""
    presentation: Presentation = Presentation()


class Footer(Struct, frozen=True, kw_only=True):
    """How the run ended, written last. A run without a footer was killed.

    ``samples`` is how many it has; runs of 0.2.0 do not say.
    """

    ended: str
    interrupted: bool = False
    warnings: tuple[str, ...] = ()
    samples: Count | None = None


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its confidence interval: ``low <= value <= high``."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Check:
    """The result of one check. ``ok`` is None for a warning; ``hint`` is the remedy."""

    name: str
    ok: bool | None
    fact: str
    hint: str | None = None


@dataclass(frozen=True)
class Missing:
    """Why ``parts`` of an experiment, backends by name, cannot run here; ``hint`` is the remedy."""

    parts: tuple[str, ...]
    fact: str
    hint: str | None


@dataclass(frozen=True)
class Availability:
    """What of an experiment can run here, backends by name, and why the rest cannot."""

    can_run: tuple[str, ...]
    missing: tuple[Missing, ...]


def to_json(record: object) -> bytes:
    """JSON. Words of a command may be any bytes: those that are not UTF-8 are kept as ``\\xff``."""
    try:
        return msgspec.json.encode(record)
    except UnicodeEncodeError:
        return msgspec.json.encode(_printable(msgspec.to_builtins(record)))


def _printable(value: object) -> object:
    if isinstance(value, str):
        return os.fsencode(value).decode(errors="backslashreplace")
    if isinstance(value, dict):
        return {_printable(key): _printable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(each) for each in value]
    return value
