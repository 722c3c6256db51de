"""How an instance is created: one file each, behind one small protocol.

What a start's program says, it says on standard output, a line each, which the load generator
reads (stamps in ns of CLOCK_MONOTONIC)::

    firstlight step NAME START END    a span of its own
    firstlight ready STAMP            the end point is reached
    firstlight error TEXT             why it will not be

After ``ready`` the program keeps its instance up until its standard input ends; then it takes
down what it made and exits.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from firstlight.errors import Unsupported
from firstlight.host.workspace import Workspace
from firstlight.model import EndPoint, GuestLog, Point


@dataclass(frozen=True)
class Request:
    """A start that is asked for, as one asks a resident runtime: a message on an open connection.

    The generator connects to the seqpacket ``socket`` and has an answer to ``greeting`` before any
    start of the batch is due. It sends ``message`` with the instance's standard input, output and
    output again. Answers are the agile runtime's (``agile.protocol``): ``started``, with stamps,
    which are the start's steps; ``error``; ``ended``; and ``answered``, of a handler: where that
    began is the end point. None of the texts has a NUL.
    """

    socket: Path
    greeting: str
    message: str


@dataclass(frozen=True)
class Command:
    """What the load generator does for one start: executes ``argv``, or sends ``request``.

    ``argv[0]`` is an absolute path; with a request there is neither ``argv``, ``env`` nor a pid.
    ``daemons`` are processes that serve it: where it is the only start of a batch they are traced.
    ``guest`` reads what a guest left of its own boot, once the start has ended.
    """

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    cwd: Path = Path("/")
    daemons: tuple[int, ...] = ()
    request: Request | None = None
    guest: Callable[[], GuestLog] | None = None


class Backend(Protocol):
    """One way to create an instance: a frozen value, compared by its fields.

    ``note`` says what makes its figures unlike those of its neighbours, if anything does.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def end_point(self) -> EndPoint: ...  # noqa: D102
    @property
    def note(self) -> str | None: ...  # noqa: D102

    def probe(self) -> None:
        """Raise Unsupported, with a hint, if this backend cannot run here."""

    def prepared(
        self, point: Point, instances: int, workspace: Workspace
    ) -> AbstractContextManager[list[Command]]:
        """Do all that is not timed, and yield a command for each instance; then clean up.

        Leaving it removes whatever a start may have left, also a failed or killed one.
        """


@runtime_checkable
class Reaching(Protocol):
    """A backend whose starts can go on to the answer of the gateway to their first packet."""

    def reaching(self, point: Point) -> Backend:
        """The same with FIRST_PACKET as its end point. Raises Unsupported where it has none."""


def until(backend: Backend, end_point: EndPoint | None, point: Point) -> Backend:
    """The backend with its starts ending there; None is its own end point. Raises Unsupported."""
    if end_point is None or backend.end_point is end_point:
        return backend
    if end_point is not EndPoint.FIRST_PACKET or not isinstance(backend, Reaching):
        raise Unsupported(
            f"its starts end at the {backend.end_point}, and have no {end_point}",
            "leave out --end-point, or run agile, pod or a CNI experiment",
        )
    return backend.reaching(point)
