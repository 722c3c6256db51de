"""Pods' sandboxes: namespaces held by a process (native/shim/sandbox.c), and files.

Such processes are prepared in advance. A pod that uses the node's IPC, PID or network namespace
gets a process of its own.
"""

import asyncio
import errno
import logging
import os
import select
import shutil
import signal
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct

import msgspec

from firstlight.agile.shim import oci
from firstlight.agile.shim.mounts import mount, unmount
from firstlight.agile.shim.ttrpc import Code, Message, Refused, messages, now
from firstlight.errors import Failed, longer
from firstlight.files import unfinished, write_whole
from firstlight.native import native

_ANSWER = Struct("=i256s")
_PID = Struct("=i")
_SECONDS = longer(60.0)
_QUIET_SECONDS = 0.3
_SHM = ("nosuid", "nodev", "noexec", "mode=1777", "size=65536k")
_USUAL = ("ipc", "uts", "pid")
_POD, _NODE = 0, 2
_RECORD = "record.json"
_NULL = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
_SYSCTLS = {
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": "0 2147483647",
}
"""What containerd 2 gives every pod that has a network of its own."""
_log = logging.getLogger(__name__)


class Record(msgspec.Struct):
    """A sandbox's record on disk. Times are ns since 1970; ``started`` is the kernel's."""

    namespace: str
    id: str
    pid: int = 0
    started: str = ""
    created_at: int = 0
    exited_at: int = 0
    exit_status: int = 0
    cgroup: str = ""
    has_shm: bool = False
    network: str = ""
    namespaces: tuple[str, ...] = ()
    """``network`` is the path of its network namespace, the others are its process's."""


@dataclass(frozen=True)
class Parked:
    """A process that waits to become a sandbox."""

    pid: int
    pidfd: int
    control: socket.socket

    def close(self) -> None:
        """Let the process end."""
        os.close(self.pidfd)
        self.control.close()


@dataclass
class Sandbox:
    """A record with its state while the server runs."""

    record: Record
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    pidfd: int = -1
    cgroups: dict[str, str] = field(default_factory=dict)
    """The pod's, by controller, as soon as they were looked for."""

    @property
    def is_running(self) -> bool:
        """Whether the process still holds its namespaces."""
        return bool(self.record.pid) and not self.ended.is_set()


async def park(names: Iterable[str]) -> Parked:
    """A process in new namespaces. Raises Refused."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    try:
        with theirs:
            words = (str(native("shim-sandbox")), *names)
            await oci.run(words, (_NULL, _NULL, _NULL, theirs.fileno()))
        pid = _pid(ours.recv(_ANSWER.size))  # sent before the program's end
        pidfd = os.pidfd_open(pid)
    except (OSError, TimeoutError) as error:
        ours.close()
        raise Refused(Code.INTERNAL, f"cannot make namespaces: {error}") from error
    return Parked(pid, pidfd, ours)


def _pid(message: bytes) -> int:
    """The pid of a process that waits; one that fails may answer before its pid is told. Raises
    OSError.
    """
    if len(message) == _PID.size and (pid := int(_PID.unpack(message)[0])) > 0:
        return pid
    if len(message) == _ANSWER.size:
        error, text = _ANSWER.unpack(message)
        raise OSError(error, f"{_text(text)}: {os.strerror(error)}")
    error = -_PID.unpack(message)[0] if len(message) == _PID.size else errno.ECONNRESET
    raise OSError(error, os.strerror(error))


def _text(padded: bytes) -> str:
    return padded.partition(b"\0")[0].decode(errors="replace")


class Pool:
    """Parked processes. Prepared processes end with the server."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._parked: list[Parked] = []
        self._refill: asyncio.Task[None] | None = None

    async def take(self) -> Parked:
        """Take a sandbox with the usual namespaces. Raises Refused."""
        if self._refill:
            self._refill.cancel()
        self._refill = asyncio.create_task(self.fill(_QUIET_SECONDS))
        while self._parked:
            parked = self._parked.pop()
            poll = select.poll()
            poll.register(parked.pidfd, select.POLLIN)
            if not poll.poll(0):  # still running
                return parked
            parked.close()
        return await park(_USUAL)

    async def fill(self, after: float = 0.0) -> None:
        """Refill, once none has been taken for a while."""
        await asyncio.sleep(after)
        while len(self._parked) < self._size:
            try:
                self._parked.append(await asyncio.shield(park(_USUAL)))
            except Refused as error:
                _log.warning("%s", error)
                return

    def close(self) -> None:
        """End them."""
        if self._refill:
            self._refill.cancel()
        for each in self._parked:
            each.close()
        self._parked.clear()


