"""Follows the starts of others by ``native/trace/trace.c --watch``, and reads its windows.

A window is memory shared by the tracer, so nothing is left of it whatever is killed.
"""

import json
import math
import os
import socket
import struct
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl

from firstlight.errors import Failed, longer
from firstlight.lab.watch.programs import DAEMONS, Program, role
from firstlight.lab.watch.starts import Executed, Start, join
from firstlight.native import native
from firstlight.store import SPAN_SCHEMA
from firstlight.trace import bpf
from firstlight.trace.kallsyms import Stacks

_FILE_BYTES, _WORDS_BYTES = 256, 2048  # native/trace/trace.h
_FILES = 4
_DOCUMENT = struct.Struct("III")
_OF_BUNDLE, _OF_ENGINE = 0, 1
_LONGEST_NS = 20_000_000_000  # native/trace/watch.c
_EXIT_SECONDS, _LOAD_SECONDS, _GLANCE_SECONDS = longer(10), longer(120), 0.1
_LOOK_SECONDS = 5  # this takes 20 µs per process of the node
_KEPT = frozenset(
    ("CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "TRACEPARENT")
)
"""The environment variables that are kept; no other leaves this module."""


@dataclass(frozen=True)
class Window:
    """The starts that ended in one window, and their spans.

    ``lost`` is the number of events that the tracer lost. Only a start that is ``traced`` has
    spans: for the others, only forks, executions and exits were followed. That was so of ``late``
    of them although they were to be traced, because the windows before were not analysed yet.
    """

    starts: list[Start]
    lost: int
    spans: pl.DataFrame
    """The spans of all process trees, with the root's pid in the column ``sample``."""
    daemons: tuple[int, ...]
    late: int = 0

    def spans_of(self, start: Start, sample: int) -> pl.DataFrame:
        """The spans of a start, as those of the sample with this index: all of its own programs,
        and what daemons did meanwhile.
        """
        is_meanwhile = pl.col("end") >= start.began
        if start.ready is not None:
            is_meanwhile &= pl.col("start") <= start.ready
        own = self.spans.filter(
            pl.col("sample").is_in(list(start.roots))
            | (pl.col("sample").is_in(self.daemons) & is_meanwhile)
        )
        return own.with_columns(pl.lit(sample, dtype=self.spans.schema["sample"]).alias("sample"))


@dataclass
class _Part:
    """Starts that have not ended, in one window or carried over to the next."""

    programs: list[Program] = field(default_factory=list)
    executed: list[Executed] = field(default_factory=list)
    parents: dict[int, int] = field(default_factory=dict)
    spans: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=SPAN_SCHEMA))
    lost: int = 0


