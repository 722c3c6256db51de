"""Networks from the agile runtime's pool, for any runtime that joins a namespace by its path.

The pool is in its own process, as on a node, and filled before the batch. A start takes a network
by the program ``pooled``, which links the namespace's path and then executes the runtime. Taking is
part of the start's time; making the namespace, its link, address and routes is not. A network ends
with its start; no other start gets it.
"""

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

import msgspec

from firstlight.agile import Config
from firstlight.agile.config import Pools, PoolSize
from firstlight.agile.network.networks import Network, Networks
from firstlight.agile.parts.pool import LoadGate, Pool
from firstlight.agile.sockets import rights
from firstlight.errors import Failed
from firstlight.host.workspace import Workspace
from firstlight.lab.backends import Execute
from firstlight.native import native

NOTE = (
    "pooled: the runtime joins a network of the agile runtime's pool, made in advance; "
    "taking it is part of the start"
)
_BACKLOG = 512
_RATE = 1e4  # per second: untimed, so as fast as possible
_SERVE = """
import sys
import msgspec
from firstlight.agile import Config
from firstlight.lab.backends import pooled
config = msgspec.json.decode(sys.argv[1], type=Config)
pooled.serve(config, sys.argv[2], lambda: print("ready", flush=True))
"""


@dataclass(frozen=True)
class Taking:
    """A full pool. ``gateway`` answers the first packets of all its networks."""

    socket: Path
    gateway: str
    pid: int

    def start(self, argv: Sequence[str], path: Path, env: dict[str, str]) -> Execute:
        """The command, started with a network from the pool at ``path``."""
        line = (str(native("pooled")), str(self.socket), str(path), *argv)
        return Execute(line, env, daemons=(self.pid,))


@contextmanager
def taking(instances: int, workspace: Workspace) -> Iterator[Taking]:
    """A pool with a network for each start. Raises Failed."""
    size = PoolSize(low=0, high=instances, rate=_RATE)
    config = Config(name="lab", pools=Pools(window=0, network=size))
    listening = workspace.directory / "pool"
    argv = [sys.executable, "-c", _SERVE, msgspec.json.encode(config).decode(), str(listening)]
    with subprocess.Popen(
        argv, env=workspace.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        try:
            if process.stdout.readline() != "ready\n":
                last = process.stderr.read().strip().rpartition("\n")[2]
                raise Failed(f"the network pool did not start: {last}")
            yield Taking(listening, str(IPv4Network(config.network.range)[1]), process.pid)
        finally:
            process.terminate()
            process.wait()
            listening.unlink(missing_ok=True)


def serve(config: Config, path: str, ready: Callable[[], None]) -> None:
    """Fill a pool, call ``ready``, and give a network to each client, until SIGTERM."""
    asyncio.run(_serve(config, path, ready))


async def _serve(config: Config, path: str, ready: Callable[[], None]) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    networks = Networks(config)
    networks.check()
    await networks.open()
    pool = Pool(
        "network", config.pools.network, lambda: networks.make("outbound"), networks.discard,
        LoadGate(),
    )  # fmt: skip
    takers: set[_Taker] = set()
    try:
        await pool.warm()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(path)
            listener.listen(_BACKLOG)
            listener.setblocking(False)
            asyncio.get_running_loop().add_reader(
                listener, lambda: takers.add(_Taker(listener, pool, networks))
            )
            ready()
            await stopped.wait()
            asyncio.get_running_loop().remove_reader(listener)
    finally:
        for taker in takers:
            taker.leave()
        await pool.close()
        networks.close()


class _Taker:
    """A client. It has its network until it disconnects."""

    def __init__(self, listener: socket.socket, pool: Pool[Network], networks: Networks) -> None:
        self._connection, _ = listener.accept()
        self._networks = networks
        self._network = pool.take_ready()
        message, descriptors = b"the pool is empty", []
        if self._network:
            message, descriptors = b"a network", [self._network.descriptor]
        with suppress(OSError):  # it has already gone, which its end reports
            self._connection.sendmsg([message], rights(descriptors))
        asyncio.get_running_loop().add_reader(self._connection, self.leave)

    def leave(self) -> None:
        """Destroy its network."""
        if self._connection.fileno() < 0:
            return
        asyncio.get_running_loop().remove_reader(self._connection)
        self._connection.close()
        if self._network:
            self._networks.discard(self._network)
