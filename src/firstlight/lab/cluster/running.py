"""A cluster from outside its namespaces: starts it, queries it, enters it, stops it."""

import json
import os
import secrets
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from firstlight.agile.shim import command as shim
from firstlight.errors import WITH_SUDO, Failed, Unsupported, longer
from firstlight.host import cgroups
from firstlight.host.commands import run
from firstlight.host.workspace import Workspace
from firstlight.lab.cluster import programs
from firstlight.lab.cluster.node import Event, last_words
from firstlight.lab.cluster.settings import (
    INSTALLED,
    Handler,
    Settings,
    components,
    service_name,
)
from firstlight.lab.cluster.threads import Result, in_network
from firstlight.lab.cni import known, plugin, services
from firstlight.lab.cni.conf import NetworkList
from firstlight.native import native

_UP_SECONDS = longer(300.0)  # in all: each component has a deadline of its own
_DOWN_SECONDS = longer(20.0)
_QUIET_SECONDS = longer(120.0)
_POLL_SECONDS = 0.05
_SHIM = "containerd-shim"  # as the kernel cuts its name
_KEEPER, _SANDBOX = "shim-keeper", "pause"
_NO_USER = "65535"  # sandboxes that hold a pod; others wait for one
SHIM = "firstlight"
"""The runtime whose pods are made from prepared parts, by firstlight's shim."""
NONE = "none"
"""The name of the network that is installed in the cluster, as any other cluster's is."""


@dataclass(frozen=True)
class Cluster:
    """``pid`` is its first process, whose end ends all; ``took`` is the time until it was up, in s.

    ``steps`` are when each component was up, in s after the first process began.
    """

    settings: Settings
    pid: int
    took: float
    steps: tuple[tuple[str, float], ...]

    @property
    def network(self) -> str:
        """The path of its network namespace."""
        return f"/proc/{self.pid}/ns/net"

    def inside(self, action: Callable[[], Result]) -> Result:
        """The result of a function that a thread runs in the cluster's network namespace."""
        return in_network(self.pid, action)


def probe(*, control_plane: bool = True) -> None:
    """Raise Unsupported if a cluster cannot run here."""
    if os.geteuid() != 0:
        raise Unsupported("a cluster needs root", WITH_SUDO)
    programs.probe(programs.CLUSTER if control_plane else programs.NODE)


def handlers(
    runtimes: tuple[str, ...], networks: tuple[str, ...], *, control_plane: bool = True
) -> tuple[Handler, ...]:
    """A runtime class for each runtime with each network: of conf/cni, a path, or ``NONE``.

    A runtime is a program's name or path, or ``SHIM``. Raises Unsupported for what a cluster, or a
    node without ``control_plane``, cannot have.
    """
    made = []
    for runtime in runtimes:
        is_shim = runtime == SHIM
        program = shutil.which("runc" if is_shim else runtime)
        if not program:
            raise Unsupported(f"runtime {runtime!r} is not installed", f"apt-get install {runtime}")
        program = str(native(shim.START)) if is_shim else program
        for name in networks:
            text, info = "", known.NetworkInfo()
            if name != NONE:
                network, info = known.find(name)
                plugin.probe(network, known.path(info))
                _check(name, info, control_plane=control_plane)
                text = _list(network)
            installed = () if text else (INSTALLED[1],)
            directories = (path for path in known.path(info) if path.is_dir())
            plugins = tuple(str(path) for path in (*installed, *directories))
            title = handler_name(runtime, name)
            made.append(
                Handler(
                    title,
                    str(Path(program).absolute()),
                    text,
                    plugins,
                    is_shim,
                    info.daemon,
                    name if _needs_service(info) else "",
                )
            )
    return tuple(made)


def _check(name: str, info: known.NetworkInfo, *, control_plane: bool) -> None:
    """Raise Unsupported if a network needs something that is missing."""
    if info.daemon:
        programs.probe((info.daemon,))
    elif _needs_service(info):
        services.probe(info.service)
    else:
        return
    if not control_plane:
        raise Unsupported(
            f"{name} needs {info.daemon or info.service}, which runs in a cluster",
            f"firstlight run kubernetes-pods --cni {name}",
        )


