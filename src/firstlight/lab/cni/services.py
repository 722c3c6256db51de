"""The daemons of some CNI plugins: started for a batch, inside the run's network.

    python -m firstlight.lab.cni.services NETWORK DIRECTORY

runs that of a network in a cluster, with the files that its plugin reads, and makes the file ``up``
in the directory when it answers. The daemon's data is there too: on a disk, starts wait for it.
"""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from firstlight.agile.config import load
from firstlight.agile.pods import daemon as pods
from firstlight.agile.pods import wire
from firstlight.errors import Failed, Unsupported, longer
from firstlight.host.workspace import make_directory
from firstlight.lab.cni import agent, known, weaver
from firstlight.lab.cni.known import NetworkInfo
from firstlight.native import native

_READY_SECONDS = longer(30.0)
_ETCD = "http://127.0.0.1:2379"
_OURS = (
    sys.executable,
    "-P",
)  # by file, not by module name: this firstlight, wherever it is installed


@dataclass(frozen=True)
class Service:
    """A daemon: its program, the program's package, and how to run it."""

    program: str
    package: str
    run: Callable[[NetworkInfo, Path, Mapping[str, str]], AbstractContextManager[int]]


def probe(name: str) -> None:
    """Raise Unsupported if the daemon is not installed."""
    service = SERVICES[name]
    if not _program(service.program):
        raise Unsupported(
            f"{service.program}, which the plugin needs, is not installed",
            f"apt-get install {service.package}",
        )


def _program(name: str) -> str | None:
    """The path of a daemon's program: the system's, or the one unpacked by ``make setup``."""
    unpacked = Path(sys.prefix) / "libexec" / "etcd" / "usr" / "bin"
    return shutil.which(name) or shutil.which(name, path=str(unpacked))


@contextmanager
def running(
    info: NetworkInfo, disk: Path, environment: Mapping[str, str]
) -> Iterator[tuple[int, ...]]:
    """Run the daemon of a network, if it has one, with its data in the new directory ``disk``.

    Yields the pids to trace with the starts that it serves. Raises Failed.
    """
    if not info.service:
        yield ()
        return
    make_directory(disk, mode=0o700)
    try:
        with SERVICES[info.service].run(info, disk, environment) as pid:
            yield (pid,)
    finally:
        shutil.rmtree(disk)


@contextmanager
def _daemon(
    argv: tuple[str, ...], environment: Mapping[str, str], log: Path, is_ready: Callable[[], bool]
) -> Iterator[int]:
    """Run a process, which dies with this one, until it answers. Raises Failed with its output."""
    with log.open("wb") as output, subprocess.Popen(
        ("setpriv", "--pdeathsig", "KILL", *argv),
        env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
    ) as process:  # fmt: skip
        try:
            deadline = time.monotonic() + _READY_SECONDS
            while not is_ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    words = log.read_text(errors="replace")[-400:].strip()
                    raise Failed(f"{argv[0]} does not answer: {words or 'it printed nothing'}")
                time.sleep(0.01)
            yield process.pid
        finally:
            process.kill()


def _listens(address: tuple[str, int]) -> bool:
    with socket.socket() as probe_socket:
        return probe_socket.connect_ex(address) == 0


@contextmanager
def _etcd(info: NetworkInfo, disk: Path, environment: Mapping[str, str]) -> Iterator[int]:
    """etcd on its usual port, with the keys of the configuration."""
    argv = (
        _program("etcd") or "etcd", "--data-dir", str(disk / "etcd"), "--log-level", "error",
        "--listen-client-urls", _ETCD, "--advertise-client-urls", _ETCD,
        "--listen-peer-urls", "http://127.0.0.1:2380",
        "--initial-advertise-peer-urls", "http://127.0.0.1:2380",
        "--initial-cluster", "default=http://127.0.0.1:2380",
    )  # fmt: skip
    with _daemon(argv, environment, disk / "log", _etcd_is_healthy) as pid:
        _fill(info)
        yield pid


def _fill(info: NetworkInfo) -> None:
    for key, value in info.keys.items():
        _put(key, value)


def _etcd_is_healthy() -> bool:
    try:
        with urllib.request.urlopen(f"{_ETCD}/health", timeout=longer(5)) as answer:  # noqa: S310
            return bool(json.load(answer).get("health") == "true")
    except (OSError, ValueError):
        return False


