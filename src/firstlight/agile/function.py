"""Functions: what to start, with which limits, and what instances may reach."""

import os
import re
import signal
from typing import Literal, get_args

from msgspec import Raw, Struct

from firstlight.errors import Failed, UnknownName

Reach = Literal["outbound", "internal", "none"]
Kind = Literal["command", "python", "wasm"]
Reuse = Literal["none", "network", "sandbox"]
Serves = Literal["nothing", "events", "http"]

EVENTS_PORT = 9001
"""Where an instance finds the Lambda Runtime API, on its own loopback."""

_MEMORY_LEAST = 2 << 20
_SCRATCH_LEAST, _BYTES_MOST = 4096, 1 << 62
_PIDS_MOST = 1 << 22
FILES, FILES_MOST = 1024, 1 << 20
"""The open files of an instance: by default, and at most."""
_SECONDS_MOST, _LIFETIME_MOST = 86400.0, 366 * 86400.0
_IDENTITY_MOST = (1 << 31) - 2  # larger ones mean "unchanged"


SECRETS = "/run/secrets"
"""Where an instance finds its secrets: a file for each, which only its user can read."""
_SECRET = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}")
_TAKEN = ("/proc", "/dev", "/tmp", "/sys",  # noqa: S108 - a mount point, not the host's
          "/etc/hosts", "/etc/hostname", "/etc/resolv.conf")  # fmt: skip
"""Where the node mounts, or what it mounts over."""


class Volume(Struct, frozen=True):
    """A file or directory of the host, ``source``, that instances see at ``target``."""

    source: str
    target: str
    read_only: bool = False


