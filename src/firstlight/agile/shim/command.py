"""Starts the shim's server. ``daemon`` is the server itself, with dependencies that the caller may
lack.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

from firstlight.errors import WITH_SUDO, Failed, Unsupported, install_extra
from firstlight.files import write_whole
from firstlight.native import native

PREPARED = 8
START = "containerd-shim-firstlight-v1"


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


def install(binaries: Path) -> Path:
    """Install the program that containerd executes into a directory of its PATH. Raises Failed."""
    target = binaries / START
    try:
        write_whole(target, native(START).read_bytes(), 0o755)
    except OSError as error:
        raise Failed(f"cannot install {error.filename}: {error.strerror}") from error
    return target


def serve(directory: Path, events: str, runtime: str, prepared: int) -> NoReturn:
    """Execute the keeper, which starts the server. Raises Unsupported, Failed."""
    if os.geteuid() != 0:
        raise Unsupported("the shim's server needs root", WITH_SUDO)
    program = shutil.which(runtime)
    if not program:
        raise Unsupported(f"the OCI runtime {runtime} is not installed",
                          "install runc, or name another with --runtime")  # fmt: skip
    if importlib.util.find_spec("grpc_tools") is None:
        raise Unsupported("grpcio-tools is not installed", install_extra("kubernetes"))
    make(directory)
    command = words(directory, events, Path(program).absolute(), prepared)
    os.execv(command[0], command)  # noqa: S606 - it becomes the keeper


def make(directory: Path) -> None:
    """Make the directories, accessible to root alone. Raises Failed."""
    try:
        for name in ("", "sandboxes", "tasks", "oci", "scratch"):
            (directory / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Failed(f"cannot make {error.filename}: {error.strerror}") from error
