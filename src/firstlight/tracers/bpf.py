"""Kernel events by eBPF: runs ``native/trace.c`` and turns its records into spans.

The records are ``struct event`` of ``native/trace.h``.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import polars as pl

from firstlight.backends import native
from firstlight.errors import Failed, Unsupported
from firstlight.store import SPAN_SCHEMA
from firstlight.tracers import kallsyms, words
from firstlight.tracers.kallsyms import Stacks

_EVENT = np.dtype(
    [
        ("start", "u8"), ("end", "u8"), ("result", "i8"), ("args", "u8", 4),
        ("root", "u4"), ("pid", "u4"), ("tid", "u4"), ("peer", "u4"),
        ("magic", "u4"), ("stack", "i4"),
        ("kind", "u2"), ("number", "u2"), ("family", "u2"), ("protocol", "u2"),
        ("text", "u4"), ("open", "u4"),
    ]
)  # fmt: skip
_CALL, _FORK, _EXEC, _EXIT, _OFF, _LOCK, _MARK = range(1, 8)
_OPENING = frozenset({"open", "openat", "openat2", "socket"})
_HINT = "see what is missing: firstlight doctor"


@dataclass(frozen=True)
class Trace:
    """What one traced batch gave: ``spans`` as SPAN_SCHEMA, and how many events were lost."""

    spans: pl.DataFrame
    lost: int


class Tracer:
    """The loaded eBPF programs, for the children of one load generator."""

    def __init__(self, generator: int) -> None:
        self._generator = generator

    def __enter__(self) -> "Tracer":
        self._directory = Path(tempfile.mkdtemp(prefix="firstlight-trace-"))
        self._process = subprocess.Popen(
            [native("trace"), native("trace.bpf.o"), str(self._generator)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._expect("loaded")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()
        shutil.rmtree(self._directory, ignore_errors=True)

    def start(self) -> None:
        """Attach the programs."""
        self._say(f"start {self._directory}/batch", "started")

    def stop(self) -> int:
        """Detach them; returns the events lost since ``start``."""
        return int(self._say("stop", "stopped").split()[2])

    def collect(self, samples: Mapping[int, int]) -> pl.DataFrame:
        """The spans of the last batch; ``samples`` maps an instance's pid to its Sample.index."""
        prefix = self._directory / "batch"
        events = np.fromfile(prefix.with_suffix(".events"), dtype=_EVENT)
        text = prefix.with_suffix(".text").read_bytes()
        stacks = Stacks(prefix.with_suffix(".stacks").read_bytes())
        return decode(events, text, stacks, samples)

    def _say(self, line: str, expected: str) -> str:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        return self._expect(expected)

    def _expect(self, expected: str) -> str:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        answer = self._process.stdout.readline()
        if not answer.startswith(expected):
            complaint = self._process.stderr.read().strip() or "it ended without a word"
            raise Failed(f"the tracer failed: {complaint}", _HINT)
        return answer


def probe() -> None:
    """Raise Unsupported if the eBPF programs do not load and attach here."""
    done = subprocess.run(
        [native("trace"), "--probe", native("trace.bpf.o")], capture_output=True, text=True
    )
    if done.returncode:
        raise Unsupported(f"cannot trace: {done.stderr.strip()}", _HINT)


@cache
def call_names() -> dict[int, str]:
    """System-call numbers to names, of the reported calls."""
    listing = subprocess.run([native("trace"), "--calls"], capture_output=True, text=True).stdout
    return {int(number): name for number, name in (line.split() for line in listing.splitlines())}


def decode(
    events: np.ndarray, text: bytes, stacks: Stacks, samples: Mapping[int, int]
) -> pl.DataFrame:
    """The spans of the instances whose root is in ``samples``, ordered by start."""
    texts = np.cumsum(events["text"], dtype=np.int64)
    files: dict[tuple[int, int], str] = {}
    rows = [
        row
        for event, end in zip(events.tolist(), texts.tolist(), strict=True)
        for row in _rows(event, end, text, stacks, samples, files)
    ]
    frame = pl.DataFrame(rows, schema=SPAN_SCHEMA, orient="row")
    return frame.sort("start", maintain_order=True)


def _rows(
    event: tuple[Any, ...],
    text_end: int,
    text: bytes,
    stacks: Stacks,
    samples: Mapping[int, int],
    files: dict[tuple[int, int], str],
) -> Iterator[tuple[object, ...]]:
    (start, end, result, args, root, pid, tid, peer, magic, stack, kind, number,
     family, protocol, length, unfinished) = event  # fmt: skip
    if root not in samples:
        return
    sample = samples[root]
    said = text[text_end - length : text_end]
    if kind == _CALL:
        name = call_names()[number]
        about = _detail(name, magic, family, protocol, tuple(args), said)
        if name in _OPENING and result >= 0:
            files[pid, result] = about
        elif name == "close":  # by its end the descriptor says nothing any more
            about = files.pop((pid, args[0]), "")
        result = None if unfinished else result
        yield sample, "call", name, about, "", start, end, pid, tid, result, None
    elif kind == _FORK:
        name = "process" if args[0] == peer else "thread"
        yield sample, "fork", name, "", "", start, end, pid, tid, None, peer
    elif kind in (_EXEC, _EXIT):
        name = "exec" if kind == _EXEC else "exit"
        about = said.split(b"\0", 1)[0].decode(errors="replace")
        yield sample, name, name, about, "", start, end, pid, tid, None, None
    elif kind == _MARK:
        where = kallsyms.function(args[0])
        yield sample, "mark", where, "", "", start, end, pid, tid, None, None
    elif kind == _LOCK:
        address, flags = args[0], args[1]
        where = kallsyms.variable(address) or hex(address)
        yield sample, "lock", _lock(flags), where, stacks[stack], start, end, pid, tid, None, peer
    else:
        woken = min(max(args[0], start), end) if args[0] else end
        ready = start if result == 0 else woken
        if ready > start:
            yield (sample, "blocked", "", "", stacks[stack], start, ready, pid, tid, result, peer)
        if end > ready:
            yield sample, "queued", "", "", "", ready, end, pid, tid, None, peer


@lru_cache(maxsize=65536)
def _detail(
    name: str, magic: int, family: int, protocol: int, args: tuple[int, ...], text: bytes
) -> str:
    return words.detail(name, magic, family, protocol, args, text)


def _lock(flags: int) -> str:
    """The kind of lock, from the LCB_F flags of include/trace/events/lock.h."""
    if flags & 32:
        return "mutex"
    if flags & 16:
        return "percpu-rwsem"
    if flags & 8:
        return "rt-mutex"
    if flags & 1:
        return "rwlock" if flags & 6 else "spinlock"
    return "rwsem-read" if flags & 2 else "rwsem-write"
