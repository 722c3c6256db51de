"""From what one window saw to the starts of containers in it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from firstlight.lab.watch.programs import Program, labels_of, role


@dataclass
class Start:
    """One container's start: the programs that took part, by whose trees it is known.

    ``began`` and ``ready`` are ns of CLOCK_MONOTONIC: the first program's execution, and that of
    the container's own; ``ready`` is None where that never came.
    """

    container: str
    programs: list[Program] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    ready: int | None = None

    @property
    def began(self) -> int:
        """When the first of its programs was executed."""
        return min(program.at for program in self.programs)

    @property
    def root(self) -> int:
        """The process that its first program ran in."""
        return min(self.programs, key=lambda program: program.at).root

    @property
    def roots(self) -> set[int]:
        """The trees of processes that are its own."""
        return {program.root for program in self.programs}


@dataclass(frozen=True)
class Executed:
    """A container's own program was executed at ``at`` ns of CLOCK_MONOTONIC.

    ``ancestors`` are the processes that it descends from, the nearest first.
    """

    ancestors: tuple[int, ...]
    at: int


def join(programs: Iterable[Program], executed: Iterable[Executed]) -> list[Start]:
    """The starts of a window, in their order.

    Programs that name one container are of one start. One that names none, an engine's own
    process, is of every container that a runtime in its tree names.
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
            start.labels |= role_.labels | labels_of(role_.bundle)
            if role_.kind == "runtime":
                start.labels["runtime"] = program.name
            elif role_.kind != "network":
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
        return "containerd"
    return "podman" if program.name.startswith("conmon") else program.name
