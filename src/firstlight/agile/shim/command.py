"""How the shim's server is started; see ``daemon``, which needs more than its caller may have."""

import sys
from pathlib import Path

from firstlight.errors import Failed
from firstlight.native import native

DIRECTORY = Path("/run/firstlight-shim")
EVENTS = "/run/containerd/containerd.sock.ttrpc"
RUNTIME = "runc"
PREPARED = 8


def words(directory: Path, events: str, runtime: Path, prepared: int) -> list[str]:
    """The command that serves: the keeper, which starts this module."""
    return [
        str(native("shim-keeper")),
        str(directory / "socket"),
        sys.executable,
        "-P",
        "-m",
        "firstlight.agile.shim.daemon",
        str(directory),
        events,
        str(runtime),
        str(prepared),
    ]


def make(directory: Path) -> None:
    """The directories, for root alone. Raises Failed."""
    try:
        for name in ("", "sandboxes", "tasks", "oci", "scratch"):
            (directory / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Failed(f"cannot make {error.filename}: {error.strerror}") from error
