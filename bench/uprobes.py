"""Stamps of a Go program's own functions, by the kernel's uprobes and ftrace.

No eBPF of ours and no tracepoint that firstlight uses: an independent witness. Stamps are ns of
CLOCK_MONOTONIC, rounded to a microsecond by ftrace.
"""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.gofunctions import Function, GoProgram

_TRACING = Path("/sys/kernel/tracing")
_BUFFER_KB = 8192
_LINE = re.compile(r"\s*.+-(\d+)\s+\[\d+\]\s+(?:\S+\s+)?(\d+)\.(\d{6}): ([er])(\d+): \(")


@dataclass(frozen=True)
class Visit:
    """A thread entered a function, or returned from it."""

    at: int
    tid: int
    function: str
    returned: bool


class Probes:
    """Plants probes at the entry and the returns of functions while it is entered."""

    def __init__(self, program: GoProgram, functions: Iterable[Function]) -> None:
        self._program, self._functions = program, list(functions)
        self._group = f"firstlight_bench_{os.getpid()}"
        self._instance = _TRACING / "instances" / self._group

    def __enter__(self) -> "Probes":
        self._instance.mkdir()
        try:
            for number, function in enumerate(self._functions):
                self._plant(f"e{number}", function.start)
                for place in self._program.returns(function):
                    self._plant(f"r{number}", place)
            self._write("trace_clock", "mono")
            self._write("buffer_size_kb", str(_BUFFER_KB))
            self._write(f"events/{self._group}/enable", "1")
        except OSError:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def visits(self) -> list[Visit]:
        """Every visit since the probes were planted, in order."""
        visits = []
        for line in (self._instance / "trace").read_text().splitlines():
            match = _LINE.match(line)
            if match:
                tid, seconds, micros, kind, number = match.groups()
                at = int(seconds) * 1_000_000_000 + int(micros) * 1_000
                name = self._functions[int(number)].name
                visits.append(Visit(at, int(tid), name, kind == "r"))
        return visits

    def _plant(self, event: str, offset: int) -> None:
        _tell(f"p:{self._group}/{event} {self._program.path}:{offset:#x}")

    def _write(self, file: str, text: str) -> None:
        (self._instance / file).write_text(text)

    def _remove(self) -> None:
        with suppress(OSError):
            self._write(f"events/{self._group}/enable", "0")
        self._instance.rmdir()
        for number in range(len(self._functions)):
            for kind in "er":
                with suppress(OSError):
                    _tell(f"-:{self._group}/{kind}{number}")


def _tell(line: str) -> None:
    """Add a line to uprobe_events; Python's own append would seek, which that file refuses."""
    file = os.open(_TRACING / "uprobe_events", os.O_WRONLY | os.O_APPEND)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)
