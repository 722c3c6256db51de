"""Groups the programs of a window into starts of containers."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from firstlight.lab.watch import records
from firstlight.lab.watch.programs import MONITORS, Program, labels_of, manager, role

_LOOPBACK = "loopback"
"""The plugin that every pod has; another one gives it its network."""


@dataclass
class Start:
    """The start of a container: the programs that took part, and their process trees.

    ``began`` and ``ready`` are ns of CLOCK_MONOTONIC: the execution of the first program and of the
    container's own; ``ready`` is None if that never came.
    """

    container: str
    programs: list[Program] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    ready: int | None = None
    traced: bool = False
    """Whether all that its processes did was followed, and not their forks and executions alone."""

    @property
    def began(self) -> int:
        """When its first program was executed."""
        return min(program.at for program in self.programs)

    @property
    def root(self) -> int:
        """The process of its first program."""
        return min(self.programs, key=lambda program: program.at).root

    @property
    def roots(self) -> set[int]:
        """The process trees that belong to it."""
        return {program.root for program in self.programs}


@dataclass(frozen=True)
class Executed:
    """The execution of a container's own program, at ``at`` ns of CLOCK_MONOTONIC.

    ``ancestors`` are its ancestor processes, the nearest first.
    """

    ancestors: tuple[int, ...]
    at: int


def join(programs: Iterable[Program], executed: Iterable[Executed]) -> list[Start]:
    """The starts of a window, in order.

    Programs that name the same container belong to one start. A program that names none, such as an
    engine's own process, belongs to every container that a runtime in its tree names.
    """
    roles = [(program, role_) for program in programs if (role_ := role(program))]
    runtimes = {program.pid: role_.container for program, role_ in roles if role_.kind == "runtime"}
    named: dict[int, set[str]] = {}
    for program, _ in roles:
        if program.pid in runtimes:
            named.setdefault(program.root, set()).add(runtimes[program.pid])
    starts: dict[str, Start] = {}
    for program, role_ in roles:
        for container in [role_.container] if role_.container else named.get(program.root, ()):
            start = starts.setdefault(container, Start(container))
            start.programs.append(program)
            start.labels |= role_.labels | labels_of(role_.bundle, program.config)
            if role_.kind == "runtime":
                kept = records.labels(container, role_.bundle, program.config)
                start.labels = kept | start.labels
                start.labels["runtime"] = program.name
            elif role_.kind == "network":
                if program.name != _LOOPBACK:
                    start.labels.setdefault("cni", program.name)
            else:
                start.labels.setdefault("engine", _engine(program))
    for execution in executed:
        container = next((runtimes[pid] for pid in execution.ancestors if pid in runtimes), "")
        start = starts.get(container, Start(""))
        if start.ready is None or execution.at < start.ready:
            start.ready = execution.at
    complete = [start for start in starts.values() if "runtime" in start.labels]
    return sorted(complete, key=lambda start: start.began)


def _engine(program: Program) -> str:
    if program.name.startswith("containerd-shim"):
        return "docker" if "moby" in program.arguments else "containerd"
    if program.name in MONITORS:
        return "cri-o" if manager(program.config) == "cri-o" else "podman"
    return program.name