class Function(Struct, frozen=True, kw_only=True):
    """A function. Its instances share its parts with no other function.

    ``rootfs`` is a directory on the host, shown read-only. ``command`` is executed in it, in
    ``directory``; its first word is looked up in PATH if it has no slash. ``memory`` and
    ``scratch`` (the size of /tmp) are in bytes, ``cpus`` in CPUs. ``network`` is ``outbound`` (the
    world, not the host nor neighbours), ``internal`` (only what reaches it by ``ports``, and the
    gateway's echo) or ``none``. ``ports`` publishes ports of the instance: host port to instance
    port, both TCP. ``ready`` is the beginning of the line on standard output that reports the
    instance ready; without it, an instance is ready when its command is executed. Without ``uid``
    and ``gid`` the function gets its own user and group. ``reuse`` is the part of an instance that
    serves the function's next one, after it is verified to be as new: ``none``, ``network``, or the
    whole ``sandbox``, without processes and with an empty /tmp. With ``share_counters``, a network
    that had traffic is reused too; the next instance can read how many packets, bytes, connections
    and errors of each kind there were before. Without ``netlink``, its programs can open no netlink
    sockets, whose memory no limit counts; they then cannot list network interfaces.

    An instance that ``serves`` is kept for the next request, and ends with its manager. It serves
    ``http``, or ``events`` fetched by the Lambda Runtime API; for a Python handler,
    ``module.name``, by ``awslambdaric`` in ``rootfs``.

    With kind ``python``, ``handler`` is ``module:name``, imported from ``rootfs`` by a warm
    interpreter. With kind ``wasm``, ``rootfs`` is a module's file, ``handler`` an export and
    ``command`` its argument vector. Its instances share ``cpus`` and ``scratch``, and each has
    ``memory``; they have no network.

    ``name`` and ``owner`` are those of a registered function.
    """

    rootfs: str
    name: str = ""
    owner: str = ""
    command: tuple[str, ...] = ()
    kind: Kind = "command"
    handler: str = ""
    env: dict[str, str] = {}
    directory: str = "/"
    memory: int = 128 << 20
    cpus: float = 1.0
    pids: int = 64
    files: int = FILES
    scratch: int = 16 << 20
    network: Reach = "outbound"
    ports: dict[int, int] = {}
    ready: str | None = None
    uid: int | None = None
    gid: int | None = None
    user_namespace: bool = False
    reuse: Reuse = "network"
    share_counters: bool = False
    netlink: bool = True
    serves: Serves = "nothing"
    timeout: float = 60.0
    """Deadline in seconds for readiness and for a handler's answer; an import has at least 10."""
    terminals: bool = False
    """Whether instances can open terminals of their own: ``/dev/ptmx``."""
    volumes: tuple[Volume, ...] = ()
    """Of kind ``command``: see volumes.py."""
    secrets: dict[str, str] = {}
    """By name, files of the host: their content is at ``SECRETS``, and nowhere else."""
    lifetime: float | None = None
    """Seconds after which an instance is killed."""

    def check(self) -> None:
        """Raise Failed or UnknownName if a field is invalid."""
        if self.kind == "command" and (not self.command or not self.command[0]):
            raise Failed("the function has no command", "give a program of its root file system")
        if not self.directory.startswith("/"):
            raise Failed(f"the working directory {self.directory!r} is not an absolute path",
                         "begin it with /")  # fmt: skip
        self._check_handler()
        if self.network not in get_args(Reach):
            raise UnknownName("network", self.network, get_args(Reach))
        self._check_words()
        self._check_limits()
        self._check_ports()
        self._check_volumes()

    def _check_volumes(self) -> None:
        if not self.volumes and not self.secrets:
            return
        if self.kind != "command":
            raise Failed(f"a function of kind {self.kind} has no volumes and no secrets",
                         "start a command")  # fmt: skip
        if self.reuse == "sandbox":
            raise Failed("the sandbox of a function that has volumes or secrets is not reused",
                         "use reuse network")  # fmt: skip
        for volume in self.volumes:
            target = volume.target
            absolute = volume.source.startswith("/") and target.startswith("/")
            plain = not target.startswith("//") and os.path.normpath(target) == target
            if not absolute or not plain:
                raise Failed(f"{volume.source}:{target} does not name a volume by two plain paths",
                             "give absolute paths without . and ..")  # fmt: skip
            if target == "/" or any(f"{target}/".startswith(f"{taken}/") for taken in _TAKEN):
                raise Failed(f"no volume can be mounted at {target}",
                             f"not at /, nor at or below {', '.join(_TAKEN)}")  # fmt: skip
        self._check_targets()
        for name in self.secrets:
            if not _SECRET.fullmatch(name):
                raise Failed(f"{name[:80]!r} cannot be a secret's name",
                             "1 to 64 letters, digits, -, _ and .")  # fmt: skip

    def _check_targets(self) -> None:
        targets = [*(each.target for each in self.volumes), *([SECRETS] if self.secrets else ())]
        for target in targets:
            if targets.count(target) > 1:
                raise Failed(f"two things are to be mounted at {target}", "give each its own path")

    def _check_ports(self) -> None:
        if self.ports and self.network == "none":
            raise Failed(
                "a function without a network cannot publish ports", "use network internal"
            )
        if self.reuse == "sandbox" and (self.ports or self.user_namespace):
            what = "publishes ports" if self.ports else "has a user namespace"
            raise Failed(f"the sandbox of a function that {what} is not reused",
                         "use reuse network")  # fmt: skip
        for port in (*self.ports, *self.ports.values()):
            if not 1 <= port <= 65535:
                raise Failed(f"{port} is not a valid port", "from 1 to 65535")

    def _check_handler(self) -> None:
        if self.kind != "python":
            return
        if self.serves == "events":
            right, shape = "." in self.handler, "module.name"
        else:
            right, shape = self.handler.count(":") == 1, "module:name"
        if not right:
            raise Failed(f"the function's handler is {self.handler!r}", f"write it as {shape}")

    def _check_words(self) -> None:
        if not self.rootfs.startswith("/"):
            raise Failed(f"the root file system {self.rootfs!r} is not an absolute path",
                         "give its path from /")  # fmt: skip
        for name in self.env:
            if not name or "=" in name:
                raise Failed(f"{name!r} cannot name a variable", "without =, and not empty")
        paths = (path for volume in self.volumes for path in (volume.source, volume.target))
        words = (self.rootfs, *self.command, self.handler, self.directory, self.ready or "",
                 *self.env, *self.env.values(), *self.secrets.values(), *paths)  # fmt: skip
        for word in words:
            try:
                os.fsencode(word)
            except UnicodeEncodeError:
                raise Failed(f"the function has {word!r}, which cannot be encoded",
                             "surrogates stand for bytes that are not UTF-8") from None  # fmt: skip
            if "\0" in word:
                raise Failed(f"the function has {word!r}, with a NUL", "leave the NUL out")

    def _check_limits(self) -> None:
        if not _MEMORY_LEAST <= self.memory <= _BYTES_MOST:
            what = "small" if self.memory < _MEMORY_LEAST else "large"
            raise Failed(f"the memory limit is too {what}: {self.memory} bytes",
                         "give from 2 MiB to 4 EiB")  # fmt: skip
        if not _SCRATCH_LEAST <= self.scratch <= _BYTES_MOST:
            raise Failed(f"the size of /tmp is out of range: {self.scratch} bytes",
                         "give from 4 KiB to 4 EiB")  # fmt: skip
        if not 0.01 <= self.cpus <= 1024:
            raise Failed(f"the CPU limit {self.cpus} is out of range", "give 0.01 to 1024 CPUs")
        if not 1 <= self.pids <= _PIDS_MOST or not 8 <= self.files <= FILES_MOST:
            raise Failed(f"pids={self.pids}, files={self.files} are out of range",
                         f"pids: 1 to {_PIDS_MOST}, files: 8 to {FILES_MOST}")  # fmt: skip
        if not 0 < self.timeout <= _SECONDS_MOST:  # nor is it NaN
            raise Failed(
                f"a timeout of {self.timeout} s is out of range", "give more than 0 s, up to a day"
            )
        if self.lifetime is not None and not 0 < self.lifetime <= _LIFETIME_MOST:
            raise Failed(
                f"a timeout of {self.lifetime} s is out of range",
                "give more than 0 s, up to a year",
            )
        if self.uid == 0 or self.gid == 0:
            raise Failed("a function cannot run as root", "give a uid and gid above 0")
        for what, value in (("uid", self.uid), ("gid", self.gid)):
            if value is not None and not 0 < value <= _IDENTITY_MOST:
                raise Failed(f"{value} cannot be a {what}", f"from 1 to {_IDENTITY_MOST}")


