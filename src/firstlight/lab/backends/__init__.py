"""How instances are created: one file per backend, behind one small protocol.

A started program reports by lines on standard output, which the load generator reads (stamps in ns
of CLOCK_MONOTONIC)::

    firstlight step NAME START END    a span
    firstlight ready STAMP            the end point was reached
    firstlight error TEXT             the end point will not be reached, and why

After ``ready`` the program keeps its instance up until its standard input ends; then it removes
what it made and exits.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from firstlight.errors import Unsupported
from firstlight.host.workspace import Workspace
from firstlight.model import EndPoint, GuestLog, Telemetry


@dataclass(frozen=True)
class Execute:
    """A start by executing a program. ``argv[0]`` is an absolute path.

    ``daemons`` are processes that serve it; they are traced in batches of a single start.
    ``guest`` reads the guest's log of its boot, after the start has ended.
    """

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    cwd: Path = Path("/")
    daemons: tuple[int, ...] = ()
    guest: Callable[[], GuestLog] | None = None


@dataclass(frozen=True)
class Ask:
    """A start by a message to a resident runtime, on an open connection.

    The generator connects to the seqpacket ``socket`` and has received an answer to ``greeting``
    before the batch begins. It sends ``message`` with the instance's standard input and output (the
    latter twice). Answers are the agile runtime's (``agile.protocol``). The texts contain no NUL.
    ``daemons`` are as in Execute.
    """

    socket: Path
    greeting: str
    message: str
    daemons: tuple[int, ...] = ()


Command = Execute | Ask
"""How the load generator makes one start."""


@dataclass(frozen=True)
class Prepared:
    """A batch that is ready to start: one command per instance.

    ``counts`` returns the backend's counts over the batch, ``telemetry`` what components reported
    of each instance, by its position. Both are called after the starts have ended, before the batch
    is cleaned up.
    """

    commands: Sequence[Command]
    counts: Callable[[], Mapping[str, float]] = dict
    telemetry: Callable[[], Mapping[int, Telemetry]] = dict


class Backend(Protocol):
    """A way to create an instance: a frozen value with its whole configuration.

    ``note`` tells the reader what is special about its figures, if anything.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def end_point(self) -> EndPoint: ...  # noqa: D102
    @property
    def note(self) -> str | None: ...  # noqa: D102

    def probe(self) -> None:
        """Raise Unsupported if this backend cannot run here."""

    def prepared(self, instances: int, workspace: Workspace) -> AbstractContextManager[Prepared]:
        """Prepare a batch, untimed; on exit clean up.

        Leaving the context removes whatever a start may have left, even a failed or killed one.
        """


@runtime_checkable
class PacketBackend(Protocol):
    """A backend that can measure starts to the gateway's answer to their first packet."""

    def to_first_packet(self) -> Backend:
        """The same backend with FIRST_PACKET as its end point. Raises Unsupported."""


@runtime_checkable
class ApiBackend(Protocol):
    """A backend whose starts can go on until an API shows the instance Ready."""

    def at_the_api(self) -> Backend:
        """The same with READY_AT_API as its end point. Raises Unsupported where it has none."""


def ending_at(backend: Backend, end_point: EndPoint | None) -> Backend:
    """The backend with this end point; None means its own. Raises Unsupported."""
    if end_point is None or backend.end_point is end_point:
        return backend
    if end_point is EndPoint.READY_AT_API and isinstance(backend, ApiBackend):
        return backend.at_the_api()
    if end_point is not EndPoint.FIRST_PACKET or not isinstance(backend, PacketBackend):
        raise Unsupported(
            f"{backend.name} cannot measure the {end_point}; it measures the {backend.end_point}",
            "leave out --end-point, or run agile, pod or a CNI experiment",
        )
    return backend.to_first_packet()