def _needs_service(info: known.NetworkInfo) -> bool:
    """Whether a cluster runs a service for a network beside its own components."""
    return bool(info.service) and not info.daemon and info.service != known.AGENT_SERVICE


def handler_name(runtime: str, network: str) -> str:
    """The runtime class of a runtime with a network: a DNS label."""
    words = f"{Path(runtime).name}-{known.title(network)}".lower()
    return "".join(each if each.isalnum() else "-" for each in words).strip("-")


@contextmanager
def cluster(
    workspace: Workspace,
    handlers: tuple[Handler, ...],
    *,
    control_plane: bool = True,
    nodes: int = 1,
    disk: Path | None = None,
    snapshotters: tuple[str, ...] = (),
    forward: socket.socket | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Cluster]:
    """Run a cluster in a workspace; afterwards everything is removed.

    containerd's data is in the directory ``disk``, or else in memory. ``forward`` is a listening
    socket whose connections go to the API. Raises Failed with the
    component that did not come up and its last words.
    """
    if nodes > 1 and any(handler.daemon or handler.service for handler in handlers):
        raise Unsupported("networks with daemons of their own need a cluster of one node",
                          "leave out --nodes, or use --cni bridge")  # fmt: skip
    home = workspace.directory / "cluster"
    home.mkdir()
    names: tuple[str, ...] = programs.CLUSTER if control_plane else programs.NODE
    names += tuple(handler.daemon for handler in handlers if handler.daemon)
    data = home / "containerd"
    if disk:
        data.mkdir()
        run("mount", "--bind", str(disk), str(data))
    built = {name: str(programs.path(name)) for name in names}
    path = f"{programs.BUILT}:{workspace.environment.get('PATH', os.defpath)}"
    settings = Settings(
        run=workspace.run,
        directory=str(home),
        programs={**built, "python": sys.executable, "runc": shutil.which("runc") or "runc"},
        payload=str(native("payload")),
        handlers=handlers,
        token=secrets.token_urlsafe(),
        environment={**workspace.environment, "PATH": path, "HOME": str(home)},
        control_plane=control_plane,
        nodes=nodes,
        snapshotters=snapshotters,
        forward=forward.fileno() if forward else -1,
    )
    file = home / "settings.json"
    file.touch(mode=0o600)
    file.write_bytes(msgspec.json.encode(settings))
    ours, theirs = os.pipe()
    begun = time.monotonic()
    passed = [theirs, *([forward.fileno()] if forward else [])]
    process = subprocess.Popen(
        [sys.executable, "-m", "firstlight.lab.cluster.node", str(file), str(theirs)],
        stdin=subprocess.PIPE, stderr=(home / "node.log").open("wb"), pass_fds=passed,
        env=settings.environment, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        pid, steps = _events(ours, home / "node.log", progress)
        yield Cluster(settings, pid, time.monotonic() - begun, tuple(steps))
    finally:
        assert process.stdin
        process.stdin.close()
        try:
            process.wait(_DOWN_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(ours)
        cgroups.remove(settings.cgroup)
        if disk:
            run("umount", "--lazy", str(data))
        shutil.rmtree(home, ignore_errors=True)


def _events(
    pipe: int, log: Path, progress: Callable[[str], None]
) -> tuple[int, list[tuple[str, float]]]:
    """Read events until everything is up: the first pid, and each component's time."""
    pid, waiting = 0, b""
    steps: list[tuple[str, float]] = []
    until = time.monotonic() + _UP_SECONDS
    while True:
        left = until - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            raise Failed(f"the cluster is not ready after {_UP_SECONDS:.0f} s")
        part = os.read(pipe, 65536)
        if not part:
            last = log.read_text(errors="replace").strip().splitlines()
            raise Failed(
                f"the cluster's first process has exited: {last[-1] if last else 'killed'}"
            )
        *lines, waiting = (waiting + part).split(b"\n")
        for event in (msgspec.json.decode(line, type=Event) for line in lines):
            if event.kind == "failed":
                raise Failed(f"the cluster cannot start: {event.message}")
            if event.kind == "ready":
                return pid, steps
            if event.kind == "pid":
                pid = event.pid
            else:
                steps.append((event.name, event.seconds))
                progress(event.name)


def await_quiet(first: int, left: int = 0, check: Callable[[], None] = lambda: None) -> None:
    """Wait until no pod, or so many, are left on the node whose first process that is.

    The API removes a pod that is deleted without grace before the kubelet has ended it. Raises
    Failed after two minutes, and what ``check`` does, which is called meanwhile.
    """
    until = time.monotonic() + _QUIET_SECONDS
    while (more := len(list(_pods(first))) - left) > 0:
        check()
        if time.monotonic() > until:
            raise Failed(f"{more} pods do not end in {_QUIET_SECONDS:.0f} s",
                         "see the kubelet's log in the run's directory")  # fmt: skip
        time.sleep(_POLL_SECONDS)


def _children(pid: int) -> list[int]:
    children: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            children += map(int, thread.read_text().split())
    return children


def _pods(first: int) -> Iterator[int]:
    for pid in _children(first):
        name = _comm(pid)
        if name == _SHIM:
            yield pid
        elif name == _KEEPER:
            yield from (each for each in _children(pid) if _holds_a_pod(each))


def _holds_a_pod(pid: int) -> bool:
    with suppress(OSError):
        return (
            _comm(pid) == _SANDBOX
            and f"\nUid:\t{_NO_USER}\t" in Path(f"/proc/{pid}/status").read_text()
        )
    return False


def _comm(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    return ""


def component_pids(cluster: Cluster) -> dict[str, int]:
    """The pid of each component of the first node, in this process's PID namespace."""
    names = [each.name for each in components(cluster.settings)]
    named = ((_component(pid), pid) for pid in _children(cluster.pid))
    return {name: pid for name, pid in named if name in names}


def ended(cluster: Cluster) -> str:
    """Which component of the first node has ended, with its last words; or ""."""
    pids, settings = component_pids(cluster), cluster.settings
    name = next((each.name for each in components(settings) if each.name not in pids), "")
    return name and f"{name} of the cluster has ended: {last_words(settings.log(name))}"


def _component(pid: int) -> str:
    """A process's component, by name."""
    try:
        words = [
            os.fsdecode(each) for each in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        ]
    except OSError:
        return ""
    program, module = Path(words[0]).name, words[2] if len(words) > 3 else ""
    if module.endswith("pods/daemon.py"):
        return "agent"
    if module.endswith("cluster.telemetry"):
        return "telemetry"
    if module == services.__name__:
        return service_name(words[3])
    return Path(words[3]).parent.name if module.endswith("cluster.node") else program


def processes(first: int, settings: Settings) -> list[int]:
    """The pids of all components of all nodes; ``first`` is the first process of the first."""
    firsts = [first, *joined(first, settings).values()]
    pids = [pid for each in firsts for pid in _children(each)]
    return [pid for pid in pids if _comm(pid) != _SHIM]


def joined(first: int, settings: Settings) -> dict[str, int]:
    """The first processes of the nodes that joined the first, by their names."""
    names = [each.name for each in settings.others()]
    named = ((_component(pid), pid) for pid in _children(first))
    return {name: init for name, pid in named if name in names for init in _children(pid)}


def daemons(cluster: Cluster) -> tuple[int, ...]:
    """The processes that serve a pod's start on the node: containerd, the shim's server, and the
    daemons of the networks with their first children."""
    pids, handlers = component_pids(cluster), cluster.settings.handlers
    keeper = pids.get(_KEEPER)
    names = {each.daemon for each in handlers} | {service_name(each.service) for each in handlers}
    own = [pids[name] for name in sorted(names & pids.keys())]
    own += [child for pid in own for child in _children(pid)]
    return (pids["containerd"], *own, *((keeper, *_servers(keeper)) if keeper else ()))


def _servers(keeper: int) -> Iterator[int]:
    return (pid for pid in _children(keeper) if _comm(pid).startswith("python"))


def _list(network: NetworkList) -> str:
    """A network as a configuration list without what is ours alone."""
    return json.dumps(
        {
            "cniVersion": network.version,
            "name": network.name,
            "plugins": network.plugins,
            "disableCheck": network.disable_check,
        }
    )
