"""One file per experiment: a declaration, listed in ``catalogue.ALL``."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from firstlight.lab.backends import Backend
from firstlight.lab.load import BURST, Shape
from firstlight.model import EndPoint, Point, Presentation, Setting

Option = Literal[
    "runtimes", "networks", "hypervisors", "accel", "guests", "clocks", "kubeconfig", "context",
    "image", "cri",
]  # fmt: skip
"""The fields of Options that not all experiments use."""


@dataclass(frozen=True)
class Options:
    """The user's choices. ``instances`` replaces an experiment's own list.

    ``networks`` are CNI networks, by a name of conf/cni or the path of a configuration file.
    ``hypervisors`` are names or paths; ``accel`` is one of backends.accel.ACCELERATORS. ``guests``
    are built-in or in the guest catalogue; empty means all. ``clocks`` are how guests tell time:
    ``wall``, or ``counted`` instructions. ``end_point`` replaces that of the backends.
    ``kubeconfig`` and its ``context`` name a cluster of the user's, ``cri`` a runtime's socket,
    ``image`` what their containers run. ``deadline`` is per start, in seconds.
    """

    instances: tuple[int, ...]
    runtimes: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    hypervisors: tuple[str, ...] = ()
    accel: str = "auto"
    guests: tuple[str, ...] = ()
    clocks: tuple[str, ...] = ("wall",)
    end_point: EndPoint | None = None
    kubeconfig: str = ""
    context: str = ""
    image: str = ""
    cri: str = ""
    deadline: float = 60.0


@dataclass(frozen=True)
class Case:
    """A point of an experiment: its settings as reports show them, and its backend.

    ``point`` has a setting for each axis; ``instances`` is the number of starts per batch, in the
    load ``shape``. Settings are labels: ``backend`` determines what is measured.
    """

    point: Point
    backend: Backend
    shape: Shape = BURST

    @property
    def instances(self) -> int:
        """The number of starts per batch."""
        return int(self.point["instances"])


def _no_facts(_: Options) -> dict[str, Setting]:
    return {}


@dataclass(frozen=True)
class Experiment:
    """A question, the axes it varies and the cases it measures.

    ``figure`` is the paper's answer. ``cases`` makes the cases in the order of the report.
    ``options`` are those that ``cases`` uses; others are refused. ``fast_instances`` are those of
    ``--fast``, if not the smallest of ``instances``. ``facts`` are added to those of
    the host. ``presentation`` is how its runs are shown. Phases are ``explained_by`` the kernel's
    events, in traced starts interleaved with the others; or by the components' own telemetry, in
    all starts, and the kernel adds the causes of single ones. ``beside`` is an axis whose settings
    are compared by pairs of starts: they are measured one right after the other. Cases whose
    surroundings take long to make have their batches ``together``.
    """

    name: str
    question: str
    figure: str
    axes: tuple[str, ...]
    cases: Callable[[Options], Iterable[Case]]
    options: tuple[Option, ...] = ()
    instances: tuple[int, ...] = (1, 10, 20, 50, 100)
    fast_instances: tuple[int, ...] = ()
    repetitions: int = 10
    facts: Callable[[Options], dict[str, Setting]] = _no_facts
    presentation: Presentation = field(default_factory=Presentation)
    explained_by: Literal["kernel", "components"] = "kernel"
    beside: str = ""
    together: bool = False
