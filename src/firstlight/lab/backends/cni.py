"""A pod's network by CNI plugins, without a container: the pod is a namespace held open.

``native/cni/cnirun.c`` calls the plugins, so there is no Python in the timed path. Plugins see the
run's host: its network namespace, and private copies of the directories in which they keep state.

The end point is the return of the operation. The step ``packet`` is the first packet afterwards, to
the gateway and back; for ADD it can be the end point.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

from pyroute2 import IPRoute, NetlinkError

from firstlight.errors import WITH_SUDO, Failed, UnknownName, Unsupported, longer
from firstlight.host.commands import run
from firstlight.host.mounts import mount_points
from firstlight.host.workspace import DISK, Workspace
from firstlight.lab.backends import Execute, Prepared
from firstlight.lab.backends.network import private_names
from firstlight.lab.cni import known, needs, plugin, services
from firstlight.lab.cni.attachment import Attachment, request
from firstlight.lab.cni.conf import NetworkList
from firstlight.model import EndPoint
from firstlight.native import native

OPERATIONS = ("ADD", "DEL", "ADD beside DEL")
NAMES = Path("/run/netns")
_PRIVATE = ("/var/lib/cni", "/run/cni")
_INTERFACE = "eth0"
_UPLINK = "uplink"
_ADDRESS = "192.0.2.1/24"  # reserved for documentation by RFC 5737: nobody's address
_AT_ONCE = 4  # untimed ADDs and DELs at once: more would only wait for the kernel's locks
_UNTIMED_SECONDS = longer(120.0)  # for all of them together
_CLEARING_SECONDS = longer(15.0)  # a plugin may wait for a dead daemon; what is left is swept away


@dataclass(frozen=True)
class Cni:
    """One attachment per instance. ``conf`` is a name of conf/cni, or a path.

    ``operation`` is one of OPERATIONS; ``background`` pods exist already.
    """

    conf: str
    operation: str = "ADD"
    background: int = 0
    end_point: EndPoint = EndPoint.REQUEST_DONE

    @property
    def name(self) -> str:
        """The network's name in figures."""
        return known.title(self.conf)

    @property
    def note(self) -> str | None:
        """What the figures represent, and what stands in for the product and the links."""
        network, info = known.find(self.conf)
        notes = [f"{self.name}: {info.about}"] if info.about else []
        if info.profile:
            notes = [f"{self.name} is a profile, not {info.profile}: {info.about}"]
        links = sorted(needs.links(network) - {"lo"})
        if links or needs.takes_default_link(network):
            which = ", ".join(links) or "the default route's link"
            notes.append(f"{self.name}: a veth stands in for {which} of the host")
        return "\n".join(notes) or None

    def probe(self) -> None:
        """Needs a valid configuration, its plugins and their daemon."""
        if self.operation not in OPERATIONS:
            raise UnknownName("CNI operation", self.operation, OPERATIONS)
        if os.geteuid() != 0:
            raise Unsupported("setting up networks needs root", WITH_SUDO)
        network, info = known.find(self.conf)
        plugin.probe(network, known.path(info))
        needs.check(network)
        if info.service:
            services.probe(info.service)

    def to_first_packet(self) -> Self:
        """The same, to the gateway's answer to the first packet after ADD."""
        if self.operation == "DEL":
            raise Unsupported("DEL removes the network, so it has no first packet",
                              "leave out --end-point")  # fmt: skip
        return replace(self, end_point=EndPoint.FIRST_PACKET)

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """A host with the background pods; on exit, whatever the plugins made is removed.

        One pod has been attached and detached before, because a node's first pod makes the bridge
        and the tables.
        """
        with hosting(self.conf, self.background, workspace) as pods:
            reaches = self.end_point is EndPoint.FIRST_PACKET
            own = pods.make("fl", instances, *(("until packet",) if reaches else ()))
            old = pods.make("old", instances) if self.operation == "ADD beside DEL" else []
            if self.operation == "DEL":
                _each(own, "up", quietly=True)
            _each(old, "up", quietly=True)
            verb = "del" if self.operation == "DEL" else "add"
            besides: list[tuple[str, ...]] = [(str(file),) for file in old]
            yield Prepared(
                [
                    Execute(
                        (str(native("cnirun")), verb, str(file), *beside),
                        workspace.environment,
                        daemons=pods.daemons,
                    )
                    for file, beside in zip(own, besides or [()] * instances, strict=True)
                ],
                counts=lambda: services.counts(pods.info),
            )


def present(networks: Iterable[str]) -> list[str]:
    """The networks; after each that cannot run here, the profile that stands in for it."""
    available = []
    for network in networks:
        available.append(network)
        try:
            Cni(network).probe()
        except Unsupported:
            instead = known.stand_in(network)
            available += [instead] if instead else []
    return available


@contextmanager
def hosting(conf: str, background: int, workspace: Workspace) -> Iterator["Pods"]:
    """A host for the network's pods; on exit, whatever they made is removed."""
    network, info = known.find(conf)
    base = workspace.directory / "cni"
    with ExitStack() as cleanup:
        base.mkdir()
        cleanup.callback(shutil.rmtree, base)
        cleanup.enter_context(_host(network, info, base))
        disk = DISK / workspace.run / "service"
        daemons = cleanup.enter_context(services.running(info, disk, workspace.environment))
        pods = Pods(network, info, base, workspace, daemons)
        cleanup.callback(pods.clear)
        [warm] = pods.make("warm", 1)
        _each([warm], "up", quietly=True)
        _each([warm], "del", quietly=True)
        _each(pods.make("up", background), "up")
        yield pods


