"""Child processes that handle untrusted input, with bounded output and time."""

import os
import selectors
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from firstlight.errors import longer

_PART = 65536
_MOMENT_SECONDS, _END_SECONDS = 0.1, longer(10.0)


class Excess(Exception):
    """The process wrote more than allowed."""


class Child:
    """A process and its output. A context manager; leaving it ends the process.

    ``output`` is its standard output, at most ``most`` bytes; ``errors`` are the last ``most``
    bytes of its standard error. Everything here blocks, and raises TimeoutError after ``seconds``.
    """

    def __init__(
        self, words: Sequence[str | Path], seconds: float, most: int, *, env: dict[str, str],
        stdin: int = subprocess.DEVNULL, stdout: int | IO[bytes] = subprocess.PIPE,
        cwd: Path | None = None,
    ) -> None:  # fmt: skip
        self._until, self._most = time.monotonic() + seconds, most
        self.output, self.errors = b"", b""
        self.process = subprocess.Popen(
            words, bufsize=0, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE,
            env=env, cwd=cwd,
        )  # fmt: skip
        self._open = [file for file in (self.process.stdout, self.process.stderr) if file]

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        for file in (self.process.stdout, self.process.stderr):
            if file:
                file.close()
        with suppress(subprocess.TimeoutExpired):  # the kernel holds it
            self.process.wait(_END_SECONDS)

    def finish(self) -> int:
        """Read to the end of both streams; returns its exit status. Raises Excess."""
        while self._open:
            self._read()
        try:
            return self.process.wait(max(_MOMENT_SECONDS, self._until - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise TimeoutError from None

    def _read(self) -> None:
        with selectors.DefaultSelector() as selector:
            for file in self._open:
                selector.register(file, selectors.EVENT_READ)
            ready = selector.select(max(0.0, self._until - time.monotonic()))
        if not ready:
            raise TimeoutError
        for key, _ in ready:
            self._take(key.fd, os.read(key.fd, _PART))

    def _take(self, descriptor: int, part: bytes) -> None:
        errors = self.process.stderr
        if not part:
            self._open = [file for file in self._open if file.fileno() != descriptor]
        elif errors and descriptor == errors.fileno():
            self.errors = (self.errors + part)[-self._most :]
        else:
            self.output += part
            if len(self.output) > self._most:
                raise Excess
