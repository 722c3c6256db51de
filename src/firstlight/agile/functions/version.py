"""A version of a registered function."""

from typing import Literal

from msgspec import Struct

from firstlight.agile.function import Reach, Volume

Kind = Literal["command", "bootstrap", "python", "image", "http", "wasm"]


REGION = "us-east-1"
"""The region of all functions' ARNs."""


class FunctionVersion(Struct, frozen=True, kw_only=True):
    """The state of a function that answers a call. Sizes are in bytes, times in seconds.

    ``root`` is a root file system on the host that never changes, or the module of kind ``wasm``.
    ``command`` is executed in it. By ``kind``: ``command`` runs it once for each event, its
    standard input; with ``bootstrap``, ``python`` and ``image`` it fetches events by the Lambda
    Runtime API; with ``http`` it serves them on ``port``. ``handler`` is what a runtime calls,
    ``module.name``; for kind ``wasm``, an export. An idle instance is kept for ``keep_warm``. At
    most ``concurrency`` of the function's requests run at once (None: the node's limit), and
    ``queue`` more wait for their turn. At least ``warm`` instances are kept. With kind ``http``,
    each serves up to ``per_instance`` requests at once. ``revision`` identifies a state of the
    function's code and settings, also of ``$LATEST``. ``volumes`` and ``secrets`` are those of a
    ``Function``; each start gets them. So are ``netlink`` and ``pids``.
    """

    name: str
    kind: Kind
    version: str = "$LATEST"
    revision: int = 0
    digest: str = ""
    root: str = ""
    command: tuple[str, ...] = ()
    handler: str = ""
    environment: dict[str, str] = {}
    directory: str = "/"
    memory: int = 128 << 20
    scratch: int = 64 << 20
    cpus: float = 1.0
    pids: int = 1024
    """Lambda's limit of processes and threads: servers have a thread for each connection."""
    timeout: float = 3.0
    keep_warm: float = 300.0
    concurrency: int | None = None
    queue: int = 0
    warm: int = 0
    per_instance: int = 100
    network: Reach = "outbound"
    netlink: bool = True
    port: int = 8080
    owner: str = ""
    arn: str = ""
    volumes: tuple[Volume, ...] = ()
    secrets: dict[str, str] = {}

    @property
    def label(self) -> str:
        """Its name and version, as a URL has them: without ``$LATEST``."""
        return self.name if self.version == "$LATEST" else f"{self.name}:{self.version}"