def _put(key: str, value: Mapping[str, Any]) -> None:
    pair = {"key": key.encode(), "value": json.dumps(value).encode()}
    body = {name: base64.b64encode(part).decode() for name, part in pair.items()}
    request = urllib.request.Request(f"{_ETCD}/v3/kv/put", json.dumps(body).encode())  # noqa: S310
    with urllib.request.urlopen(request, timeout=longer(10)) as answer:  # noqa: S310
        answer.read()


@contextmanager
def _weaver(_: NetworkInfo, disk: Path, environment: Mapping[str, str]) -> Iterator[int]:
    """The bridge ``weave`` with its address, and the server of pod addresses."""
    argv = (*_OURS, weaver.__file__, str(disk / "addresses"))
    with IPRoute() as netlink:
        netlink.link("add", ifname="weave", kind="bridge", mtu=1376)
        [index] = netlink.link_lookup(ifname="weave")
        netlink.addr("add", index=index, address=str(weaver.BRIDGE),
                     prefixlen=weaver.NETWORK.prefixlen)  # fmt: skip
        netlink.link("set", index=index, state="up")
    with _daemon(argv, environment, disk / "log", lambda: _listens(weaver.ADDRESS)) as pid:
        yield pid


@contextmanager
def _cilium(
    _: NetworkInfo, disk: Path, environment: Mapping[str, str], *options: str
) -> Iterator[int]:
    """The profile's agent on Cilium's socket, and the link with the node's address."""
    with IPRoute() as netlink:
        netlink.link("add", ifname="cilium_host", kind="veth", peer="cilium_net")
        for name in ("cilium_host", "cilium_net"):
            netlink.link("set", index=netlink.link_lookup(ifname=name)[0], state="up")
        [index] = netlink.link_lookup(ifname="cilium_host")
        netlink.addr("add", index=index, address=str(agent.GATEWAY), prefixlen=32)
    source = Path(str(files("firstlight"))) / "conf" / "cni" / "cilium" / "endpoint.c"
    argv = (*_OURS, agent.__file__, str(source), str(native("endpointload")),
            str(disk), *options)  # fmt: skip
    with _daemon(argv, environment, disk / "log", _agent_listens) as pid:
        yield pid


def _agent_listens() -> bool:
    with socket.socket(socket.AF_UNIX) as probe_socket:
        return probe_socket.connect_ex(str(agent.SOCKET)) == 0


@contextmanager
def _cilium_template(
    info: NetworkInfo, disk: Path, environment: Mapping[str, str]
) -> Iterator[int]:
    with _cilium(info, disk, environment, "--template") as pid:
        yield pid


@contextmanager
def _pods(_: NetworkInfo, disk: Path, environment: Mapping[str, str]) -> Iterator[int]:
    """The agent of firstlight's own plugin, its pool filled."""
    configuration = known.agent_configuration()
    argv = (*_OURS, pods.__file__, str(configuration))
    with _daemon(argv, environment, disk / "log", load(configuration).socket.is_socket) as pid:
        yield pid


def counts(info: NetworkInfo) -> dict[str, float]:
    """The counts of firstlight's agent: ``made``, ``make_ns`` each, and ``misses``."""
    if info.service != "firstlight-agent":
        return {}
    pool = wire.ask_counts(load(known.agent_configuration()).socket)
    each = pool.make_seconds / pool.made if pool.made else 0.0
    return {"made": pool.made, "make_ns": each * 1e9, "misses": pool.misses}


SERVICES = {
    "cilium-agent": Service("clang", "clang", _cilium),
    "cilium-agent-template": Service("clang", "clang", _cilium_template),
    "firstlight-agent": Service(sys.executable, "python3", _pods),
    "etcd": Service("etcd", "etcd-server", _etcd),
    "weaver": Service(sys.executable, "python3", _weaver),
}
"""The daemons that a configuration can name under ``service``."""


def main(name: str, directory: Path) -> None:
    """Serve a network until this process is killed. The cluster's etcd is also its etcd."""
    _, info = known.find(name)
    for hidden in info.private:
        Path(hidden).mkdir(parents=True, exist_ok=True)
    for path, text in info.files.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    if info.service == "etcd":
        directory.mkdir()
        _fill(info)
        (directory / "up").touch()
        signal.pause()
    with running(info, directory, os.environ):
        (directory / "up").touch()
        signal.pause()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
