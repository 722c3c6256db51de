"""Which attachment has which address: kept in a file, so that they survive the agent.

Each event is a line, a JSON array, written before the agent sends the network: ``["+", number,
network, container, interface, pod]`` and ``["-", number]``. Leases outlive the agent but not a
reboot, as pods do: the file is below /run.
"""

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from firstlight.agile.config import remove_directory
from firstlight.agile.pods.wire import Key
from firstlight.errors import Failed, longer

_LOCK_SECONDS, _RETRY_SECONDS = longer(30.0), 0.02
_SPARE_LINES = 4096


class Lease(NamedTuple):
    """An attachment's number in the range. ``pod`` is ``namespace/name``, or ""."""

    number: int
    key: Key
    pod: str


class Leases:
    """A node's leases, in a directory that is locked until ``close``."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "leases"
        self._lock_path = self._path.with_suffix(".lock")
        self._by_key: dict[Key, Lease] = {}
        self._by_number: dict[int, Lease] = {}
        self._file, self._lines = -1, 0
        self._lock = -1

    def open(self) -> None:
        """Lock and read the leases; waits for an agent that is ending. Raises Failed."""
        self._keep(self._open)

    def _open(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._lock = os.open(self._lock_path, flags, 0o600)
        self._wait_for_lock()
        if self._path.exists():
            self._read()
        self._rewrite()

    def _keep(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            raise Failed(f"cannot keep leases in {self._path.parent}: {error.strerror}") from error

    def restore(self) -> None:
        """Make the files again that another program has removed. Raises Failed.

        The lock is held throughout: a file without a name keeps no other agent away, so that of a
        new name is locked before it is closed.
        """
        is_locked = self._lock >= 0 and _has_name(self._lock, self._lock_path)
        if is_locked and self._path.exists():
            return
        if is_locked:
            self._keep(self._rewrite)
            return
        before, self._lock = self._lock, -1
        try:
            self.open()
        except Failed:
            if self._lock >= 0:
                os.close(self._lock)
            self._lock = before
            raise
        if before >= 0:
            os.close(before)

    def close(self) -> None:
        """Unlock the leases for the next agent."""
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1

    def __len__(self) -> int:
        return len(self._by_key)

    def all(self) -> list[Lease]:
        """All leases."""
        return list(self._by_key.values())

    def get(self, key: Key) -> Lease | None:
        """An attachment's lease, if it has one."""
        return self._by_key.get(key)

    def add(self, lease: Lease) -> None:
        """Record a lease. Raises Failed, without recording it, if it cannot be written."""
        self._write("+", lease.number, *lease.key, lease.pod)
        self._by_key[lease.key] = self._by_number[lease.number] = lease

    def remove(self, lease: Lease) -> None:
        """Remove a lease. Raises Failed."""
        self._write("-", lease.number)
        self._drop(lease.number)

    def _drop(self, number: int) -> None:
        lease = self._by_number.pop(number, None)
        if lease and self._by_key.get(lease.key) is lease:
            del self._by_key[lease.key]

    def _wait_for_lock(self) -> None:
        until = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise Failed(f"another agent keeps the leases in {self._path.parent}",
                                 "stop it, or configure another name") from None  # fmt: skip
                time.sleep(_RETRY_SECONDS)
            else:
                return

    def _read(self) -> None:
        for line in self._path.read_text(errors="replace").splitlines():
            try:
                event, number, *rest = json.loads(line)
            except ValueError:
                continue  # cut off when the disk was full
            if event == "+":
                network, container, interface, pod = rest
                lease = Lease(number, Key(network, container, interface), pod)
                self._by_key[lease.key] = self._by_number[number] = lease
            else:
                self._drop(number)

    def _rewrite(self) -> None:
        # Opened before it is renamed: if that fails, the old file stays in use.
        new = self._path.with_suffix(".new")
        file = os.open(
            new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        leases = self._by_number.values()
        lines = b"".join(_line("+", each.number, *each.key, each.pod) for each in leases)
        if os.write(file, lines) != len(lines):
            os.close(file)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        new.rename(self._path)
        if self._file >= 0:
            os.close(self._file)
        self._file, self._lines = file, len(leases)

    def _write(self, *event: str | int) -> None:
        line = _line(*event)
        try:
            if self._lines > 2 * len(self._by_number) + _SPARE_LINES:
                self._rewrite()
            if (written := os.write(self._file, line)) != len(line):
                os.ftruncate(self._file, os.fstat(self._file).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise Failed(f"cannot write {self._path}: {error.strerror}") from error
        self._lines += 1


def remove(directory: Path) -> None:
    """Remove an ended agent's leases, and their directory if nothing else is in it."""
    leases = directory / "leases"
    for path in (leases, leases.with_suffix(".lock"), leases.with_suffix(".new")):
        path.unlink(missing_ok=True)
    remove_directory(directory)


def _has_name(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _line(*event: str | int) -> bytes:
    return msgspec.json.encode(event) + b"\n"
