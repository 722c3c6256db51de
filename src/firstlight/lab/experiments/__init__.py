"""One file a question, each a declared value that ``catalogue.ALL`` names."""

from collections.abc import Callable
from dataclasses import dataclass

from firstlight.lab.backends import Backend
from firstlight.model import EndPoint, Point, Setting


@dataclass(frozen=True)
class Options:
    """What the user asked for; ``instances`` replaces an experiment's own list.

    ``confs`` are CNI networks, by a name of conf/cni or the path of a configuration file.
    ``binaries`` are hypervisors, by name or path; ``accel`` is one of backends.accel.ACCELERATORS.
    ``guests`` are ours or the guest catalogue's; none means all. ``clocks`` is what their time is
    told by: ``wall``, or ``counted`` instructions. ``until`` is where starts end, if not at their
    backend's own end point.
    """

    instances: tuple[int, ...]
    runtimes: tuple[str, ...] = ()
    confs: tuple[str, ...] = ()
    binaries: tuple[str, ...] = ()
    accel: str = "auto"
    guests: tuple[str, ...] = ()
    clocks: tuple[str, ...] = ("wall",)
    until: EndPoint | None = None


def _none(_: Options) -> dict[str, Setting]:
    return {}


@dataclass(frozen=True)
class Experiment:
    """A question, the axes it varies and the points it measures.

    Every point has the axis ``instances``: how many starts one batch asks for. The axis
    ``order``, where a point has it, says ``parallel`` (all at once, the default) or
    ``sequential`` (each when the one before is ready); the axis ``rate`` says how many a second
    arrive at random, whether or not earlier ones are ready. ``facts`` join those of the host.
    """

    name: str
    question: str
    figure: str
    axes: tuple[str, ...]
    points: Callable[[Options], list[Point]]
    backend: Callable[[Point], Backend]
    instances: tuple[int, ...] = (1, 10, 20, 50, 100)
    repetitions: int = 10
    facts: Callable[[Options], dict[str, Setting]] = _none
