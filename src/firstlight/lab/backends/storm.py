"""Starts that meet a storm known from production, and the same without it.

A storm is something that makes starts slow, and slower the more there are: see claims/advice. Those
of a network are tricks of backends.network; these are of processes.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from firstlight.errors import WITH_SUDO, Failed, Unsupported
from firstlight.host import cgroups
from firstlight.host.commands import run
from firstlight.host.workspace import DISK, Workspace, make_directory
from firstlight.lab.backends import Execute, Prepared
from firstlight.lab.backends.oci import Oci
from firstlight.lab.backends.process import FLAGS
from firstlight.model import EndPoint
from firstlight.native import native

_FAT_MEBIBYTES = 768
_DOUBLED = 13
"""How often the mounts are doubled: 8,192 in the end."""
_COLD_BYTES = 32 << 20
_HELD_SECONDS, _CALLS = 0.02, 6
_LAYERS = 64
_PAUSE_MILLISECONDS = 40
_FILES, _FILE_BYTES = 300, 16384
_NUMBERS = (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
            Path("/usr/include/asm-generic/unistd.h"))  # fmt: skip
"""Where Linux' system calls are listed."""


@dataclass(frozen=True)
class Storm:
    """A start that meets the storm of this name, one of STORMS; or, ``mended``, does not."""

    storm: str
    mended: bool = False
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION
    note: str | None = None

    @property
    def name(self) -> str:
        """The storm's name."""
        return self.storm

    def probe(self) -> None:
        """Needs root, and what the storm is made of."""
        if os.geteuid() != 0:
            raise Unsupported("this needs root", WITH_SUDO)
        if self.storm == "cgroup move" and _unified() is None:
            raise Unsupported("no cgroup v2 hierarchy is mounted", "mount -t cgroup2 none DIR")
        if self.storm == "xtables lock" and not shutil.which("iptables-legacy"):
            raise Unsupported("iptables-legacy is not installed", "apt-get install iptables")
        if self.storm == "seccomp compiled anew":
            Oci("runc").probe()
            if not _system_calls():
                raise Unsupported("no list of system calls", "apt-get install linux-libc-dev")

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """The storm's surroundings, and the command of each start."""
        with STORMS[self.storm](workspace, self.mended) as (command, daemons):
            yield Prepared(
                [
                    Execute(
                        command(index) if callable(command) else command,
                        workspace.environment,
                        daemons=daemons,
                    )
                    for index in range(instances)
                ]
            )


Argv = tuple[str, ...]
Made = tuple[Argv | Callable[[int], Argv], tuple[int, ...]]
"""A start's command, or the one of each by its number, and the daemons that serve it."""


def _payload() -> tuple[str, ...]:
    return str(native("payload")), "ready"


def _unified() -> Path | None:
    """The mount point of cgroup v2."""
    lines = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return next((Path(words[1]) for words in lines if words[2] == "cgroup2"), None)


@contextmanager
def _cgroup_move(workspace: Workspace, mended: bool) -> Iterator[Made]:
    hierarchy = _unified()
    assert hierarchy is not None
    top = hierarchy / cgroups.name(workspace.run)
    group = top / "storm"
    group.mkdir(parents=True, exist_ok=True)
    try:
        how = "born" if mended else "moved"
        yield (str(native("storm")), "cgroup", str(group), how, *_payload()), ()
    finally:
        cgroups.remove(top.name)


@contextmanager
def _fat_fork(workspace: Workspace, mended: bool) -> Iterator[Made]:
    with _daemon(workspace, _FAT_MEBIBYTES, 0, "vfork" if mended else "fork") as made:
        yield made


@contextmanager
def _rate_limit(workspace: Workspace, mended: bool) -> Iterator[Made]:
    """A daemon that lets each start wait, as one that is out of tokens does."""
    with _daemon(workspace, 1, 0 if mended else _PAUSE_MILLISECONDS, "vfork") as made:
        yield made


@contextmanager
def _daemon(workspace: Workspace, mebibytes: int, pause: int, how: str) -> Iterator[Made]:
    socket = workspace.directory / "storm.socket"
    with subprocess.Popen(
        [native("storm"), "daemon", socket, str(mebibytes), str(pause), how, *_payload()],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=workspace.environment,
    ) as daemon:  # fmt: skip
        try:
            assert daemon.stdout is not None
            if daemon.stdout.readline() != b"listening\n":
                raise Failed("the daemon of a storm did not start", "free some memory")
            yield (str(native("storm")), "ask", str(socket)), (daemon.pid,)
        finally:
            daemon.kill()
            socket.unlink(missing_ok=True)


@contextmanager
def _many_mounts(workspace: Workspace, mended: bool) -> Iterator[Made]:
    """A mount namespace is copied from one with thousands of mounts, or with the usual few."""
    top = workspace.directory / "mounts"
    top.mkdir()
    if not mended:
        run("mount", "-t", "tmpfs", "firstlight", str(top))
        run("mount", "--make-rprivate", str(top))
        for number in range(_DOUBLED):
            (top / f"{number}").mkdir()
            run("mount", "--rbind", str(top), str(top / f"{number}"))
    try:
        yield (str(native("payload")), "clone", str(FLAGS["mount"]), *_payload()), ()
    finally:
        if not mended:
            run("umount", "--lazy", str(top))
        top.rmdir()