class Ended(Struct, frozen=True, kw_only=True):
    """How an instance ended: its exit status, or the signal that killed it. CPU times in ns.

    ``lost``: it was killed from outside, with its node or alone, and its function is not at fault.
    """

    status: int | None = None
    signal: int | None = None
    lost: bool = False
    out_of_memory: bool = False
    timed_out: bool = False
    user_ns: int = 0
    system_ns: int = 0

    @staticmethod
    def of(
        status: int, out_of_memory: bool = False, user_ns: int = 0, system_ns: int = 0,
        timed_out: bool = False,
    ) -> "Ended":  # fmt: skip
        """Read a wait status."""
        killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        return Ended(
            status=None if killed else os.WEXITSTATUS(status), signal=killed,
            out_of_memory=out_of_memory, timed_out=timed_out, user_ns=user_ns,
            system_ns=system_ns,
        )  # fmt: skip

    def __str__(self) -> str:
        """In words."""
        return self.words()

    def words(self, memory: int = 0, lifetime: float | None = None) -> str:
        """Describe it; with its function's limits, if they are known."""
        if self.timed_out:
            return "timed out" + (f" after {lifetime:g} s" if lifetime else "")
        if self.out_of_memory:
            limit = f": the limit is {memory / (1 << 20):.4g} MiB" if memory else ""
            return f"out of memory{limit}"
        if self.signal is None:
            return f"exit status {self.status}"
        names = {number.value: number.name for number in signal.Signals}
        return f"killed by {names.get(self.signal, f'signal {self.signal}')}"


LOST = Ended(signal=signal.SIGKILL, lost=True)
"""How instances end with their node."""


class Listed(Struct, frozen=True, kw_only=True):
    """An instance, as ``ps`` shows it. ``started`` is ns of CLOCK_MONOTONIC, ``age`` in seconds.

    ``state`` is "running", "stopping" or how it ended.
    """

    id: str
    pid: int
    address: str | None
    function: Function
    started: int
    state: str = "running"
    age: float = 0.0
    ended: Ended | None = None


class Happened(Struct, frozen=True, kw_only=True):
    """One event of an instance's life. ``time`` is ns since 1970.

    ``kind`` is "started", "ended", "out of memory" or "timed out"; ``words`` say how it ended.
    """

    serial: int
    time: int
    kind: str
    id: str
    pid: int
    rootfs: str
    command: tuple[str, ...]
    handler: str = ""
    name: str = ""
    ended: Ended | None = None
    words: str = ""


class Result(Struct, frozen=True, kw_only=True):
    """A handler's return value, as JSON, and its output. ``began`` is when it began, in ns."""

    value: Raw
    requested: int
    began: int
    finished: int
    warm: bool
    stdout: str = ""
    stderr: str = ""


HANDLER_ERROR = "Runtime.HandlerError"


class HandlerFailed(Failed):
    """A handler that failed to answer its event.

    ``kind`` is the type of the error, as Lambda names it or of the exception that was raised.
    ``text`` is what the error itself says, and ``trace`` the lines of its traceback. ``output`` is
    what the handler wrote.
    """

    def __init__(
        self, kind: str, message: str, hint: str | None = None, *,
        text: str | None = None, trace: tuple[str, ...] = (), output: str = "",
    ) -> None:  # fmt: skip
        super().__init__(message, hint)
        self.kind, self.text = kind, message if text is None else text
        self.trace, self.output = trace, output


class NodeFailed(Failed):
    """The node or an instance was ended while a function was called, which is not at fault."""


class Counts(Struct, frozen=True, kw_only=True):
    """A pool as ``firstlight agile pools`` shows it.

    ``fill_rate`` is in parts per second, over the ``fill_seconds`` spent filling.
    """

    name: str
    ready: int
    low: int
    high: int
    hits: int
    misses: int
    made: int
    returned: int
    failed: int
    fill_rate: float
    fill_seconds: float