class Sandboxes:
    """Makes, ends and records sandboxes. ``directory`` has a directory for each."""

    def __init__(self, directory: Path, prepared: int) -> None:
        self._directory = directory
        self.pool = Pool(prepared)
        self.all: dict[tuple[str, str], Sandbox] = {}

    def home(self, record: Record) -> Path:
        """Its files."""
        return self._directory / record.namespace / record.id

    def save(self, record: Record) -> None:
        """Write a record."""
        write_whole(self.home(record) / _RECORD, msgspec.json.encode(record))

    def load(self) -> None:
        """Read all records, and remove what a killed server has made of a sandbox without one."""
        for home in self._directory.glob("*/*"):
            file = home / _RECORD
            if not file.exists():
                unmount(home / "shm")
                shutil.rmtree(home)
                continue
            record = msgspec.json.decode(file.read_bytes(), type=Record)
            sandbox = Sandbox(record)
            self.all[record.namespace, record.id] = sandbox
            if record.exited_at or not record.pid or started(record.pid) != record.started:
                record.exited_at = record.exited_at or now()
                sandbox.ended.set()
            else:
                sandbox.pidfd = os.pidfd_open(record.pid)

    def end_orphans(self) -> None:
        """Kill the processes of an earlier keeper: this one hears nothing of their ends."""
        for sandbox in self.all.values():
            if sandbox.is_running:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(sandbox.pidfd, signal.SIGKILL)
                sandbox.record.exited_at = now()
                sandbox.record.exit_status = 128 + signal.SIGKILL
                sandbox.ended.set()

    def get(self, namespace: str, identity: str) -> Sandbox:
        """The sandbox. Raises Refused."""
        sandbox = self.all.get((namespace, identity))
        if sandbox is None:
            raise Refused(Code.NOT_FOUND, f"sandbox {identity} is not known")
        return sandbox

    async def create(self, namespace: str, request: Message) -> None:
        """Make a sandbox from a CreateSandboxRequest. Raises Refused."""
        key = namespace, request.sandbox_id
        if key in self.all:
            raise Refused(Code.ALREADY_EXISTS, f"sandbox {request.sandbox_id} exists")
        config = messages.PodSandboxConfig.FromString(request.options.value)
        options = config.linux.security_context.namespace_options
        if options.HasField("userns_options") and options.userns_options.mode == _POD:
            why = "pods with user namespaces (hostUsers: false) need the runtime class of runc"
            raise Refused(Code.UNIMPLEMENTED, why)
        record = Record(
            namespace,
            request.sandbox_id,
            cgroup=config.linux.cgroup_parent,
            network=request.netns_path,
        )
        sandbox = self.all[key] = Sandbox(record)
        try:
            self._write_files(record, config, options)
            await self._hold(sandbox, config, options)
            self.save(record)
        except (OSError, Failed, Refused) as error:
            await self.remove(sandbox)
            raise (
                error if isinstance(error, Refused) else Refused(Code.INTERNAL, str(error))
            ) from error

    def _write_files(self, record: Record, config: Message, options: Message) -> None:
        home = self.home(record)
        home.mkdir(parents=True)
        hostname = config.hostname or os.uname().nodename
        (home / "hostname").write_text(f"{hostname}\n")
        (home / "hosts").write_bytes(Path("/etc/hosts").read_bytes())
        (home / "resolv.conf").write_bytes(_resolv_conf(config))
        if options.ipc != _NODE:
            (home / "shm").mkdir()
            mount("tmpfs", "shm", home / "shm", _SHM)
            record.has_shm = True

    async def _hold(self, sandbox: Sandbox, config: Message, options: Message) -> None:
        record = sandbox.record
        names = [name for name, mode in (("ipc", options.ipc), ("uts", options.network),
                                         ("pid", options.pid)) if mode != _NODE]  # fmt: skip
        parked = await (self.pool.take() if tuple(names) == _USUAL else park(names))
        with parked.control:
            sandbox.pidfd = parked.pidfd
            record.pid, record.started = parked.pid, started(parked.pid)
            record.namespaces = tuple(names)
            sysctls = dict(config.linux.sysctls)
            if record.network:
                sysctls = _SYSCTLS | sysctls
            hostname = config.hostname if "uts" in names else ""
            words = [hostname, *(f"{name}={value}" for name, value in sysctls.items())]
            message = b"".join(word.encode() + b"\0" for word in words)
            with _descriptors(record.network) as descriptors:
                socket.send_fds(parked.control, [message], descriptors)
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(_SECONDS):
                data = await loop.sock_recv(parked.control, _ANSWER.size)
        if len(data) != _ANSWER.size:
            raise Refused(Code.INTERNAL, "the sandbox's process has ended")
        error, text = _ANSWER.unpack(data)
        if error:
            raise Refused(Code.INVALID_ARGUMENT, f"{_text(text)}: {os.strerror(error)}")
        record.created_at = now()

    def exited(self, pid: int, status: int, when: int) -> bool:
        """Note a process's exit; returns whether it was a sandbox's."""
        for sandbox in self.all.values():
            record = sandbox.record
            if record.pid == pid and not sandbox.ended.is_set():
                code = os.waitstatus_to_exitcode(status)
                record.exit_status = code if code >= 0 else 128 - code
                record.exited_at = when
                with suppress(OSError):
                    self.save(record)
                sandbox.ended.set()
                return True
        return False

    async def stop(self, sandbox: Sandbox) -> None:
        """End a sandbox's process and unmount its files. Raises Refused, Failed."""
        if sandbox.is_running and sandbox.pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(sandbox.pidfd, signal.SIGKILL)
            try:
                async with asyncio.timeout(_SECONDS):
                    await sandbox.ended.wait()
            except TimeoutError as error:
                raise Refused(Code.INTERNAL, "the sandbox's process does not end") from error
        if sandbox.pidfd >= 0:
            os.close(sandbox.pidfd)
            sandbox.pidfd = -1
        sandbox.ended.set()
        if sandbox.record.has_shm:
            shm = self.home(sandbox.record) / "shm"
            await asyncio.to_thread(unmount, shm)  # waits for the kernel

    async def remove(self, sandbox: Sandbox) -> None:
        """Stop a sandbox and remove its record. Raises Refused, Failed."""
        await self.stop(sandbox)
        record, home = sandbox.record, self.home(sandbox.record)
        for name in (_RECORD, unfinished(Path(_RECORD)), "hostname", "hosts", "resolv.conf"):
            (home / name).unlink(missing_ok=True)
        with suppress(OSError):
            (home / "shm").rmdir()
        with suppress(OSError):
            home.rmdir()
        self.all.pop((record.namespace, record.id), None)


class _descriptors:  # noqa: N801 - a context manager, as open is
    """Open a namespace's path; yields its descriptor in a list, empty without a path."""

    def __init__(self, path: str) -> None:
        self._open = [os.open(path, os.O_RDONLY | os.O_CLOEXEC)] if path else []

    def __enter__(self) -> list[int]:
        return self._open

    def __exit__(self, *_: object) -> None:
        for each in self._open:
            os.close(each)


def _resolv_conf(config: Message) -> bytes:
    if not config.HasField("dns_config"):
        return Path("/etc/resolv.conf").read_bytes() if Path("/etc/resolv.conf").exists() else b""
    dns, lines = config.dns_config, []
    if dns.searches:
        lines.append(f"search {' '.join(dns.searches)}")
    lines += [f"nameserver {server}" for server in dns.servers]
    if dns.options:
        lines.append(f"options {' '.join(dns.options)}")
    return "".join(f"{line}\n" for line in lines).encode()


def started(pid: int) -> str:
    """A process's start time in the kernel's ticks: it tells processes of one pid apart."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
