"""A version of a registered function."""

from typing import Literal

from msgspec import Struct

from firstlight.agile.function import Reach, Volume

Kind = Literal["command", "bootstrap", "python", "image", "http", "wasm"]


class FunctionVersion(Struct, frozen=True, kw_only=True):
    """The state of a function that a call sees. Sizes are in bytes, times in seconds.

    ``root`` is a root file system on the host that never changes, or the module of kind ``wasm``.
    ``command`` is executed in it: of kind ``command`` for each event, which is its standard input;
    of ``bootstrap``, ``python`` and ``image`` it asks the Lambda Runtime API for events; of
    ``http`` it serves them on ``port``. ``handler`` is what a runtime calls, ``module.name``; of
    kind ``wasm`` it is an export. An idle instance is kept for ``keep_warm``; ``concurrency`` of
    the function's may run at once, None for as many as the node has, and ``queue`` more requests
    wait for their turn. At least ``warm`` instances are kept. Of kind
    ``http``, each has up to ``per_instance`` requests at once. ``revision`` tells each state
    of a function's code and settings from any other, those of ``$LATEST`` too. ``volumes`` and
    ``secrets`` are as of a ``Function``; each start has them.
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
    timeout: float = 3.0
    keep_warm: float = 300.0
    concurrency: int | None = None
    queue: int = 0
    warm: int = 0
    per_instance: int = 100
    network: Reach = "outbound"
    port: int = 8080
    owner: str = ""
    arn: str = ""
    volumes: tuple[Volume, ...] = ()
    secrets: dict[str, str] = {}
