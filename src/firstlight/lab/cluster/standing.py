"""The cluster that ``firstlight cluster up`` starts and ``cluster down`` stops.

    python -m firstlight.lab.cluster.standing DESCRIPTOR RUNTIME,… NETWORK,… NODES

keeps it: it writes a line of JSON, an ``Event``, to the descriptor for each component that is up,
at last ``ready`` or ``failed``, and then waits for SIGTERM. ``clean`` knows what it made.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import msgspec

from firstlight.errors import WITH_SUDO, Failed, FirstlightError, Unsupported, longer
from firstlight.files import write_whole
from firstlight.host.ownership import start_time
from firstlight.host.workspace import STATE, sandbox
from firstlight.lab import clean
from firstlight.lab.cluster import programs, running
from firstlight.lab.cluster.files import kubeconfig
from firstlight.lab.cluster.node import Event, ask, is_up
from firstlight.lab.cluster.settings import API_PORT, Settings, components

NAME = "cluster"
_DIRECTORY = STATE / NAME
_RECORD = _DIRECTORY / "cluster.json"
_DOWN_SECONDS = longer(60.0)
_LOAD_SECONDS = longer(300.0)


class Record(msgspec.Struct, frozen=True):
    """The keeper's record for the other verbs."""

    keeper: int
    keeper_started: str
    first: int
    kubeconfig: str
    took: float
    settings: Settings


class Part(msgspec.Struct, frozen=True):
    """A component: its pid on the host, None if it has ended, and whether it reports itself
    healthy.
    """

    name: str
    pid: int | None
    healthy: bool


class Status(msgspec.Struct, frozen=True):
    """``nodes`` says by name whether each is Ready; None if the API does not answer.

    ``memory`` is the resident memory of all nodes' components, in bytes.
    """

    up: bool
    kubeconfig: str = ""
    took: float = 0.0
    runtime_classes: tuple[str, ...] = ()
    components: tuple[Part, ...] = ()
    nodes: dict[str, bool] | None = None
    pods: int | None = None
    memory: int = 0


def up(
    runtimes: tuple[str, ...],
    networks: tuple[str, ...],
    progress: Callable[[str], None],
    nodes: int = 1,
) -> Record:
    """Bring it up; ``progress`` gets the name of each component that is up. Raises FirstlightError.

    An interrupt, or the end of this process, stops a cluster that is not up yet.
    """
    running.probe()
    running.handlers(runtimes, networks)
    if _record():
        raise Failed("a cluster is already running", "stop it with firstlight cluster down")
    if _DIRECTORY.exists():
        raise Failed(
            f"{_DIRECTORY} was left by a killed cluster", "remove it with firstlight clean"
        )
    ours, theirs = os.pipe()
    keeper = subprocess.Popen(
        [sys.executable, "-m", __name__, str(theirs), ",".join(runtimes), ",".join(networks),
         str(nodes)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs],
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        with os.fdopen(ours, "rb") as events:
            for line in events:
                event = msgspec.json.decode(line, type=Event)
                if event.kind == "failed":
                    raise Failed(event.message)
                if event.kind == "ready":
                    keeper.returncode = 0  # it stays
                    record = _record()
                    assert record
                    return record
                progress(event.name)
        raise Failed("the cluster's keeper has exited", "see dmesg if the kernel killed it")
    except BaseException:
        with suppress(ProcessLookupError):
            keeper.terminate()
        keeper.wait()
        raise


def down() -> bool:
    """Stop the cluster; False if none is running. Raises Failed if it does not end."""
    record = _record()
    if record is None:
        return False
    try:
        keeper = os.pidfd_open(record.keeper)
    except ProcessLookupError:
        return False
    try:
        signal.pidfd_send_signal(keeper, signal.SIGTERM)
        if not select.select([keeper], [], [], _DOWN_SECONDS)[0]:
            signal.pidfd_send_signal(keeper, signal.SIGKILL)
            select.select([keeper], [], [], _DOWN_SECONDS)
            clean.clean()
    finally:
        os.close(keeper)
    return True


def load(archive: Path, nodes: Collection[str] = ()) -> None:
    """Import the images of an archive on these nodes, or on every one. Raises Failed."""
    record = _record()
    if record is None:
        raise Failed("no cluster is running", "start one: firstlight cluster up")
    if not archive.is_file():
        raise Failed(f"{archive} is not a file", "make one: podman save --format oci-archive")
    for node in (record.settings, *record.settings.others()):
        if nodes and node.name not in nodes:
            continue
        words = (programs.path("ctr"), "--address", f"/proc/{record.first}/root{node.socket}",
                 "--namespace", "k8s.io", "images", "import", archive)  # fmt: skip
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=_LOAD_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{node.name} has not imported {archive} in {_LOAD_SECONDS:g} s",
                         "firstlight cluster status shows its components") from error  # fmt: skip
        if done.returncode:
            raise Failed(f"{node.name} cannot import {archive}: {done.stderr.strip()}")


