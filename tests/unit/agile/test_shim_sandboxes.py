"""What the process that holds a pod's namespaces says of itself, in whatever order."""

import asyncio
import errno
import os
import struct
from pathlib import Path

import pytest

pytest.importorskip("grpc_tools", reason="needs grpcio-tools")

from firstlight.agile.shim import sandboxes
from firstlight.agile.shim.ttrpc import Refused

FAILURE = struct.pack("=i256s", errno.ENOMEM, b"cannot leave the host's mounts")
PID = struct.pack("=i", os.getpid())


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ((FAILURE, PID), "cannot leave the host's mounts: Cannot allocate memory"),
        ((struct.pack("=i", -errno.EAGAIN),), "Resource temporarily unavailable"),
        ((), "temporarily unavailable"),  # it cannot send; its child holds the socket
        ((b"",), "Connection reset"),
    ],
    ids=["child fails first", "no process", "cannot send", "ended"],
)
def test_holder_that_fails_is_no_pid(
    messages: tuple[bytes, ...], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An errno that was taken for a pid would have that process of the host killed."""
    lines = ["#!/bin/sh", "sleep 9 >/dev/null &" if not messages else ""]
    for number, message in enumerate(messages):
        file = tmp_path / str(number)
        file.write_bytes(message)
        lines.append(f"dd if={file} bs=4096 status=none >&3")
    program = tmp_path / "holder"
    program.write_text("\n".join(lines))
    program.chmod(0o755)
    monkeypatch.setattr(sandboxes, "native", lambda name: program)
    with pytest.raises(Refused, match=f"cannot make namespaces: .*{reason}"):
        asyncio.run(sandboxes.park(["ipc"]))
