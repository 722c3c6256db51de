"""The floor of the agile runtime: one clone and exec into prepared parts (``start_floor.c``)."""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from firstlight.agile import Function
from firstlight.agile.parts.cgroups import Cgroups, Limits
from firstlight.errors import Failed, Unsupported
from firstlight.host import cgroups
from firstlight.host import workspace as workspaces
from firstlight.host.workspace import Workspace
from firstlight.lab.backends import Ask, Prepared
from firstlight.lab.backends.agile import Agile, payload
from firstlight.model import EndPoint
from firstlight.native import native

_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Floor:
    """Asked as the agile runtime is; ``note`` says what it leaves out."""

    name: str = "floor"
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION
    note: str | None = (
        "floor: a resident C program's clone and exec into the same namespaces, cgroup and root, "
        "made in advance; no masks, limits, user, capabilities or filter, and an empty network"
    )

    def probe(self) -> None:
        """Has the needs of the agile runtime."""
        Agile("agile").probe()

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """The program, and the parts of each start."""
        base = workspace.directory / "floor"
        base.mkdir()
        groups = Cgroups(f"{cgroups.name(workspace.run)}/floor")
        try:
            function = payload(base, "ready")
            groups.open()
            with ExitStack() as parts:
                starts = [prepare_parts(function, groups, parts) for _ in range(instances)]
                with serving(base / "socket", function, starts) as pid:
                    start = Ask(base / "socket", "hello", "start", daemons=(pid,))
                    yield Prepared([start] * instances)
        finally:
            groups.close()
            shutil.rmtree(base)


def prepare_parts(function: Function, groups: Cgroups, parts: ExitStack) -> list[int]:
    """The network namespace and cgroups of one start, by descriptor."""
    cgroup = groups.make(Limits(function.memory, function.cpus, function.pids))
    parts.callback(groups.remove, cgroup)
    network = _network()
    parts.callback(os.close, network)
    return [network, *cgroup.descriptors]


def _network() -> int:
    """Make a network namespace, by a thread, so that the process stays in its own."""
    made: list[int] = []

    def make() -> None:
        workspaces.unshare(_CLONE_NEWNET)
        made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if not made:
        raise Unsupported("cannot make a network namespace", "run firstlight as root")
    return made[0]


@contextmanager
def serving(socket: Path, function: Function, starts: list[list[int]]) -> Iterator[int]:
    """Its program, which uses up the parts of these starts; yields its pid."""
    words = "".join(",".join(map(str, parts)) + ";" for parts in starts)
    argv = [str(native("start-floor")), str(socket), function.rootfs, words, *function.command]
    given = [descriptor for parts in starts for descriptor in parts]
    with subprocess.Popen(argv, pass_fds=given, text=True, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            if process.stdout.readline() != "ready\n":
                raise Failed("the floor's program did not start", "see the error above")
            yield process.pid
        finally:
            process.terminate()
