"""Checks at intervals whether the node and its manager answer."""

import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from firstlight.agile import protocol
from firstlight.agile.node import wire
from firstlight.agile.sockets import is_readable
from firstlight.errors import Failed, longer

LOOK_SECONDS = 10.0
"""Who waits looks after this time, and again."""
HANG_SECONDS = longer(30.0)
"""Who does not answer a look in this time hangs."""
END_SECONDS = longer(10.0)
"""Who is killed ends in this time."""


def connect(path: Path) -> socket.socket:
    """Connect to the node that listens there, with a deadline for sends. Raises Failed."""
    opened = patient()
    try:
        opened.connect(str(path))
    except BlockingIOError:
        opened.close()
        raise Failed(f"the node at {path} accepts no connection in {HANG_SECONDS:g} s",
                     "is it stopped? end it: firstlight agile down") from None  # fmt: skip
    except OSError as error:
        opened.close()
        raise Failed(f"no runtime answers at {path}: {error.strerror}",
                     "start one: firstlight agile up") from error  # fmt: skip
    return opened


def patient() -> socket.socket:
    """A blocking socket that waits no longer than that for each call."""
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    whole, part = divmod(HANG_SECONDS, 1.0)
    deadline = struct.pack("ll", int(whole), int(part * 1e6))
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, deadline)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, deadline)
    return opened


def peer(connection: socket.socket) -> int:
    """The pid of the node at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[:4], "little")


def is_gone(pid: int) -> bool:
    """Wait for the end of a process that is ending; pid 0 is none."""
    try:
        pidfd = os.pidfd_open(pid) if pid else -1
    except ProcessLookupError:
        return True
    if pidfd < 0:
        return True
    try:
        return is_readable(pidfd, END_SECONDS)
    finally:
        os.close(pidfd)


def hangs(pid: int) -> Failed:
    """The error of a node that does not answer."""
    return Failed(f"the node, pid {pid}, does not answer in {HANG_SECONDS:g} s",
                  f"is it stopped? kill -CONT {pid}, or end it: firstlight agile down")  # fmt: skip


def wait_readable(connection: socket.socket, check: Callable[[], None]) -> None:
    """Return when the socket is readable. ``check`` raises Failed if the sender hangs."""
    while not is_readable(connection.fileno(), LOOK_SECONDS):
        check()


def check_node(path: Path) -> None:
    """Raise Failed if the node that listens there does not answer."""
    with connect(path) as probe:
        try:
            probe.send(wire.request(wire.RequestVerb.PING))
            probe.recv(4096)
        except BlockingIOError:
            raise hangs(peer(probe)) from None
        except OSError:
            pass  # it has just ended, which its waiter sees


def check_manager(path: Path) -> None:
    """Raise Failed if the node does not answer, or its manager."""
    check_node(path)
    with connect(path) as probe:
        try:
            probe.send(protocol.encode(protocol.Ping()))
            probe.recv(protocol.MESSAGE_MAX)
        except BlockingIOError:
            raise _no_manager(path.parent) from None
        except OSError:
            pass


def _no_manager(directory: Path) -> Failed:
    pid = owner(directory)
    if pid < 0:
        return Failed(f"the node has no manager to answer at {directory}",
                      "start it: firstlight agile up")  # fmt: skip
    return Failed(f"the manager, pid {pid}, does not answer in {HANG_SECONDS:g} s",
                  f"is it stopped? kill -CONT {pid}, or kill -9 {pid} and start it again: the "
                  "instances go on")  # fmt: skip


def owner(directory: Path) -> int:
    """The process that has the journal there locked, or -1. Format: proc_locks(5)."""
    try:
        status = (directory / "journal").stat()
    except OSError:
        return -1
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        known = words[1] == "FLOCK" and words[5].endswith(f":{status.st_ino}")
        if known and _has_open(int(words[4]), status):
            return int(words[4])
    return -1


def _has_open(pid: int, status: os.stat_result) -> bool:
    """Whether a process has this file open: other file systems have files of the same number."""
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # it was closed
                if os.path.samestat(descriptor.stat(), status):
                    return True
    except OSError:
        pass  # it has ended
    return False
