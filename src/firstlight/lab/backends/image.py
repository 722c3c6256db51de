"""A container of an image from a registry: pulled, unpacked and started, or already on the disk.

The registry is Debian's docker-registry on the node's loopback; containerd's data is on a disk, and
its own spans say how long each layer took. Images are made and pushed once per run.
"""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

from firstlight.errors import Failed, Unsupported, longer
from firstlight.host.workspace import DISK, Workspace, make_directory
from firstlight.lab.backends import Execute, Prepared
from firstlight.lab.cluster import image, programs, running
from firstlight.lab.cluster.pod_spans import Book, Clock
from firstlight.model import EndPoint, Telemetry
from firstlight.native import native

From = Literal["registry", "disk", "memory"]
SNAPSHOTTERS = ("overlayfs", "native", "erofs")
_ADDRESS = ("127.0.0.1", 5000)
_NETWORK = "bridge"  # containerd needs one for its CRI, which is not used
_FILE = 1 << 18
_SECONDS = longer(120.0)
_names = count()


@dataclass(frozen=True)
class Image:
    """A container that reads the files of its image before its first instruction.

    The image has ``layers`` of ``mebibytes`` in all, and its program. ``origin`` is where it is
    before the start: in the registry; unpacked, but not in the page cache; or in that, too.
    """

    snapshotter: str
    layers: int
    mebibytes: int
    origin: From
    runtime: str = "runc"
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION

    @property
    def name(self) -> str:
        """The snapshotter's name, and where the image is."""
        return f"{self.snapshotter} from {self.origin}"

    @property
    def note(self) -> str | None:
        """What is special about these figures."""
        return "the registry is on the same machine; containerd traces itself"

    def probe(self) -> None:
        """Needs containerd, a registry, skopeo, and the snapshotter's tools."""
        running.probe(control_plane=False)
        running.handlers((self.runtime,), (_NETWORK,), control_plane=False)
        _registry_program()
        if not shutil.which("skopeo"):
            raise Unsupported("skopeo is not installed", "apt-get install skopeo")
        if self.snapshotter == "erofs":
            _probe_erofs()

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """Put the image where ``origin`` says; on exit only the registry has it."""
        if instances > 1:
            raise Unsupported("images are pulled one at a time", "give --instances 1")
        lab = workspace.once(Image, lambda: _lab(workspace, self.runtime))
        reference = lab.push(self.layers, self.mebibytes)
        lab.forget(reference)
        pull = lab.ctr("images", "pull", "--plain-http", "--snapshotter", self.snapshotter,
                       reference)  # fmt: skip
        run = lab.ctr("run", "--rm", "--fifo-dir", str(lab.fifos), "--snapshotter",
                      self.snapshotter, "--runtime", "io.containerd.runc.v2", "--runc-binary",
                      lab.runtime, reference, f"i{next(_names)}")  # fmt: skip
        if self.origin != "registry":
            _check(pull)
        if self.origin == "disk":
            lab.drop_cache()
        script = f"exec {shlex.join(run)}"
        if self.origin == "registry":
            script = f"{shlex.join(pull)} > /dev/null && {script}"
        clock, since = Clock(), time.time_ns()
        try:
            yield Prepared(
                [Execute(("/bin/sh", "-c", script), workspace.environment, daemons=lab.daemons)],
                telemetry=lambda: lab.telemetry(since, clock),
            )
        finally:
            lab.forget(reference)


def _probe_erofs() -> None:
    """Raise Unsupported if containerd cannot make and mount images of erofs."""
    if not shutil.which("mkfs.erofs"):
        raise Unsupported("mkfs.erofs is not installed", "apt-get install erofs-utils")
    done = _output(("mkfs.erofs", "--help"))
    if "--tar" not in done.stdout + done.stderr:
        raise Unsupported("mkfs.erofs is too old: it has no --tar", "install erofs-utils 1.8")
    if "erofs" not in Path("/proc/filesystems").read_text():
        raise Unsupported("this kernel has no erofs", "modprobe erofs")


def _usable() -> Iterator[str]:
    for snapshotter in SNAPSHOTTERS:
        with suppress(Unsupported):
            if snapshotter == "erofs":
                _probe_erofs()
            yield snapshotter


