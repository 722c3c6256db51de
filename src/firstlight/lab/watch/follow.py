"""Follows the starts of others by ``native/trace/trace.c --watch``, and reads its windows."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from firstlight.errors import Failed
from firstlight.lab.watch.programs import DAEMONS, Program
from firstlight.lab.watch.starts import Executed, Start, join
from firstlight.native import native
from firstlight.store import SPAN_SCHEMA
from firstlight.trace import bpf
from firstlight.trace.kallsyms import Stacks

_FILE_BYTES, _WORDS_BYTES = 256, 2048  # native/trace/trace.h
_DETACH_SECONDS = 30
_FILES = ("events", "text", "stacks")
_KEPT = frozenset({"CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"})
"""The environment variables that are kept; no other leaves this module."""


@dataclass(frozen=True)
class Window:
    """The starts of one window, and their spans.

    ``lost`` is the number of events that the tracer lost. Only a ``whole`` window has spans: of
    the others no more than forks, executions and exits was traced.
    """

    starts: list[Start]
    lost: int
    whole: bool
    spans: pl.DataFrame
    """The spans of all process trees, with the root's pid in the column ``sample``."""
    daemons: tuple[int, ...]

    def spans_of(self, start: Start, sample: int) -> pl.DataFrame:
        """The spans of a start, including its daemons', as those of the sample with this index."""
        roots = [*start.roots, *self.daemons]
        own = self.spans.filter(pl.col("sample").is_in(roots))
        return own.with_columns(pl.lit(sample, dtype=self.spans.schema["sample"]).alias("sample"))


class Follower:
    """The tracer, waiting for programs with the given names. Leaving the context detaches it.

    One window in ``one_in`` is traced whole.
    """

    def __init__(self, names: Sequence[str], one_in: int = 1) -> None:
        self._names, self._one_in = names, one_in
        self._daemons: set[int] = set()
        self._unread = b""

    def __enter__(self) -> "Follower":
        self._directory = Path(tempfile.mkdtemp(prefix="firstlight-watch-"))
        self._prefix = self._directory / "window"
        self._process = subprocess.Popen(
            [*bpf.program(), "--watch", native("trace.bpf.o"), self._prefix,
             str(self._one_in), *self._names],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        if self._read_line() != ["watching"]:
            self.__exit__()
            raise self._failure()
        self._follow_daemons()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(_DETACH_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def descriptor(self) -> int:
        """A descriptor that is readable when a window has closed or the tracer has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def read(self) -> Iterator[Window]:
        """Read the windows that have closed, at least one. Raises Failed if the tracer ended."""
        yield self._read_window()
        while b"\n" in self._unread:
            yield self._read_window()

    def _read_window(self) -> Window:
        words = self._read_line()
        if len(words) != 5 or words[0] != "window":
            raise self._failure()
        daemons = tuple(self._daemons)
        self._follow_daemons()
        prefix = f"{self._prefix}.{words[1]}"
        try:
            return _window(prefix, int(words[3]), daemons, whole=words[4] == "1")
        finally:
            for kind in _FILES:
                Path(f"{prefix}.{kind}").unlink(missing_ok=True)

    def _read_line(self) -> list[str]:
        while b"\n" not in self._unread and (more := os.read(self.descriptor, 4096)):
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode().split()

    def _failure(self) -> Failed:
        assert self._process.stderr is not None
        reason = self._process.stderr.read().decode().strip() or "it ended without a message"
        return Failed(
            f"the tracer failed: {reason}", "run firstlight doctor to see what is missing"
        )

    def _follow_daemons(self) -> None:
        """Tell the tracer of engines' daemons that have come and gone."""
        present = set(_daemons())
        assert self._process.stdin is not None
        for verb, pids in (
            (b"follow", present - self._daemons),
            (b"forget", self._daemons - present),
        ):
            for pid in sorted(pids):
                self._process.stdin.write(b"%s %d\n" % (verb, pid))
        self._process.stdin.flush()
        self._daemons = present


def _daemons() -> Iterator[int]:
    """The processes of container engines' daemons in this PID namespace."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "comm").read_text().strip() in DAEMONS:
                    yield int(entry.name)
            except OSError:
                continue


def _window(prefix: str, lost: int, daemons: tuple[int, ...], *, whole: bool) -> Window:
    events = np.fromfile(f"{prefix}.events", dtype=bpf.EVENT)
    text = Path(f"{prefix}.text").read_bytes()
    stacks = Stacks(Path(f"{prefix}.stacks").read_bytes())
    ends = np.cumsum(events["text"], dtype=np.int64)
    programs = [
        _program(event, text[end - event["text"] : end])
        for event, end in _of_kind(events, ends, bpf.BEGIN)
    ]
    parents = _parents(events)
    executed = [
        Executed(_ancestors(int(event["pid"]), parents), int(event["start"]))
        for event, _ in _of_kind(events, ends, bpf.EXEC)
        if event["args"][0] == 1 and event["args"][1] > 0
    ]
    starts = join(programs, executed)
    if not whole:
        return Window(starts, lost, False, pl.DataFrame(schema=SPAN_SCHEMA), daemons)
    wanted = {root for start in starts for root in start.roots} | set(daemons)
    spans = bpf.decode(events, text, stacks, {root: root for root in wanted})
    return Window(starts, lost, True, spans, daemons)


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


def _program(event: np.void, text: bytes) -> Program:
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
    )
