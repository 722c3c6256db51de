"""How an instance is created: one file each, behind one small protocol.

A started program reports on standard output, a line each, which the load generator reads (stamps
in ns of CLOCK_MONOTONIC)::

    firstlight step NAME START END    a span of its own
    firstlight ready STAMP            the end point is reached
    firstlight error TEXT             why it will not be

After ``ready`` the program keeps its instance up until its standard input ends; then it takes
down what it made and exits.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from firstlight.errors import Unsupported
from firstlight.host.workspace import Workspace
from firstlight.model import EndPoint, GuestLog


@dataclass(frozen=True)
class Execute:
    """A start by executing a program. ``argv[0]`` is an absolute path.

    ``daemons`` are processes that serve it; they are traced where a batch has one start only.
    ``guest`` reads the guest's log of its own boot, once the start has ended.
    """

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    cwd: Path = Path("/")
    daemons: tuple[int, ...] = ()
    guest: Callable[[], GuestLog] | None = None


@dataclass(frozen=True)
class Ask:
    """A start by a message to a resident runtime, on a connection that is open already.

    The generator connects to the seqpacket ``socket`` and has an answer to ``greeting`` before any
    start of the batch is due. It sends ``message`` with the instance's standard input, output and
    output again. Answers are the agile runtime's (``agile.protocol``). None of the texts has a NUL.
    ``daemons`` are as in Execute.
    """

    socket: Path
    greeting: str
    message: str
    daemons: tuple[int, ...] = ()


Command = Execute | Ask
"""What the load generator does for one start."""


@dataclass(frozen=True)
class Prepared:
    """A batch that is ready to start: a command for each instance.

    ``counts`` returns what the backend counted over the batch; it is called once the starts have
    ended, before the batch is cleaned up.
    """

    commands: Sequence[Command]
    counts: Callable[[], Mapping[str, float]] = dict


class Backend(Protocol):
    """One way to create an instance: a frozen value that holds all of its configuration.

    ``note`` says what sets its figures apart from its neighbours', if anything does.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def end_point(self) -> EndPoint: ...  # noqa: D102
    @property
    def note(self) -> str | None: ...  # noqa: D102

    def probe(self) -> None:
        """Raise Unsupported, with a hint, if this backend cannot run here."""

    def prepared(self, instances: int, workspace: Workspace) -> AbstractContextManager[Prepared]:
        """Do all that is not timed; then clean up.

        Leaving it removes whatever a start may have left, also a failed or killed one.
        """


@runtime_checkable
class PacketBackend(Protocol):
    """A backend whose starts can go on to the gateway's answer to their first packet."""

    def to_first_packet(self) -> Backend:
        """The same with FIRST_PACKET as its end point. Raises Unsupported where it has none."""


def ending_at(backend: Backend, end_point: EndPoint | None) -> Backend:
    """The backend with this end point; None is its own. Raises Unsupported."""
    if end_point is None or backend.end_point is end_point:
        return backend
    if end_point is not EndPoint.FIRST_PACKET or not isinstance(backend, PacketBackend):
        raise Unsupported(
            f"{backend.name} cannot measure the {end_point}: its starts end at the "
            f"{backend.end_point}",
            "leave out --end-point, or run agile, pod or a CNI experiment",
        )
    return backend.to_first_packet()