@dataclass(frozen=True)
class _Lab:
    """A containerd and a registry."""

    node: running.Cluster
    disk: Path
    fifos: Path
    runtime: str
    book: Book
    references: dict[tuple[int, int], str]

    @property
    def daemons(self) -> tuple[int, ...]:
        return (running.component_pids(self.node)["containerd"],)

    def ctr(self, *words: str) -> tuple[str, ...]:
        """A command of containerd's client."""
        return (str(programs.path("ctr")), "--address", str(self.node.settings.socket),
                "--namespace", "images", *words)  # fmt: skip

    def push(self, layers: int, mebibytes: int) -> str:
        """The reference of an image in the registry, made now if it is not there yet."""
        key = layers, mebibytes
        if key not in self.references:
            name = f"{_ADDRESS[0]}:{_ADDRESS[1]}/image:{layers}-{mebibytes}"
            archive = self.disk / "image.tar"
            payload = "/bin/payload"
            image.archive(archive, name, [payload, "read", "/data", payload, "ready"],
                          {payload: native("payload")}, data=_data(layers, mebibytes))  # fmt: skip
            inside = ("nsenter", f"--net={self.node.network}")
            push = ("skopeo", "copy", "--quiet", "--dest-tls-verify=false")
            _check((*inside, *push, f"oci-archive:{archive}", f"docker://{name}"))
            archive.unlink()
            self.references[key] = name
        return self.references[key]

    def forget(self, reference: str) -> None:
        """Remove an image, its content and its snapshots."""
        _check(self.ctr("images", "rm", "--sync", reference))

    def drop_cache(self) -> None:
        """Drop what containerd has on the disk from the page cache."""
        os.sync()
        for path in self.disk.rglob("*"):
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def telemetry(self, since: int, clock: Clock) -> Mapping[int, Telemetry]:
        """containerd's spans of the start."""
        clock.close()
        return {0: self.book.images(since, clock)}


@contextmanager
def _lab(workspace: Workspace, runtime: str) -> Iterator[_Lab]:
    disk = DISK / workspace.run / "containerd"
    fifos = workspace.directory / "image-fifos"
    store = DISK / workspace.run / "registry"
    for directory in (disk, fifos, store):
        make_directory(directory, mode=0o700)
    handlers = running.handlers((runtime,), (_NETWORK,), control_plane=False)
    try:
        with (
            running.cluster(
                workspace, handlers, control_plane=False, disk=disk, snapshotters=tuple(_usable())
            ) as node,
            _registry(node, store, workspace),
        ):
            book = Book(node.settings.spans)
            yield _Lab(node, disk, fifos, handlers[0].runtime, book, {})
    finally:
        for directory in (disk, fifos, store):
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _registry(node: running.Cluster, store: Path, workspace: Workspace) -> Iterator[None]:
    """docker-registry in the node's network namespace, with its data in ``store``."""
    configuration = store / "config.yml"
    configuration.write_text(
        f"version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '{_ADDRESS[0]}:{_ADDRESS[1]}'}}\n"
        f"storage: {{filesystem: {{rootdirectory: {store}}}}}\n"
    )
    with subprocess.Popen(
        ["nsenter", f"--net={node.network}", "setpriv", "--pdeathsig", "KILL",
         _registry_program(), "serve", configuration],
        env=workspace.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            until = time.monotonic() + _SECONDS
            while node.inside(lambda: _refuses(_ADDRESS)):
                if process.poll() is not None or time.monotonic() > until:
                    raise Failed("docker-registry does not answer", "see make setup")
                time.sleep(0.05)
            yield
        finally:
            process.kill()


def _refuses(address: tuple[str, int]) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(address) != 0


def _registry_program() -> str:
    """The path of docker-registry. Raises Unsupported."""
    unpacked = Path(sys.prefix) / "libexec" / "registry" / "usr" / "bin"
    registry = shutil.which("docker-registry") or shutil.which(
        "docker-registry", path=str(unpacked)
    )
    if not registry:
        raise Unsupported("docker-registry is not installed", "make setup")
    return registry


def _data(layers: int, mebibytes: int) -> list[dict[str, bytes]]:
    """Files of half random bytes, which compress as programs do, in this many layers."""
    files = (mebibytes << 20) // _FILE
    parts: list[dict[str, bytes]] = [{} for _ in range(layers)]
    for number in range(files):
        half = _FILE // 2
        parts[number % layers][f"/data/{number}"] = os.urandom(half) + bytes(half)
    return parts


def _output(argv: tuple[str, ...]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"cannot run {argv[0]}: {error}", "firstlight doctor shows more") from error


def _check(argv: tuple[str, ...]) -> None:
    done = _output(argv)
    if done.returncode:
        raise Failed(f"{' '.join(argv[:1] + argv[-3:])} failed: {done.stderr.strip()}")
