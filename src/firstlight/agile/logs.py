"""Reads the logs of instances, which ``firstlight-log`` (native/agile/log.c) writes.

A line is ``TIME STREAM F|P TEXT``, as in CRI's logs; P marks a part of an unfinished line.
"""

import os
import socket
import stat
import time
from contextlib import suppress

from msgspec import Struct

from firstlight.agile.config import Config
from firstlight.agile.sockets import is_readable
from firstlight.errors import Failed, longer
from firstlight.native import native

_PART = 64 << 10
_LOOK_SECONDS, _BEGIN_SECONDS = 0.05, longer(10.0)
_END_SECONDS = longer(5.0)

Position = tuple[int, int]
"""Inode and offset of what is to be read next; (0, 0) is the beginning of what is kept."""


class Line(Struct, frozen=True):
    """One line of an instance's output, or a part of one. ``time`` is in RFC 3339, UTC."""

    time: str
    stream: str
    text: str
    whole: bool = True


class Keeper:
    """The process that keeps the logs of the node with this pid."""

    def __init__(self, config: Config, node: int) -> None:
        """Start it. Raises Failed."""
        self.node = node
        directory = config.logs_directory
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path, sizes = str(native("firstlight-log")), (config.logs.size, config.logs.total)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._pid = os.posix_spawn(
                path, [path, str(directory), *map(str, sizes)], {},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), 3),
                ],
            )  # fmt: skip
            self._pidfd = os.pidfd_open(self._pid)
        except OSError as error:
            ours.close()
            raise Failed(f"cannot keep logs in {directory}: {error.strerror}") from error
        finally:
            theirs.close()
        self.socket = ours

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return not is_readable(self._pidfd, 0)

    def close(self) -> None:
        """Wait until it has read everything, after its node has ended."""
        self.socket.close()
        is_readable(self._pidfd, _END_SECONDS)
        os.close(self._pidfd)
        with suppress(ChildProcessError):
            os.waitpid(self._pid, os.WNOHANG)


def part(config: Config, identity: str, position: Position) -> tuple[bytes, Position, bool]:
    """Whole lines from a position, the next position, and whether the log is complete and read.

    Lines rotated away meanwhile are left out. May wait for the disk. Raises Failed.
    """
    path = config.logs_directory / f"{identity}.log"
    older = path.with_name(f"{path.name}.1")
    if not identity.isdecimal():
        raise Failed(f"{identity!r} is not an instance", "list them: firstlight agile ps --all")
    inode, offset = position
    for file in (older, path):
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        with os.fdopen(descriptor, "rb", buffering=0) as opened:
            status = os.fstat(descriptor)
            if inode == status.st_ino or not inode:
                text = _lines(os.pread(descriptor, _PART, offset))
                if text:
                    return text, (status.st_ino, offset + len(text)), False
                if file is path:
                    complete = not status.st_mode & stat.S_IWUSR
                    grown = os.fstat(opened.fileno()).st_size > offset
                    return b"", (status.st_ino, offset), complete and not grown
                inode, offset = 0, 0  # continue with the newer
    if not path.exists():
        raise Failed(f"instance {identity} has no log",
                     "its output went to its caller, it is too old, or it could not be "
                     f"created in {path.parent}")  # fmt: skip
    return b"", (0, 0), False  # it was rotated twice: start again


async def following(
    config: Config, identity: str, position: Position, seconds: float, started: int = 0
) -> tuple[bytes, Position, bool]:
    """Read likewise, after waiting a while for more. Raises Failed.

    ``started`` is the instance's start in ns of CLOCK_MONOTONIC: its log may begin later.
    """
    import asyncio  # clients only read lines, and start without it

    began = time.monotonic()
    while True:
        try:
            text, position, ended = await asyncio.to_thread(part, config, identity, position)
        except Failed:
            if time.monotonic() > started / 1e9 + _BEGIN_SECONDS:
                raise
        else:
            if text or ended or time.monotonic() > began + seconds:
                return text, position, ended
        await asyncio.sleep(_LOOK_SECONDS)


def lines(text: bytes) -> list[Line]:
    """Parse the lines of a log; others are left out."""
    parsed = []
    for line in text.split(b"\n"):
        words = line.split(b" ", 3)
        if len(words) == 4 and words[2] in (b"F", b"P"):
            when, stream = words[0].decode(errors="replace"), words[1].decode(errors="replace")
            decoded = words[3].decode(errors="surrogateescape")
            parsed.append(Line(when, stream, decoded, words[2] == b"F"))
    return parsed


def _lines(text: bytes) -> bytes:
    return text[: text.rfind(b"\n") + 1]


def remove(config: Config) -> None:
    """Remove the logs of a runtime that has ended, if they are in the default directory."""
    directory = config.logs_directory
    if not config.logs.directory and directory.is_dir():
        for file in directory.iterdir():
            file.unlink(missing_ok=True)
        directory.rmdir()
