"""Groups the programs of a window into starts of containers."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from firstlight.lab.watch import records
from firstlight.lab.watch.programs import (
    MONITORS,
    RUNTIMES,
    Program,
    Role,
    labels_of,
    own_program,
    role,
)

_LOOPBACK = "loopback"
"""The plugin that every pod has; another one gives it its network."""

_OF_POD = ("pod", "namespace", "sandbox", "engine")
"""The labels that a pod's sandbox and its containers have in common."""

_ENGINES = {"containerd-shim": "containerd", "dockerd": "docker", "crio": "cri-o",
            **dict.fromkeys(MONITORS, "podman")}  # fmt: skip
"""The engines of programs that are called otherwise; the others are called as their program."""


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
    begun: bool = False
    """Whether a runtime was asked to make it, and not only to start what it had made before."""
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
    """The execution of ``file``, at ``at`` ns of CLOCK_MONOTONIC.

    ``ancestors`` are its own process and its ancestors, the nearest first. ``is_first`` if it is
    the first process of a PID namespace, as a container's own program mostly is.
    """

    ancestors: tuple[int, ...]
    at: int
    file: str = ""
    is_first: bool = True


def join(
    programs: Iterable[Program],
    executed: Iterable[Executed],
    names: Collection[str] = RUNTIMES,
) -> list[Start]:
    """The starts of a window, in order. ``names`` are those of known runtimes.

    Programs that name the same container belong to one start, until its own program is executed. A
    program that names none, such as an engine's own process, belongs to every container that is
    named in its tree before the first of them has started.
    """
    roles = [(program, role_) for program in programs if (role_ := role(program, names))]
    starts: list[Start] = []
    latest: dict[str, Start] = {}
    clients: dict[int, list[tuple[Program, Role]]] = {}
    runtimes: dict[int, tuple[Start, Program]] = {}
    steps = [(program.at, program, role_) for program, role_ in roles]
    for at, step, role_ in sorted(
        [*steps, *((each.at, each, None) for each in executed)], key=lambda step: step[0]
    ):
        if role_ is None:
            assert isinstance(step, Executed)
            started = _execute(step, runtimes)
            for program in started.programs if started else ():
                clients.pop(program.root, None)
            continue
        assert isinstance(step, Program)
        if not role_.container:
            clients.setdefault(step.root, []).append((step, role_))
            continue
        start = latest.get(role_.container)
        if start is None or (start.ready is not None and start.ready < at):
            start = latest[role_.container] = Start(role_.container)
            starts.append(start)
            for client, of_client in clients.get(step.root, ()):
                _take(start, client, of_client)
        _take(start, step, role_)
        if role_.kind == "runtime":
            start.begun |= not role_.starts_only
            runtimes[step.pid] = (start, step)
    complete = [start for start in starts if start.begun or start.ready is not None]
    return sorted(complete, key=lambda start: start.began)


def _execute(executed: Executed, runtimes: dict[int, tuple[Start, Program]]) -> Start | None:
    """Note the time if it is the execution of a container's own program; the start whose it is."""
    by = next((runtimes[pid] for pid in executed.ancestors if pid in runtimes), None)
    if by is None or by[0].ready is not None:
        return None
    start, runtime = by
    if executed.ancestors[0] == runtime.pid:
        return None  # itself, which may be the first of a namespace that somebody made for it
    own = None if executed.is_first else own_program(runtime.config)
    if not executed.is_first and not (own and _is_same_file(executed.file, own)):
        return None
    start.ready = executed.at
    return start


def _is_same_file(executed: str, asked: str) -> bool:
    """Whether a requested program, searched in PATH, was executed by this name."""
    return bool(executed) and executed.rpartition("/")[2] == asked.rpartition("/")[2]


def _take(start: Start, program: Program, role_: Role) -> None:
    start.programs.append(program)
    labels = labels_of(role_.bundle, program.config)
    if role_.starts_only:  # a shim executes it in the bundle of the pod's sandbox
        labels = {name: labels[name] for name in _OF_POD if name in labels} | start.labels
    start.labels |= role_.labels | labels
    if role_.kind == "runtime":
        kept = records.labels(start.container, role_.bundle, program.record)
        start.labels = kept | start.labels
        start.labels["runtime"] = program.name
        if program.ancestor:  # the engine itself may have been executed long before
            start.labels.setdefault("engine", _ENGINES.get(program.ancestor, program.ancestor))
    elif role_.kind == "network":
        if program.name != _LOOPBACK:
            start.labels.setdefault("cni", program.name)
    else:
        start.labels.setdefault("engine", _engine(program))


def _engine(program: Program) -> str:
    if program.name.startswith("containerd-shim"):
        return "docker" if "moby" in program.arguments else "containerd"
    return _ENGINES.get(program.name, program.name)
