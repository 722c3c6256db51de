"""One file a question, each one declaration that ``catalogue.ALL`` names."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from firstlight.lab.backends import Backend
from firstlight.lab.load import BURST, Shape
from firstlight.model import EndPoint, Point, Presentation, Setting

Option = Literal["runtimes", "networks", "hypervisors", "accel", "guests", "clocks"]
"""The fields of Options that not every experiment uses."""


@dataclass(frozen=True)
class Options:
    """What the user asked for; ``instances`` replaces an experiment's own list.

    ``networks`` are CNI networks, by a name of conf/cni or the path of a configuration file.
    ``hypervisors`` are names or paths; ``accel`` is one of backends.accel.ACCELERATORS. ``guests``
    are ours or the guest catalogue's; none means all. ``clocks`` say how guests tell time: by the
    ``wall``, or by ``counted`` instructions. ``end_point`` replaces that of the backends.
    """

    instances: tuple[int, ...]
    runtimes: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    hypervisors: tuple[str, ...] = ()
    accel: str = "auto"
    guests: tuple[str, ...] = ()
    clocks: tuple[str, ...] = ("wall",)
    end_point: EndPoint | None = None


@dataclass(frozen=True)
class Case:
    """One point of an experiment: its settings as the report words them, and how it is measured.

    ``point`` has a setting for each axis. Its ``instances`` say how many starts one batch asks for,
    in the ``shape`` of load. The settings are labels: what is measured is in ``backend``.
    """

    point: Point
    backend: Backend
    shape: Shape = BURST

    @property
    def instances(self) -> int:
        """How many starts one batch asks for."""
        return int(self.point["instances"])


def _no_facts(_: Options) -> dict[str, Setting]:
    return {}


@dataclass(frozen=True)
class Experiment:
    """A question, the axes it varies and the cases it measures.

    ``figure`` is where the paper answers it. ``cases`` makes them in the order of the report.
    ``options`` are those that ``cases`` uses: others are refused. ``facts`` join those of the
    host. ``presentation`` says how its runs are shown. Its phases are ``explained_by`` the
    kernel's events, in starts that are traced beside the others, or by what components tell of all.
    """

    name: str
    question: str
    figure: str
    axes: tuple[str, ...]
    cases: Callable[[Options], Iterable[Case]]
    options: tuple[Option, ...] = ()
    instances: tuple[int, ...] = (1, 10, 20, 50, 100)
    repetitions: int = 10
    facts: Callable[[Options], dict[str, Setting]] = _no_facts
    presentation: Presentation = field(default_factory=Presentation)
    explained_by: Literal["kernel", "components"] = "kernel"