class Follower:
    """The tracer, waiting for programs with the given names. Leaving the context detaches it.

    One window in ``every`` is traced whole; if that is 0, as many as ``share`` of the node's CPU
    time allows.
    """

    def __init__(self, names: Sequence[str], every: int = 1, share: float = 0.0) -> None:
        self._names, self._every, self._share = names, every, share
        self._daemons: set[int] = set()
        self._looked = -math.inf  # for daemons, at this time
        self._carried = _Part()
        self._blind_until = 0  # the end of the last window that was not whole
        self._late_until = 0  # likewise, of those that were to be whole

    def __enter__(self) -> "Follower":
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = subprocess.Popen(
                [*bpf.program(), "--watch", native("trace.bpf.o"), str(self._every),
                 str(round(self._share * 1e6)), *self._names],
                stdin=subprocess.PIPE, stdout=other.fileno(), stderr=subprocess.PIPE, text=True,
                start_new_session=True,
            )  # fmt: skip
        self._socket.settimeout(_LOAD_SECONDS)
        if self._receive()[0] != ["watching"]:
            failure = self._failure()
            self.__exit__()
            raise failure
        self._follow_daemons()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stderr is not None
        self._socket.close()  # it may be waiting to send
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the kernel detaches its programs
            self._process.wait(_EXIT_SECONDS)
        self._process.stderr.close()

    @property
    def descriptor(self) -> int:
        """A descriptor that is readable when a window has closed or the tracer has ended."""
        return self._socket.fileno()

    def read(self) -> Window:
        """Read the next window. Raises Failed if the tracer has ended."""
        return self._window(*self._receive())

    def rest(self, until: float) -> Iterator[Window]:
        """End the tracer, and read the windows that have not been read, up to this moment's.

        Raises Failed if the tracer has failed, and TimeoutError if windows are left when the
        monotonic clock is at ``until``.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._looked = math.inf  # it takes no more daemons
        while True:
            left = until - time.monotonic()
            self._socket.settimeout(max(left, _GLANCE_SECONDS))
            words, descriptors = self._receive()
            if not words:
                break
            if left < 0:
                for descriptor in descriptors:
                    os.close(descriptor)
                raise TimeoutError
            yield self._window(words, descriptors)
        try:
            status = self._process.wait(max(until - time.monotonic(), _GLANCE_SECONDS))
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        if status:
            raise self._failure()

    def _window(self, words: list[str], descriptors: list[int]) -> Window:
        try:
            if len(words) != 5 or words[0] != "window" or len(descriptors) != _FILES:
                raise self._failure()
            daemons = tuple(self._daemons)
            self._follow_daemons()
            at, lost = int(words[1]), int(words[2])
            whole, late = words[3] == "1", words[3] == "2"
            last, waits = words[4] == "1", words[4] == "2"
            known = {program.root for program in self._carried.programs}
            part = _read(descriptors, {*known, *daemons}, lost, self._names, whole=whole)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        if late:
            self._late_until = at
        window = self._join(part, at, daemons, whole=whole, last=last)
        if waits or not whole:
            self._blind_until = at
        return window

    def answer(self, spent: int) -> None:
        """Tell the tracer that a window was read and analysed, in ``spent`` ns of CPU time."""
        self._tell(f"spent {spent}\n")

    def _join(
        self, part: _Part, at: int, daemons: tuple[int, ...], *, whole: bool, last: bool
    ) -> Window:
        """The starts that have ended; of the others, all is carried over to the next window."""
        before, self._carried = self._carried, _Part()
        programs = [*before.programs, *part.programs]
        parents = before.parents | part.parents
        executed = [
            *before.executed,
            *(replace(each, ancestors=_ancestors(each.ancestors[0], parents))
              for each in part.executed),
        ]  # fmt: skip
        starts = join(programs, executed, self._names)
        spans = pl.concat([before.spans, part.spans]) if before.spans.height else part.spans
        lost = before.lost + part.lost
        ended = [
            start
            for start in starts
            if last or start.ready is not None or at - start.began > _LONGEST_NS
        ]
        for start in ended:
            start.traced = whole and start.began >= self._blind_until
        if not last:
            self._carry(programs, executed, parents, spans, ended, at, lost, daemons)
        late = sum(not start.traced and start.began < self._late_until for start in ended)
        return Window(ended, lost, spans, daemons, late)

    def _carry(
        self, programs: list[Program], executed: list[Executed], parents: dict[int, int],
        spans: pl.DataFrame, ended: list[Start], at: int, lost: int, daemons: tuple[int, ...],
    ) -> None:  # fmt: skip
        of_ended = {id(program) for start in ended for program in start.programs}
        kept = [
            program
            for program in programs
            if id(program) not in of_ended and at - program.at <= _LONGEST_NS
        ]
        if not kept:
            return
        earliest = min(program.at for program in kept)
        roots = [*{program.root for program in kept}, *daemons]
        runtimes = {program.pid for program in kept}
        finished = {start.ready for start in ended}
        self._carried = _Part(
            kept,
            [each for each in executed if each.at >= earliest and each.at not in finished],
            {
                pid: parent
                for pid, parent in parents.items()
                if not runtimes.isdisjoint(_ancestors(pid, parents))
            },
            # what had not ended at the cut is reported again when it has
            spans.filter(
                pl.col("sample").is_in(roots) & (pl.col("end") >= earliest) & (pl.col("end") != at)
            ),
            lost,
        )

    def _receive(self) -> tuple[list[str], list[int]]:
        try:
            words, descriptors, _, _ = socket.recv_fds(self._socket, 256, _FILES)
        except (TimeoutError, ConnectionResetError):
            return [], []
        return words.decode().split(), descriptors

    def _failure(self) -> Failed:
        assert self._process.stderr is not None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_SECONDS)
        status = self._process.poll()
        reason = "it does not answer"
        if status is not None:
            reason = self._process.stderr.read().strip() or bpf.ending(status)
        return Failed(f"the tracer failed: {reason}", bpf.HINT)

    def _follow_daemons(self) -> None:
        """Update the tracer's list of engines' daemons, every few seconds."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        present = set(_daemons())
        for verb, pids in (
            ("follow", present - self._daemons),
            ("forget", self._daemons - present),
        ):
            for pid in sorted(pids):
                self._tell(f"{verb} {pid}\n")
        self._daemons = present

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # its end shows when the next window is read
            self._process.stdin.write(line)
            self._process.stdin.flush()