def status() -> Status:
    """Its state, as its components report it."""
    record = _record()
    if record is None:
        return Status(up=False)
    settings = record.settings
    seen = running.Cluster(settings, record.first, record.took, ())
    pids = running.component_pids(seen)
    root = f"/proc/{record.first}/root"

    def look() -> tuple[tuple[Part, ...], dict[str, bool] | None, int | None]:
        parts = tuple(
            Part(each.name, pids.get(each.name), is_up(each.health, settings.token, root))
            for each in components(settings)
        )
        with suppress(OSError, KeyError, msgspec.DecodeError):
            return parts, *_node(settings.token)
        return parts, None, None

    parts, nodes, pods = seen.inside(look)
    return Status(
        up=True,
        kubeconfig=record.kubeconfig,
        took=record.took,
        runtime_classes=tuple(handler.name for handler in settings.handlers),
        components=parts,
        nodes=nodes,
        pods=pods,
        memory=sum(map(_resident, running.processes(record.first, settings))),
    )


def _node(token: str) -> tuple[dict[str, bool], int]:
    api = f"https://127.0.0.1:{API_PORT}/api/v1"
    nodes = msgspec.json.decode(ask(f"{api}/nodes", token)[1])
    pods = msgspec.json.decode(ask(f"{api}/pods", token)[1])
    ready = {
        node["metadata"]["name"]: any(
            each["type"] == "Ready" and each["status"] == "True"
            for each in node["status"].get("conditions", ())
        )
        for node in nodes["items"]
    }
    return ready, len(pods["items"])


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 0


def _record() -> Record | None:
    """The record of a cluster whose keeper is alive; None if there is none. Raises Unsupported."""
    if os.geteuid() != 0:
        raise Unsupported("a cluster needs root", WITH_SUDO)
    try:
        record = msgspec.json.decode(_RECORD.read_bytes(), type=Record)
        alive = start_time(record.keeper) == record.keeper_started
    except (FileNotFoundError, ProcessLookupError, msgspec.DecodeError):
        return None
    return record if alive else None


class _Ended(BaseException):
    """SIGTERM came, or the caller no longer waits for the cluster to be up."""


def _keep(report: int, runtimes: tuple[str, ...], networks: tuple[str, ...], nodes: int) -> None:
    def say(kind: str, name: str = "", message: str = "") -> None:
        try:
            os.write(report, msgspec.json.encode(Event(kind, name, message=message)) + b"\n")
        except BrokenPipeError:
            raise _Ended from None

    signal.signal(signal.SIGTERM, _end)
    threading.Thread(target=_end_with_reader, args=(report,), daemon=True).start()
    try:
        outside = socket.create_server(("127.0.0.1", 0))
        with (
            sandbox(NAME) as workspace,
            running.cluster(
                workspace,
                running.handlers(runtimes, networks),
                nodes=nodes,
                forward=outside,
                progress=lambda name: say("up", name),
            ) as cluster,
        ):
            server = f"https://127.0.0.1:{outside.getsockname()[1]}"
            outside.close()
            _leave(cluster, server)
            say("ready")
            os.close(report)
            # Else readers of our caller's output would wait.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            first = os.pidfd_open(cluster.pid)
            select.select([first], [], [])
    except _Ended:
        pass
    except FirstlightError as error:
        with suppress(_Ended):
            say("failed", message=error.message)


def _leave(cluster: running.Cluster, server: str) -> None:
    """Write the record, and a kubeconfig with its certificate beside it, for root alone."""
    settings = cluster.settings
    authority = _DIRECTORY / "ca.crt"
    authority.write_bytes((settings.home / "certs" / "apiserver.crt").read_bytes())
    config = _DIRECTORY / "kubeconfig"
    config.touch(mode=0o600)
    config.write_text(kubeconfig(server, settings.token, str(authority)))
    record = Record(
        os.getpid(), start_time(os.getpid()), cluster.pid, str(config), cluster.took, settings
    )
    write_whole(_RECORD, msgspec.json.encode(record), 0o600)


def _end_with_reader(report: int) -> None:
    """End this process when the caller no longer waits for the cluster to be up."""
    waiting = select.poll()
    waiting.register(report, 0)
    while events := waiting.poll():
        if events[0][1] & select.POLLNVAL:
            return  # it is up, and the descriptor closed
        if not _RECORD.exists():
            os.kill(os.getpid(), signal.SIGTERM)
        return


def _end(number: int, frame: object) -> None:
    """A second signal must not interrupt the removal: a caller that ends sends two."""
    del frame
    signal.signal(number, signal.SIG_IGN)
    raise _Ended


if __name__ == "__main__":
    _keep(int(sys.argv[1]), tuple(sys.argv[2].split(",")), tuple(sys.argv[3].split(",")),
          int(sys.argv[4]))  # fmt: skip
