"""Kinds of functions: a handler in a fork of warm Python, in WebAssembly, and in a container.

The end point is the handler's first line. The agile runtime is asked by a message on an open
connection, as in ``agile.py``; a platform without it would start the container.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import msgspec

from firstlight.agile import Config, Function, protocol
from firstlight.agile.client import Client
from firstlight.agile.config import Pools, PoolSize
from firstlight.errors import UnknownName, Unsupported, install_extra
from firstlight.host import cgroups
from firstlight.host.commands import run
from firstlight.host.mounts import unmount_below
from firstlight.host.workspace import Workspace
from firstlight.lab.backends import Ask, Prepared, oci_spec
from firstlight.lab.backends.agile import Agile, daemon, processes
from firstlight.lab.backends.oci import Oci
from firstlight.model import EndPoint

_PYTHON = Path("/usr/bin/python3")
_HANDLER = "import json\n\n\ndef main(event):\n    return event\n"
EVENT = {"n": 1}
_PROGRAM = f"""
import sys, time
from handler import main
began = time.monotonic_ns()
main({EVENT})
print("firstlight ready", began, flush=True)
sys.stdin.read()
"""
_MODULE = bytes.fromhex(
    "0061736d010000000106016001 7f017f030201000708 01046e65787400000a0901070020004101 6a0b"
)  # (module (func (export "next") (param i32) (result i32) local.get 0 i32.const 1 i32.add))
_WARM = 3
_RATE = 1e4  # per second: untimed, so as fast as possible
GREETING = protocol.encode(protocol.List()).decode()


class _Kind(NamedTuple):
    """``all_ahead``: whether a fork waits for each event, not for the first only."""

    isolation: str
    all_ahead: bool = False


_AS_AGILE = (
    "isolated as an agile instance is (namespaces, cgroup, seccomp, no capabilities), "
    "in a user namespace that the forks of one function share, with the memory of its imports"
)
KINDS = {
    "zygote": _Kind(f"a warm interpreter, one fork of which waits ahead; {_AS_AGILE}"),
    "zygote-ready": _Kind(f"a waiting fork of a warm interpreter; {_AS_AGILE}", all_ahead=True),
    "wasm": _Kind(
        "an instance in the worker of its function, isolated from the others by WebAssembly, its "
        "memory and time limited; the worker is isolated as an agile instance is (namespaces, "
        "cgroup, seccomp, no capabilities), without a network"
    ),
}
RUNC = "python3 in runc"


@dataclass(frozen=True)
class Program(Agile):
    """A program, started by the runtime from parts."""

    depth: str = "agile"

    @property
    def note(self) -> str | None:
        """What it is, and its isolation."""
        return (
            f"{self.name}: a program of its own, from pooled parts; isolated by namespaces, a "
            "cgroup, seccomp and a read-only root, without capabilities, as a user of its own"
        )


@dataclass(frozen=True)
class Invoked:
    """A handler in the agile runtime. ``kind`` is one of KINDS."""

    kind: str
    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION

    @property
    def name(self) -> str:
        """The kind."""
        return self.kind

    @property
    def note(self) -> str | None:
        """What it is, and its isolation."""
        return f"{self.kind}: {KINDS[self.kind].isolation}"

    def probe(self) -> None:
        """Has the needs of the runtime and of the language."""
        if self.kind not in KINDS:
            raise UnknownName("kind of function", self.kind, KINDS)
        Agile("agile").probe()
        if self.kind != "wasm":
            probe_python()
        elif not find_spec("wasmtime"):
            raise Unsupported("wasmtime is not installed", install_extra("wasm"))

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """A warmed-up runtime with full pools."""
        full = PoolSize(low=0, high=instances, rate=_RATE)
        forks = full if KINDS[self.kind].all_ahead else PoolSize(low=1, high=1, rate=_RATE)
        with workplace(workspace) as base:
            config = Config(
                name="lab", state=str(base / "state"), instances=10 * instances,
                pools=Pools(window=0, network=full, cgroup=full, fork=forks),
                cgroup=f"{cgroups.name(workspace.run)}/agile",
            )  # fmt: skip
            function, event = _wasm(base) if self.kind == "wasm" else _python(base)
            with daemon(config, workspace) as pid:
                with Client(config.socket) as client:
                    for _ in range(_WARM):
                        client.invoke(function, event)
                    if self.kind != "wasm":
                        client.prepare(function, forks.high)
                raw = msgspec.json.encode(event)
                message = protocol.encode(protocol.Invoke(function, raw)).decode()
                start = Ask(config.socket, GREETING, message, daemons=processes(config, pid))
                yield Prepared([start] * instances)


@dataclass(frozen=True)
class PythonInRunc:
    """The same handler in ``python3``, started in a container."""

    end_point: EndPoint = EndPoint.FIRST_INSTRUCTION

    @property
    def name(self) -> str:
        """The interpreter and the runtime."""
        return RUNC

    @property
    def note(self) -> str | None:
        """Its isolation, and what it does not do."""
        return (
            f"{RUNC}: a container of its own (namespaces, cgroup, seccomp, the usual capabilities) "
            "whose network namespace is empty: it is spared the network"
        )

    def probe(self) -> None:
        """Needs runc and the host's Python."""
        Oci("runc").probe()
        probe_python()

    @contextmanager
    def prepared(self, instances: int, workspace: Workspace) -> Iterator[Prepared]:
        """A bundle for each instance."""
        argv = (str(_PYTHON), "-c", _PROGRAM)
        with workplace(workspace) as base, Oci("runc").bundles(workspace) as bundles:
            process = oci_spec.Process(argv, "/srv")
            root = tree_with_python(base)
            yield Prepared(
                [
                    bundles.make(index, process, root=root).execute(workspace.environment)
                    for index in range(instances)
                ]
            )


def probe_python() -> None:
    """Raise Unsupported if the host has no Python."""
    if not _PYTHON.exists():
        raise Unsupported(f"{_PYTHON} is missing", "apt-get install python3-minimal")


@contextmanager
def workplace(workspace: Workspace) -> Iterator[Path]:
    """A directory for root file systems, which are unmounted and removed."""
    base = workspace.directory / "functions"
    base.mkdir()
    try:
        yield base
    finally:
        unmount_below(base)
        shutil.rmtree(base)


def tree_with_python(base: Path) -> Path:
    """A root file system with the host's /usr and the handler."""
    root = base / "root"
    for name in ("usr", "srv", "proc", "dev", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        if (host := Path("/") / name).is_symlink():
            (root / name).symlink_to(host.readlink())
    (root / "srv/handler.py").write_text(_HANDLER)
    run("mount", "--bind", "/usr", str(root / "usr"))
    return root


def _python(base: Path) -> tuple[Function, object]:
    root = tree_with_python(base)
    function = Function(
        rootfs=str(root), kind="python", handler="handler:main", directory="/srv"
    )  # fmt: skip
    return function, EVENT


def _wasm(base: Path) -> tuple[Function, object]:
    (base / "next.wasm").write_bytes(_MODULE)
    return Function(rootfs=str(base / "next.wasm"), kind="wasm", handler="next"), [41]
