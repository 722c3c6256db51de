"""The agile runtime as a backend: its daemon runs in the lab and is asked for each start.

A request is a message on an open connection, as a platform's gateway would send it; or, by
``client``, the execution of a small static program. The end point is the payload's first
instruction, in an instance whose network is up.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Literal, Self

import msgspec

from firstlight.agile import Config, Function, rights
from firstlight.agile.client import Client
from firstlight.agile.config import Pools, PoolSize
from firstlight.agile.node import process
from firstlight.errors import Failed, UnknownName, Unsupported
from firstlight.host import cgroups
from firstlight.host.workspace import Workspace
from firstlight.lab.backends import Ask, Command, Execute, Prepared
from firstlight.model import EndPoint
from firstlight.native import native

DEPTHS = {
    "agile": "from pooled networks and cgroups",
    "agile-ready": "from whole sandboxes that wait just before exec",
    "agile-cold": "the same code, with empty pools",
}
Via = Literal["message", "client"]
BY_CLIENT = " by client"
GATEWAY = str(IPv4Network(Config().network.range)[1])
"""The gateway of every instance, for its first packet."""
_VIA = {
    "message": "a request is a message on an open connection",
    "client": "a request is the execution of a program that connects",
}
_WARM_STARTS = 3
_RATE = 1e4  # per second: untimed, so as fast as possible
_SERVE = """
import sys
import msgspec
from firstlight.agile import Config, daemon
daemon.serve(msgspec.json.decode(sys.argv[1], type=Config), lambda: print("ready", flush=True))
"""


@dataclass(frozen=True)
class Agile:
    """``depth`` is one of DEPTHS: how much of a start is done in advance.

    ``via`` is ``message`` (on an open connection) or ``client`` (an executed program).
    """

    depth: str
    via: Via = "message"
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION

    @property
    def name(self) -> str:
        """The depth's name, with ``by client`` where that applies."""
        return self.depth if self.via == "message" else f"{self.depth}{BY_CLIENT}"

    @property
    def note(self) -> str | None:
        """What is done in advance, and what a request is."""
        return f"{self.name}: {DEPTHS[self.depth]}; {_VIA[self.via]}"

    def probe(self) -> None:
        """Needs the host's root, nft and cgroup controllers."""
        if self.depth not in DEPTHS:
            raise UnknownName("depth", self.depth, DEPTHS)
        rights.check()
        if not shutil.which("nft"):
            raise Unsupported("nft is not installed", "apt-get install nftables")

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """A daemon with pools filled for the batch."""
        base = workspace.directory / "agile"
        base.mkdir()
        try:
            config = self._config(instances, workspace, base)
            function = payload(base, *payload_arguments(self.end_point))
            with serving(config, function, workspace, self.via) as start:
                yield Prepared([start] * instances)
        finally:
            shutil.rmtree(base)

    def to_first_packet(self) -> Self:
        """The same, to the gateway's answer."""
        return replace(self, end_point=EndPoint.FIRST_PACKET)

    def _config(self, instances: int, workspace: Workspace, base: Path) -> Config:
        none = PoolSize(low=0, high=0)
        full = PoolSize(low=0, high=instances, rate=_RATE)
        pools = {
            "agile": Pools(window=0, network=full, cgroup=full, sandbox=none),
            "agile-ready": Pools(window=0, network=full, cgroup=full, sandbox=full),
            "agile-cold": Pools(window=0, network=none, cgroup=none, sandbox=none),
        }[self.depth]
        return Config(
            name="lab", state=str(base / "state"), pools=pools, instances=10 * instances,
            cgroup=f"{cgroups.name(workspace.run)}/agile",
        )  # fmt: skip


def payload_arguments(end_point: EndPoint) -> tuple[str, ...]:
    """The payload's arguments for this end point."""
    return ("reach", GATEWAY) if end_point is EndPoint.FIRST_PACKET else ("ready",)


def payload(base: Path, *words: str) -> Function:
    """The payload as a function, with these arguments; its root file system is below ``base``."""
    tree = base / "root"
    for name in ("bin", "proc", "dev", "tmp"):
        (tree / name).mkdir(parents=True)
    shutil.copy2(native("payload"), tree / "bin/payload")
    return Function(rootfs=str(tree), command=("/bin/payload", *words))


@contextmanager
def serving(
    config: Config, function: Function, workspace: Workspace, via: Via = "message"
) -> Iterator[Command]:
    """A warmed-up runtime with full pools; yields the command of one start."""
    with daemon(config, workspace) as pid:
        number, version = _warm(config, function)
        if via == "message":
            yield Ask(config.socket, "node:ping", f"node:start {number} {version}",
                      daemons=processes(config, pid))  # fmt: skip
            return
        argv = (str(native("firstlight-start")), str(config.socket), str(number), str(version))
        yield Execute(argv, workspace.environment, daemons=processes(config, pid))


def processes(config: Config, manager: int) -> tuple[int, ...]:
    """The runtime's processes: the manager's, and the node's, which is no child of it."""
    return (*tree(manager), *(tree(process.pid_of(config))))


def _warm(config: Config, function: Function) -> tuple[int, int]:
    with Client(config.socket) as client, Path("/dev/null").open("r+b", buffering=0) as null:
        for _ in range(_WARM_STARTS):
            streams = (null.fileno(), null.fileno(), null.fileno())
            client.wait(client.start(function, streams).id)
        client.prepare(function, config.pools.sandbox.high)
        return client.register(function)


@contextmanager
def daemon(config: Config, workspace: Workspace) -> Iterator[int]:
    """The resident runtime in its own process; yields its pid. Raises Failed."""
    argv = [sys.executable, "-c", _SERVE, msgspec.json.encode(config).decode()]
    log = Path(config.state).parent / "log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            argv, env=workspace.environment, text=True, stdout=subprocess.PIPE, stderr=errors
        ) as process,
    ):
        assert process.stdout
        try:
            if process.stdout.readline() != "ready\n":
                raise Failed(f"the agile runtime did not start: {log.read_text().strip()}")
            yield process.pid
        finally:
            process.terminate()


def children(pid: int) -> list[int]:
    """The child processes of a process: for a runtime, its helpers."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def tree(pid: int) -> tuple[int, ...]:
    """A process and its descendants: a runtime, its helpers, the waiting sandboxes.

    Processes that end during the call are left out.
    """
    try:
        made = children(pid)
    except OSError:
        return ()
    return (pid, *(below for child in made for below in tree(child)))
