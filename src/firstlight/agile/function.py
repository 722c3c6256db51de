"""Functions: what to start, with which limits, and what instances may reach."""

from typing import Literal

from msgspec import Raw, Struct

from firstlight.errors import Failed, UnknownName

Reach = Literal["outbound", "internal", "none"]
Kind = Literal["command", "python", "wasm"]

_MEMORY_LEAST = 2 << 20
_PIDS_MOST = 1 << 22


class Function(Struct, frozen=True, kw_only=True):
    """A function. Its instances share its parts with no other function.

    ``rootfs`` is a directory on the host, mounted read-only. ``command`` is executed in it; its
    first word is an absolute path. ``memory`` and ``scratch`` (the size of /tmp) are in bytes,
    ``cpus`` in CPUs. ``network`` is ``outbound`` (the world, but neither the host nor other
    instances), ``internal`` (only connections through ``ports``, and the gateway's echo) or
    ``none``. ``ports`` publishes TCP ports: host port to instance port. ``ready`` is the beginning
    of the line of standard output that announces readiness; without it an instance is ready when
    its command is executed.

    Of kind ``python``, ``handler`` is ``module:name``, imported from ``rootfs`` by a warm
    interpreter; of kind ``wasm``, ``rootfs`` is a module's file, ``handler`` an export and
    ``command`` what it finds as its arguments. Its instances share ``cpus`` and ``scratch``, and
    each has ``memory``; they have no network.
    """

    rootfs: str
    command: tuple[str, ...] = ()
    kind: Kind = "command"
    handler: str = ""
    env: dict[str, str] = {}
    directory: str = "/"
    memory: int = 128 << 20
    cpus: float = 1.0
    pids: int = 64
    files: int = 1024
    scratch: int = 16 << 20
    network: Reach = "outbound"
    ports: dict[int, int] = {}
    ready: str | None = None
    uid: int = 65534
    gid: int = 65534
    user_namespace: bool = False
    timeout: float = 60.0
    """Deadline in seconds for readiness and for a handler's answer."""

    def check(self) -> None:
        """Raise Failed or UnknownName if a field is invalid."""
        if self.kind == "command" and (not self.command or not self.command[0].startswith("/")):
            raise Failed(
                f"the function's command is {' '.join(self.command)!r}",
                "it must start with an absolute path in the root file system",
            )
        if self.kind == "python" and self.handler.count(":") != 1:
            raise Failed(f"the function's handler is {self.handler!r}", "write it as module:name")
        if self.network not in ("outbound", "internal", "none"):
            raise UnknownName("network", self.network, ("outbound", "internal", "none"))
        self._check_limits()
        if self.ports and self.network == "none":
            raise Failed(
                "a function without a network cannot publish ports", "use network internal"
            )
        for port in (*self.ports, *self.ports.values()):
            if not 1 <= port <= 65535:
                raise Failed(f"{port} is not a valid port", "from 1 to 65535")

    def _check_limits(self) -> None:
        if self.memory < _MEMORY_LEAST:
            raise Failed(
                f"the memory limit is too small: {self.memory} bytes", "give at least 2 MiB"
            )
        if not 0.01 <= self.cpus <= 1024:
            raise Failed(f"the CPU limit {self.cpus} is out of range", "give 0.01 to 1024 CPUs")
        if not 1 <= self.pids <= _PIDS_MOST or self.files < 8:
            raise Failed(f"the limits pids={self.pids}, files={self.files} are out of range",
                         f"give pids from 1 to {_PIDS_MOST}, files from 8")  # fmt: skip
        if self.uid == 0 or self.gid == 0:
            raise Failed("a function cannot run as root", "give a uid and gid above 0")


class Ended(Struct, frozen=True, kw_only=True):
    """How an instance ended: its exit status, or the signal that killed it. CPU times in ns."""

    status: int | None = None
    signal: int | None = None
    out_of_memory: bool = False
    user_ns: int = 0
    system_ns: int = 0


class Listed(Struct, frozen=True, kw_only=True):
    """A running instance, as ``ps`` shows it. ``started`` is ns of CLOCK_MONOTONIC."""

    id: str
    pid: int
    address: str | None
    function: Function
    started: int


class Result(Struct, frozen=True, kw_only=True):
    """What a handler returned, as JSON, and what it wrote. ``began`` is its first line, in ns."""

    value: Raw
    requested: int
    began: int
    finished: int
    warm: bool
    stdout: str = ""
    stderr: str = ""


class Counts(Struct, frozen=True, kw_only=True):
    """A pool as ``firstlight agile pools`` shows it.

    ``fill_rate`` is in parts a second, over the ``fill_seconds`` that were spent filling.
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