def _daemons() -> Iterator[int]:
    """The processes of container engines' daemons in this PID namespace."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "comm").read_text(errors="replace").strip() in DAEMONS:
                    yield int(entry.name)
            except OSError:
                continue


def _read(
    descriptors: list[int], known: set[int], lost: int, names: Collection[str], *, whole: bool
) -> _Part:
    """A window's part: the spans of ``known`` roots, and of those that take part in a start.

    Its executions have no other ancestor than their own process.
    """
    raw, text, stacks, texts = (_content(descriptor) for descriptor in descriptors)
    events = np.frombuffer(raw, dtype=bpf.EVENT)
    ends = np.cumsum(events["text"], dtype=np.int64)
    documents = dict(_documents(texts))
    programs = [
        _program(event, text[end - event["text"] : end], documents)
        for event, end in _of_kind(events, ends, bpf.BEGIN)
    ]
    executed = [
        Executed(
            (int(event["pid"]),),
            int(event["start"]),
            os.fsdecode(text[end - event["text"] : end].rstrip(b"\0")),
            is_first=bool(event["args"][0] == 1 and event["args"][1] > 0),
        )
        for event, end in _of_kind(events, ends, bpf.EXEC)
    ]
    spans = pl.DataFrame(schema=SPAN_SCHEMA)
    if whole:
        roots = known | {program.root for program in programs if role(program, names)}
        spans = bpf.decode(events, text, Stacks(stacks), {root: root for root in roots})
    return _Part(programs, executed, _parents(events), spans, lost)


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _documents(content: bytes) -> Iterator[tuple[tuple[int, int], object]]:
    """What is known of each process's container, by its pid and the kind of document."""
    at = 0
    while at < len(content):
        pid, kind, size = _DOCUMENT.unpack_from(content, at)
        at += _DOCUMENT.size
        with suppress(ValueError, RecursionError):
            yield (pid, kind), json.loads(content[at : at + size])
        at += size


def _of_kind(events: np.ndarray, ends: np.ndarray, kind: int) -> Iterator[tuple[np.void, int]]:
    for place in np.flatnonzero(events["kind"] == kind).tolist():
        yield events[place], int(ends[place])


def _parents(events: np.ndarray) -> dict[int, int]:
    """The parent of each process that was forked in the window."""
    forks = events[(events["kind"] == bpf.FORK) & (events["args"][:, 0] == events["peer"])]
    return dict(zip(forks["peer"].tolist(), forks["pid"].tolist(), strict=True))


def _ancestors(pid: int, parents: dict[int, int]) -> tuple[int, ...]:
    ancestors = [pid]
    while (parent := parents.get(ancestors[-1])) and parent not in ancestors:
        ancestors.append(parent)
    return tuple(ancestors)


def _program(event: np.void, text: bytes, documents: dict[tuple[int, int], object]) -> Program:
    file, words = text[:_FILE_BYTES], text[_FILE_BYTES : _FILE_BYTES + _WORDS_BYTES]
    variables = text[_FILE_BYTES + _WORDS_BYTES :][: int(event["args"][1])]
    pairs = (os.fsdecode(word).partition("=") for word in variables.split(b"\0"))
    return Program(
        root=int(event["root"]),
        pid=int(event["pid"]),
        at=int(event["start"]),
        file=os.fsdecode(file.split(b"\0", 1)[0]),
        arguments=tuple(
            os.fsdecode(word) for word in words[: int(event["args"][0])].split(b"\0")[:-1]
        ),
        environment={name: value for name, _, value in pairs if name in _KEPT},
        config=documents.get((int(event["tid"]), _OF_BUNDLE)),
        record=documents.get((int(event["tid"]), _OF_ENGINE)),
        ancestor=os.fsdecode(event["args"][2:4].tobytes().rstrip(b"\0")),
    )