@contextmanager
def _layers(workspace: Workspace, mended: bool) -> Iterator[Made]:
    """The layers of an image are mounted with mapped ids one by one, or all as one."""
    top = workspace.directory / "layers"
    count = 1 if mended else _LAYERS
    for layer in range(count):
        (top / f"{layer}").mkdir(parents=True)
    try:
        yield (str(native("storm")), "layers", str(top), str(count), *_payload()), ()
    finally:
        shutil.rmtree(top)


@contextmanager
def _seccomp(workspace: Workspace, mended: bool) -> Iterator[Made]:
    """A runtime compiles a profile that lists every system call, or has none to compile."""
    with Oci("runc").bundles(workspace) as bundles:

        def command(index: int) -> Argv:
            bundle = bundles.make(index)
            spec = json.loads(bundle.config.read_text())
            spec["linux"]["seccomp"]["defaultAction"] = "SCMP_ACT_ERRNO"
            spec["linux"]["seccomp"]["syscalls"] = [
                {"names": [name], "action": "SCMP_ACT_ALLOW"} for name in _system_calls()
            ]
            if mended:
                del spec["linux"]["seccomp"]
            bundle.config.write_text(json.dumps(spec))
            return bundle.argv

        yield command, ()


def _system_calls() -> list[str]:
    """Their names, as the C library's headers have them."""
    text = next((file.read_text() for file in _NUMBERS if file.exists()), "")
    return re.findall(r"^#define __NR_(\w+)\s+\d+$", text, re.MULTILINE)


@contextmanager
def _unpack(workspace: Workspace, mended: bool) -> Iterator[Made]:
    """A layer of small files is unpacked by the start, or was before."""
    with _on_disk(workspace) as directory:
        source = directory / "source"
        source.mkdir()
        for number in range(_FILES):
            (source / f"{number}").write_bytes(f"{number:032d}".encode() * (_FILE_BYTES // 32))
        layer, root = directory / "layer.tar.gz", directory / "root"
        run("tar", "-czf", str(layer), "-C", str(source), ".")

        def command(index: int) -> Argv:
            own = root / f"{index}"
            own.mkdir(parents=True)
            unpack = "" if mended else f"tar -xzf {layer} -C {own}; "
            return ("/bin/sh", "-c", f"{unpack}exec {' '.join(_payload())}")

        yield command, ()


@contextmanager
def _on_disk(workspace: Workspace) -> Iterator[Path]:
    """A private directory on the machine's disk."""
    directory = DISK / f"{workspace.run}-storm"
    make_directory(directory, mode=0o700)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _cold_cache(workspace: Workspace, mended: bool) -> Iterator[Made]:
    """A start reads 32 MiB of its image, which are in the page cache or not."""
    with _on_disk(workspace) as directory:
        layer = directory / "layer"
        layer.write_bytes(os.urandom(_COLD_BYTES))
        with layer.open("rb") as file:
            os.fsync(file.fileno())
            if not mended:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield ("/bin/sh", "-c", f"cat {layer} > /dev/null; exec {' '.join(_payload())}"), ()


@contextmanager
def _fsync(workspace: Workspace, mended: bool) -> Iterator[Made]:
    """A file of 8 MiB, which reaches the disk before the start goes on."""
    with _on_disk(workspace) as directory:
        flush = "" if mended else " conv=fsync"
        state = f"dd if=/dev/zero of={directory}/state bs=1M count=8 status=none{flush}"
        yield ("/bin/sh", "-c", f"{state}; exec {' '.join(_payload())}"), ()


@contextmanager
def _xtables_lock(workspace: Workspace, mended: bool) -> Iterator[Made]:
    """Somebody else holds the lock of iptables whenever a start wants it, several times."""
    lock = workspace.directory / "xtables.lock"
    lock.touch()
    script = (
        "import fcntl,sys,time\n"
        f"file=open({str(lock)!r})\n"
        f"while True:\n fcntl.flock(file,2)\n print('held', flush=True)\n"
        f" time.sleep({_HELD_SECONDS})\n fcntl.flock(file,8)\n time.sleep(0.0002)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            own = workspace.directory / "other.lock" if mended else lock
            rule = f"XTABLES_LOCKFILE={own} iptables-legacy -w 20 -L -n > /dev/null; "
            yield ("/bin/sh", "-c", f"{rule * _CALLS}exec {' '.join(_payload())}"), ()
        finally:
            holder.kill()


STORMS: dict[str, Callable[[Workspace, bool], AbstractContextManager[Made]]] = {
    "cgroup move": _cgroup_move,
    "many mounts": _many_mounts,
    "id-mapped layers": _layers,
    "seccomp compiled anew": _seccomp,
    "rate limit": _rate_limit,
    "image unpack": _unpack,
    "fork of a fat daemon": _fat_fork,
    "fsync of state": _fsync,
    "xtables lock": _xtables_lock,
    "cold page cache": _cold_cache,
}