@dataclass(frozen=True)
class Pods:
    """The pods of a batch: each has a named namespace and a request file."""

    network: NetworkList
    info: known.NetworkInfo
    base: Path
    workspace: Workspace
    daemons: tuple[int, ...]
    """The processes that serve the network's plugins."""

    def make(self, name: str, count: int, *more: str) -> list[Path]:
        """Make namespaces, named ``name`` and a number, and their request files."""
        pods = [f"{name}{index}" for index in range(count)]
        lines = "".join(f"netns add {pod}\n" for pod in pods)
        run("ip", "-batch", "-", text=lines)
        return [self.request(pod, *more) for pod in pods]

    def clear(self) -> None:
        """DEL every pod with a kept result: running, failed or killed."""
        kept = sorted(self.base.glob("*.kept"))
        requests = [file.with_suffix(".request") for file in kept]
        _each(requests, "del", quietly=True, seconds=_CLEARING_SECONDS)

    def request(self, pod: str, *more: str) -> Path:
        """The request file of a pod for ``cnirun``; its namespace has the same name.

        ``more`` are additional lines.
        """
        file = self.base / f"{pod}.request"
        kept = file.with_suffix(".kept")
        container = hashlib.sha256(f"{self.workspace.run}-{pod}".encode()).hexdigest()
        attachment = Attachment(
            container, str(NAMES / pod), _INTERFACE, self.info.args.replace("{pod}", pod)
        )
        path, environment = known.path(self.info), self.workspace.environment
        packet = f"packet {self.info.packet}"
        file.write_text(request(self.network, attachment, path, kept, environment, (packet, *more)))
        kept.touch()  # from now on there may be something to DEL
        return file


def _each(
    requests: Iterable[Path],
    verb: str,
    *,
    quietly: bool = False,
    seconds: float = _UNTIMED_SECONDS,
) -> None:
    """Run untimed operations. Raises Failed unless ``quietly``: then the timed ones will fail."""
    until = time.monotonic() + seconds
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for error in pool.map(partial(_operate, verb=verb, until=until), requests):
            if error and not quietly:
                raise Failed(f"cannot prepare the pods: {error}")


def _operate(request: Path, verb: str, until: float) -> str:
    """Why it failed, or "". On timeout its plugins are killed with it."""
    if time.monotonic() > until:
        return f"no time left for {verb} of {request.stem}"
    with subprocess.Popen(
        [native("cnirun"), verb, request], errors="replace", start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            output, errors = process.communicate(timeout=max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return f"{verb} of {request.stem} did not finish in time"
    return (errors or output).strip() if process.returncode else ""


@contextmanager
def _host(network: NetworkList, info: known.NetworkInfo, base: Path) -> Iterator[None]:
    """The host as plugins see it: private state, and the files that they read."""
    with ExitStack() as cleanup:
        cleanup.enter_context(_swept())
        cleanup.enter_context(private_names())
        parents = {str(Path(file).parent) for file in info.files}
        named = {str(directory) for directory in needs.directories(network)}
        hidden = _outermost({*_PRIVATE, *info.private, *parents, *named})
        cleanup.enter_context(mount_points(hidden))
        for number, directory in enumerate(hidden):
            cleanup.enter_context(_private(directory, base / f"private{number}"))
        wants_default = bool(info.address) or needs.takes_default_link(network)
        for number, link in enumerate(sorted(needs.links(network) - {"lo"})):
            address = info.address or _ADDRESS if number == 0 and wants_default else ""
            _make_link(link, f"far{number}", address)
        if wants_default and not needs.links(network):
            _make_link(_UPLINK, "nowhere", info.address or _ADDRESS)
        for file, text in info.files.items():
            Path(file).write_text(text)
        yield


def _outermost(directories: Iterable[str]) -> list[Path]:
    """The directories that are not inside another of them."""
    paths = set(map(Path, directories))
    return sorted(path for path in paths if paths.isdisjoint(path.parents))


def _make_link(name: str, peer: str, address: str) -> None:
    """A link in place of the host's, which leads nowhere; with an address, the default route's."""
    run("ip", "link", "add", name, "type", "veth", "peer", peer)
    lines = f"link set {peer} up\nlink set {name} up\n"
    if address:
        lines += f"address add {address} dev {name}\nroute add default dev {name}\n"
    run("ip", "-batch", "-", text=lines)


@contextmanager
def _private(directory: Path, instead: Path) -> Iterator[None]:
    """Mount an empty directory over it, in this mount namespace."""
    instead.mkdir()
    run("mount", "--bind", str(instead), str(directory))
    try:
        yield
    finally:
        with suppress(Failed):  # another removed the directory, and with it the mount
            run("umount", "--lazy", str(directory))


@contextmanager
def _swept() -> Iterator[None]:
    """On exit, remove links and packet-filter rules that did not exist before."""
    with IPRoute() as netlink:
        before = {link["index"] for link in netlink.get_links()}
        try:
            yield
        finally:
            for link in netlink.get_links():
                if link["index"] not in before:
                    with suppress(NetlinkError):  # removing one end removes its peer
                        netlink.link("del", index=link["index"])
            _forget_rules()


def _forget_rules() -> None:
    if shutil.which("nft"):
        run("nft", "flush", "ruleset")
    for family, program in (("ip", "iptables-legacy"), ("ip6", "ip6tables-legacy")):
        tables = Path(f"/proc/thread-self/net/{family}_tables_names")
        for table in tables.read_text().split() if tables.exists() else ():
            run(program, "--wait", "--table", table, "--flush")
            run(program, "--wait", "--table", table, "--delete-chain")
