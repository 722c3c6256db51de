"""Reads OSv's boot chart (core/chart.cc, include/osv/boot.hh) from memory or from the console.

The kernel keeps 16 pairs {pointer to a name, time-stamp counter}, one per event, and prints them
with ``--bootchart``. An event names the span that it ends, from the event before.
"""

import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path

from firstlight.lab.guests import Line
from firstlight.model import Step

_PRINTED = re.compile(r"\s*(?P<name>\S.*): (?P<at>\d{1,12}\.\d\d)ms, \(\+(?P<took>\d+\.\d\d)ms\)")
MARK = b"disk read (real mode)\0"
"""The name of the first event, found in every OSv kernel."""
_SHIFTS = (0x4000_0000, 0)
"""Virtual minus physical addresses of a kernel: since 0.57, and before."""
_PAIRS = 16
_LONGEST_NAME = 64
_CHUNK = 4 << 20


@dataclass(frozen=True)
class Event:
    """A row of the table; ``ticks`` of the guest's time-stamp counter."""

    name: str
    ticks: int


def printed(lines: Sequence[Line]) -> tuple[list[Step], list[tuple[int, int]]]:
    """The spans printed on the console, in ns from the guest's first event, and an anchor.

    A kernel without a clock prints only 0.00 ms, or nothing: that gives no spans. The chart is
    printed after its last event, so that event precedes the arrival of the first line.
    """
    rows = [(line, row) for line in lines if (row := _PRINTED.fullmatch(line.text.rstrip()))]
    ends = [round(float(row["at"]) * 1e6) for _, row in rows]
    if not any(ends):
        return [], []
    spans = [
        Step(row["name"], start, end)
        for (start, end), (_, row) in zip(pairwise([0, *ends]), rows, strict=True)
        if start <= end
    ]
    return spans, [(rows[0][0].stamp, max(ends))]


def remembered(memory: Path) -> list[Event]:
    """The table in a guest's physical memory, entry 0 first; empty if there is none."""
    try:
        file = os.open(memory, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        return next(_tables(file), [])
    except OSError:
        return []
    finally:
        os.close(file)


def spans(events: Sequence[Event], hertz: float) -> list[Step]:
    """The table as spans in ns from the counter's zero, which is the VM's start.

    The time before the first event is ``firmware``.
    """
    ends = [round(event.ticks * 1e9 / hertz) for event in events]
    names = ("firmware", *(event.name for event in events[1:]))
    marks = pairwise([0, *ends])
    return [Step(name, start, end) for name, (start, end) in zip(names, marks, strict=False)]


def _tables(file: int) -> Iterator[list[Event]]:
    for place in _find(file, MARK, aligned=1):
        for shift in _SHIFTS:
            pointer = struct.pack("<Q", place + shift)
            for second in _find(file, pointer, aligned=8):
                events = _table(file, second - 16, shift) if second >= 16 else []
                if events:
                    yield events


def _table(file: int, at: int, shift: int) -> list[Event]:
    """The events of a table at ``at``; empty if there is no table."""
    raw = os.pread(file, _PAIRS * 16, at)
    rows = struct.iter_unpack("<QQ", raw[: len(raw) & ~15])
    used = list(takewhile(lambda row: row[0], rows))
    if len(used) < 4 or any(before[1] > after[1] for before, after in pairwise(used)):
        return []
    names = [_text(file, pointer - shift) for pointer, _ in used]
    if names[0] != "" or not all(names[1:]):
        return []
    return [Event(name or "", ticks) for name, (_, ticks) in zip(names, used, strict=True)]


def _text(file: int, at: int) -> str | None:
    if not 0 <= at < 1 << 62:
        return None
    text, end, _ = os.pread(file, _LONGEST_NAME, at).partition(b"\0")
    return text.decode() if end and text.isascii() and text.decode().isprintable() else None


def _find(file: int, needle: bytes, aligned: int) -> Iterator[int]:
    """The offsets of ``needle`` in a file. Holes, which are untouched memory, are skipped."""
    for begin, end in _touched(file):
        for start in range(begin, end, _CHUNK):
            chunk = os.pread(file, min(_CHUNK + len(needle) - 1, end - start), start)
            offset = chunk.find(needle)
            while offset >= 0:
                if not (start + offset) % aligned:
                    yield start + offset
                offset = chunk.find(needle, offset + 1)


def _touched(file: int) -> Iterator[tuple[int, int]]:
    at, size = 0, os.fstat(file).st_size
    while at < size:
        try:
            begin = os.lseek(file, at, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole follows
            return
        at = os.lseek(file, begin, os.SEEK_HOLE)
        yield begin, at
