"""Unpacks archives, each in a process without rights: ``unpack_main.py``.

The process confines itself, is verified from outside, and only then gets the archive to read. It is
a fork of a process that has its modules imported and never reads an archive.
Everything here blocks.
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.resources import files
from typing import Literal

import msgspec
from msgspec import Struct

from firstlight.agile import seccomp, verify
from firstlight.agile.functions.child import Child, Excess
from firstlight.agile.functions.errors import BY_KIND, BadCode
from firstlight.agile.sockets import is_readable
from firstlight.errors import Failed, longer

ENTRIES_MOST = 500_000
_SECONDS, _START_SECONDS, _END_SECONDS = longer(900.0), longer(60.0), longer(10.0)
_ANSWER_MOST, _WORDS_MOST, _PART = 1 << 16, 500, 4096
_REMEDIES = {
    "climbs": "leave that path out, or build the archive again from within its directory",
    "device": "leave it out: an instance has a /dev of its own",
    "bomb": "make it smaller",
    "full": "free space there, or configure another store",
    "truncated": "build or fetch it again",
}


class Job(Struct, frozen=True, kw_only=True):
    """Where to unpack: ``upper`` below ``directory``, over the directories ``lower``.

    ``target`` is an empty directory there, seen by the process alone; ``work`` is for the overlay.
    ``layer``: names can be white-outs. ``into`` is a directory to make in the tree.
    """

    directory: str
    upper: str
    target: str
    work: str
    uid: int
    kind: Literal["tar", "zip"]
    lower: str = ""
    layer: bool = False
    into: str = ""
    bytes: int = 10 << 30
    entries: int = ENTRIES_MOST


class Unpacked(Struct, frozen=True):
    """The digest of an uncompressed tar file, and its number of bytes and files."""

    digest: str
    bytes: int
    entries: int


@contextmanager
def unpacking() -> Iterator["Unpacker"]:
    """Unpack archives by one process, which starts when needed and ends with the context."""
    with ExitStack() as ending:
        yield Unpacker(ending)


class Unpacker:
    """Unpacks archives, one after the other."""

    def __init__(self, ending: ExitStack) -> None:
        self._ending = ending
        self._maker: tuple[Child, socket.socket] | None = None

    def unpack(self, job: Job, archive: int, what: str) -> Unpacked:
        """Unpack an archive, a descriptor of a file. Raises BadCode, Failed.

        ``what`` names it in errors. After an error the caller removes what was written.
        """
        with ExitStack() as ending:
            try:
                pid, talk = self._fork(job, archive, what, ending)
                return _converse(pid, talk, job, what)
            except TimeoutError:
                raise BadCode(f"{what}: unpacking takes more than {_SECONDS:.0f} s") from None
            except Excess:
                raise BadCode(f"{what}: the process that unpacks it writes without end") from None

    def _fork(
        self, job: Job, archive: int, what: str, ending: ExitStack
    ) -> tuple[int, socket.socket]:
        """Start a process for a job; it ends with that context."""
        child, maker = self._maker = self._maker or self._start_maker()
        talk, theirs = socket.socketpair()
        ending.enter_context(talk)
        pid, descriptors = b"", list[int]()
        try:
            with theirs, suppress(ConnectionError):  # it has ended: its last words say why
                words = msgspec.json.encode(job)
                socket.send_fds(maker, [words], [archive, theirs.fileno()])
                pid, descriptors, _, _ = socket.recv_fds(maker, _PART, 1)
        except OSError as error:
            raise Failed(f"cannot start the process that unpacks {what}: {error}") from error
        if not descriptors:
            child.process.kill()
            child.finish()
            reason = child.errors.decode(errors="replace").strip()
            raise Failed(f"cannot start the process that unpacks {what}: {reason}")
        ending.callback(_end, descriptors[0])
        return int(pid), talk

    def _start_maker(self) -> tuple[Child, socket.socket]:
        script = str(files("firstlight.agile.functions").joinpath("unpack_main.py"))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ending.enter_context(ours)
        with theirs:
            child = Child(
                [sys.executable, "-I", script, seccomp.program().hex()], _SECONDS, _WORDS_MOST,
                env={}, stdin=theirs.fileno(),
            )  # fmt: skip
        ours.settimeout(_START_SECONDS)
        return self._ending.enter_context(child), ours


def _converse(pid: int, talk: socket.socket, job: Job, what: str) -> Unpacked:
    until = time.monotonic() + _SECONDS
    ready = _receive(talk, until, line=True)
    if b"ready" not in ready:
        words = (ready + _receive(talk, until))[-_WORDS_MOST:].decode(errors="replace").strip()
        raise Failed(f"cannot confine the process that unpacks {what}: {words}")
    if rights := _rights(pid, job.uid):
        raise Failed(f"the process that unpacks {what} is not confined: {', '.join(rights)}")
    with suppress(OSError):
        talk.sendall(b"\n")
    text = _receive(talk, until)
    try:
        answer = json.loads(text)
        if "refused" not in answer:
            return msgspec.convert(answer, Unpacked)
        kind, why = BY_KIND.get(answer["refused"], BadCode), str(answer["why"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        last = text[-_WORDS_MOST:].decode(errors="replace").strip() or "killed"
        raise BadCode(f"{what}: the process that unpacks it ended: {last}") from None
    raise kind(f"{what}: {why}", _REMEDIES.get(answer["refused"]))


def _receive(talk: socket.socket, until: float, *, line: bool = False) -> bytes:
    """A line, or all, of what the process says. Raises TimeoutError, Excess."""
    received = b""
    with suppress(ConnectionResetError):  # it ended before it was let go
        while not (line and b"\n" in received):
            talk.settimeout(max(0.001, until - time.monotonic()))
            part = talk.recv(_PART)
            if not part:
                break
            received += part
            if len(received) > _ANSWER_MOST:
                raise Excess
    return received


def _end(process: int) -> None:
    """Kill a process by its descriptor, and wait until it has ended."""
    try:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        is_readable(process, _END_SECONDS)  # not for ever: the kernel may hold it
    finally:
        os.close(process)


def _rights(pid: int, uid: int) -> list[str]:
    """The rights that a process still has but must not have. Raises Failed if it is gone."""
    try:
        have, ours = verify.status(pid), verify.namespaces(os.getpid())
        spaces = verify.namespaces(pid)
    except OSError as error:
        raise Failed(f"the process that unpacks is gone: {error.strerror}") from error
    wanted = {
        **verify.WANTED, "Uid": "\t".join([str(uid)] * 4), "Gid": "\t".join([str(uid)] * 4),
        "TracerPid": have.get("TracerPid", "0"),
    }  # fmt: skip
    differences = [
        f"{key} is {have.get(key)}" for key, text in wanted.items() if have.get(key) != text
    ]
    return differences + [
        name for name in ("net", "mnt", "ipc", "uts") if spaces[name] == ours[name]
    ]
