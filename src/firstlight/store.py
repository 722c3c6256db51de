"""Runs on disk: append while measuring, read back.

A run is a directory::

    header.json     one model.Header, written first
    samples.jsonl   one model.Sample per line, flushed as measured
    spans/B.arrow   the raw spans of traced batch B (Arrow IPC, SPAN_SCHEMA)
    footer.json     one model.Footer, written last; missing after a kill

Schema history: 1 was the first; 2 added ``Header.presentation``, which runs of version 1 get from
their experiment's name.
"""

import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, TypeVar

import msgspec
import numpy as np
import polars as pl

from firstlight.errors import BadRun, FirstlightError
from firstlight.files import naming, write_whole
from firstlight.model import (
    SCHEMA_VERSION,
    Footer,
    Header,
    Point,
    Presentation,
    Sample,
    Setting,
    to_json,
)

_SPAN_COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    "sample": pl.UInt32,  # Sample.index
    "kind": pl.Categorical(),  # call, fork, exec, exit, gone, blocked, queued, lock, mark
    "name": pl.Categorical(),  # call; kind of lock; process or thread; a mark's function; TIMER
    "detail": pl.Categorical(),  # path, netlink request, file system and file, program
    "stack": pl.Categorical(),  # kernel functions, innermost first, joined by ";"
    "start": pl.Int64,  # ns of CLOCK_MONOTONIC
    "end": pl.Int64,
    "pid": pl.Int32,  # thread group
    "tid": pl.Int32,
    "result": pl.Int64,  # what a call returned
    "peer": pl.Int32,  # child of a fork, waker of a wait, owner of a lock, pipe of a call
}
SPAN_SCHEMA = pl.Schema(_SPAN_COLUMNS)
"""One row per span. ``blocked`` ends at the wake-up, where ``queued`` begins; an instant has
``start == end``."""

_MOST_KEPT = 1_000_000
"""Spans, of 60 bytes each."""
_NEEDED = SPAN_SCHEMA.keys() - {"result", "peer"}

TIMER = "timer"
"""The name of a wait that a timer ended: no thread woke it."""
UNSEEN = "before tracing"
"""The detail of a wait that began before tracing, so its reason is unknown."""


_FIGURES: dict[str, pl.DataType | type[pl.DataType]] = {
    "index": pl.Int64, "batch": pl.Int64, "instance": pl.Int64, "repetition": pl.Int64,
    "traced": pl.Boolean, "ending": pl.String, "latency": pl.Int64, "lateness": pl.Int64,
    "user_ns": pl.Int64, "system_ns": pl.Int64, "lost": pl.Int64,
}  # fmt: skip

READ_OF_EXPERIMENTS: dict[str, tuple[str, ...]] = {
    "ablation": ("without",), "agile": ("backend",), "boot-protocol": ("protocol",),
    "cni-background": ("cni", "background"), "cni-breakdown": ("cni",), "cni-burst": ("cni",),
    "container-creation": ("runtime",), "driver-loading": ("instances",),
    "hypervisor-builds": ("build",), "kubernetes-background": ("network", "background"),
    "kubernetes-pods": ("network",), "network-setup": ("method", "order"),
    "unikernel-boot": ("instances",), "unikernel-scale": ("console",),
}  # fmt: skip
"""The axes that claims read. A header without them is damaged, and is refused when it is read."""

READ_OF_VIEWS: dict[str, tuple[str, ...]] = {
    "ablation": ("without",), "builds": ("build",), "churn": ("pools", "rate"), "cni": ("cni",),
    "density": ("background",), "functions": ("function",), "nodes": ("node",),
    "pods": ("network",), "storms": ("storm", "state"), "trace-replay": ("pool",),
}  # fmt: skip
"""The axes that views read (report.views), likewise."""

_LEAST = {"instances": 1, "background": 0, "rate": 0}
"""The axes that are numbers, and the least of each."""
_MOST = 1 << 31
_DAMAGED = "the file is damaged or from another program"

T = TypeVar("T")


class Writer:
    """Writes one run. ``append`` is durable against a kill once it returns.

    ``written`` is the size of the samples and spans that this one has written, in bytes. A new run
    that an error ends before anything is measured is discarded, so that its directory is free.
    """

    def __init__(
        self, path: Path, header: Header, *, earlier: Sequence[Sample] | None = None
    ) -> None:
        """``earlier`` are the samples to keep of the run in ``path``, which this one continues."""
        if earlier is None:
            check_empty(path)
        self.path, self.written, self._is_new = path, 0, earlier is None
        self._count = len(earlier or ())
        self._was_there = os.path.lexists(path)
        try:
            (path / "spans").mkdir(parents=True, exist_ok=not self._is_new)
        except OSError as error:
            if isinstance(error, FileExistsError) and (path / "spans").exists():
                raise _not_empty(path) from error  # another run began at the same moment
            if self._is_new:
                self.discard()
            raise FirstlightError(
                f"cannot write a run to {path}: {error.strerror}",
                "choose another directory with --out",
            ) from error
        if earlier is None:
            try:
                self.write_header(header)
            except OSError:
                self.discard()
                raise
        else:
            (path / "footer.json").unlink(missing_ok=True)
            write_whole(path / "samples.jsonl", b"".join(map(_line, earlier)))
        self._samples: IO[bytes] = (path / "samples.jsonl").open("ab")

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        with naming(self.path / "samples.jsonl"):
            self._samples.close()
        if kind and issubclass(kind, Exception) and self._is_new and not self.written:
            self.discard()

    def discard(self) -> None:
        """Remove the run, and its directory unless that was there before."""
        for name in ("header.json", "footer.json", "samples.jsonl"):
            with suppress(OSError):
                (self.path / name).unlink()
        shutil.rmtree(self.path / "spans", ignore_errors=True)
        if not self._was_there:
            with suppress(OSError):  # where others have files there
                self.path.rmdir()

    def write_header(self, header: Header) -> None:
        """Write the header, or replace it: a run that is watched learns its points as they come."""
        write_whole(self.path / "header.json", msgspec.json.format(to_json(header)))

    def append(self, samples: Iterable[Sample]) -> None:
        """Append samples and flush them."""
        lines = [*map(_line, samples)]
        with naming(self.path / "samples.jsonl"):
            self.written += self._samples.write(b"".join(lines))
            self._samples.flush()
        self._count += len(lines)

    def append_spans(self, batch: int, spans: pl.DataFrame) -> None:
        """Write the spans of one traced batch."""
        frame = io.BytesIO()
        spans.match_to_schema(SPAN_SCHEMA).write_ipc(frame, compression="lz4")
        self.written += frame.getbuffer().nbytes
        write_whole(self.path / "spans" / f"{batch}.arrow", frame.getbuffer())

    def finish(self, footer: Footer) -> None:
        """Write the footer: how the run ended, and with how many samples."""
        whole = msgspec.structs.replace(footer, samples=self._count)
        write_whole(self.path / "footer.json", to_json(whole))


def check_empty(path: Path) -> None:
    """Raise FirstlightError if a directory has files already: a run needs an empty one."""
    with suppress(FileNotFoundError, NotADirectoryError):
        if any(path.iterdir()):
            raise _not_empty(path)


def _not_empty(path: Path) -> FirstlightError:
    return FirstlightError(f"{path} is not empty", "choose another directory with --out")


def _line(sample: Sample) -> bytes:
    return to_json(sample) + b"\n"


@dataclass
class _Kept:
    """Batches' spans in memory, and how many there are."""

    spans: dict[int, pl.DataFrame] = field(default_factory=dict)
    rows: int = 0


@dataclass(frozen=True)
class Run:
    """A run read back: its header, samples and (lazily) spans."""

    path: Path
    header: Header
    samples: list[Sample]
    footer: Footer | None
    _kept: _Kept = field(default_factory=_Kept, init=False, repr=False, compare=False)

    @cached_property
    def frame(self) -> pl.DataFrame:
        """One row per sample: each numeric field of ``Sample``, and a column per axis.

        Columns: the axes of the header; index, batch, instance, repetition (int); traced
        (bool); ending (str); latency, lateness, user_ns, system_ns (ns, null if not reached);
        lost (int).
        """
        rows = [
            {
                **{axis: sample.point.get(axis) for axis in self.header.axes},
                "index": sample.index,
                "batch": sample.batch,
                "instance": sample.instance,
                "repetition": sample.repetition,
                "traced": sample.traced,
                "ending": str(sample.ending),
                "latency": sample.latency,
                "lateness": sample.lateness,
                "user_ns": sample.user_ns,
                "system_ns": sample.system_ns,
                "lost": sample.lost,
            }
            for sample in self.samples
        ]
        columns = [*self.header.axes, *_FIGURES]
        return pl.DataFrame(
            rows, schema=columns, schema_overrides=_FIGURES, infer_schema_length=None
        )

    @cached_property
    def traced_batches(self) -> list[int]:
        """The batches that have spans, in order."""
        traced = {sample.batch for sample in self.samples if sample.traced}
        return [batch for batch in sorted(traced) if self._spans_file(batch).exists()]

    def span_batches(self) -> Iterator[tuple[int, pl.DataFrame]]:
        """The number and the spans of each traced batch, in order."""
        for batch in self.traced_batches:
            yield batch, self._spans(batch)

    def spans_of(self, *samples: Sample) -> pl.DataFrame:
        """The spans of some samples; of those that were not traced there are none."""
        wanted = pl.col("sample").is_in([sample.index for sample in samples])
        batches = sorted({sample.batch for sample in samples}.intersection(self.traced_batches))
        spans = [self._spans(batch).filter(wanted) for batch in batches]
        return pl.concat([pl.DataFrame(schema=SPAN_SCHEMA), *spans])

    def _spans(self, batch: int) -> pl.DataFrame:
        """The spans of a batch. Those of a small run are kept: several readers want them."""
        if batch in self._kept.spans:
            return self._kept.spans[batch]
        spans = _spans(self._spans_file(batch))
        if len(spans) + self._kept.rows <= _MOST_KEPT:
            self._kept.spans[batch] = spans
            self._kept.rows += len(spans)
        return spans

    def _spans_file(self, batch: int) -> Path:
        return self.path / "spans" / f"{batch}.arrow"


def read(path: Path) -> Run:
    """Read a run without changing any file. Raises BadRun.

    A truncated last line, as a kill leaves it, is ignored; any other damage is an error.
    """
    if not path.exists():
        raise BadRun(f"{path} does not exist", "give the directory that firstlight run printed")
    header_file = path / "header.json"
    if not header_file.is_file():
        runs = any(path.glob("*/header.json"))
        raise BadRun(
            f"{path} is not a run: it has no header.json",
            f"give the runs in it: {path}/*"
            if runs
            else "give the directory that firstlight run printed",
        )
    header = _header(header_file)
    footer_file = path / "footer.json"
    footer = _decode(footer_file, _content(footer_file), Footer) if footer_file.exists() else None
    samples = list(_samples(path / "samples.jsonl", header))
    if footer and footer.samples and len(samples) < footer.samples:
        raise BadRun(
            f"{path / 'samples.jsonl'} has {len(samples)} of the {footer.samples} samples that "
            "the run ended with",
            _DAMAGED,
        )
    return Run(path, header, samples, footer)


def _spans(file: Path) -> pl.DataFrame:
    content = _content(file)
    try:
        with _panics_unprinted():
            spans = pl.read_ipc(content)
            if spans.schema != SPAN_SCHEMA:
                spans = spans.match_to_schema(SPAN_SCHEMA)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise BadRun(f"cannot read {file}: {error}", "delete this file to read the rest") from error
    if any(spans[name].null_count() for name in _NEEDED) or any(
        np.any(spans[name].to_numpy() < 0) for name in ("pid", "tid")
    ):
        raise BadRun(f"{file} has a damaged span", "delete this file to read the rest")
    return spans


@contextmanager
def _panics_unprinted() -> Iterator[None]:
    """Polars prints each panic of its threads to standard error, beside raising it."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _header(file: Path) -> Header:
    raw = file.read_bytes()
    try:
        version = json.loads(raw)["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadRun(f"{file} is not a run's header: {error}", _DAMAGED) from error
    if version not in range(1, SCHEMA_VERSION + 1):
        raise BadRun(
            f"{file} has schema {version}, and this firstlight reads 1 to {SCHEMA_VERSION}",
            "use the firstlight that wrote it, or a newer one",
        )
    header = _decode(file, raw, Header)
    if version == 1:
        header = msgspec.structs.replace(header, presentation=_presentation(header))
    _check_axes(file, header)
    for point in header.points:
        _check_point(file, header, point)
    return header


def _check_axes(file: Path, header: Header) -> None:
    read = READ_OF_EXPERIMENTS.get(header.experiment, ()) + READ_OF_VIEWS.get(
        header.presentation.view, ()
    )
    needed = dict.fromkeys(("instances", *read)) if read else ()
    missing = [axis for axis in needed if axis not in header.axes]
    doubled = [axis for axis in header.axes if header.axes.count(axis) > 1 or axis in _FIGURES]
    if missing or doubled:
        raise BadRun(
            f"{file}: a run of {header.experiment} has no axis {missing[0]}"
            if missing
            else f"{file}: the axis {doubled[0]!r} is not the only column of that name",
            _DAMAGED,
        )


def _check_point(where: Path | str, header: Header, point: Point) -> None:
    missing = [axis for axis in header.axes if axis not in point]
    if missing:
        raise BadRun(f"{where}: the point {point} has no {missing[0]}", _DAMAGED)
    for axis in ("instances", *header.axes):
        if axis in point and axis in _LEAST and not _is_number(axis, point[axis]):
            raise BadRun(f"{where}: the point {point} has {point[axis]!r} {axis}", _DAMAGED)


def _is_number(axis: str, value: Setting) -> bool:
    if isinstance(value, bool | str):
        return False
    return _LEAST[axis] <= value < _MOST and (axis == "rate" or value == int(value))


def _presentation(header: Header) -> Presentation:
    """The presentation of a run of schema 1, by its experiment's name."""
    axes = {"network": "a pod ({series})", "runtime": "a {series} container",
            "method": "a network set-up request ({series})", "command": "{series}"}  # fmt: skip
    return Presentation(
        subject=next(
            (axes[axis] for axis in axes if axis in header.axes),
            "one start ({series}, {experiment})",
        ),
        view=_VIEWS.get(header.experiment, ""),
        counterpart=_COUNTERPARTS.get(header.experiment, ""),
        headline="traced" if header.experiment == "trace" else "untraced",
    )


_VIEWS = {
    "agile": "agile", "ablation": "ablation", "churn": "churn", "density": "density",
    "functions": "functions", "platforms": "platforms", "cni-breakdown": "cni",
    "hypervisor-builds": "builds", "unikernel-boot": "boots", "boot-protocol": "boots",
    "driver-loading": "boots", "unikernel-scale": "boots",
}  # fmt: skip
_COUNTERPARTS = {
    "container-creation": "the paper's Fig. 6", "network-setup": "the paper's Fig. 7",
    "unikernel-boot": "the paper's Fig. 3(a)", "hypervisor-builds": "the paper's Fig. 3(b)",
    "driver-loading": "the paper's Fig. 4", "unikernel-scale": "the paper's Fig. 5",
}  # fmt: skip


def _samples(file: Path, header: Header) -> Iterator[Sample]:
    if not file.exists():
        return
    lines = _content(file).split(b"\n")
    known: set[int] = set()
    for number, line in enumerate(lines[:-1], start=1):
        sample = _decode(f"{file}:{number}", line, Sample)
        _check_point(f"{file}:{number}", header, sample.point)
        if sample.index in known:
            raise BadRun(f"{file}:{number}: a second sample {sample.index}", _DAMAGED)
        known.add(sample.index)
        yield sample


def _content(file: Path) -> bytes:
    if not file.is_file():  # reading a pipe or a device may never end
        raise BadRun(f"{file} is not a regular file", _DAMAGED)
    return file.read_bytes()


def _decode(where: Path | str, raw: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRun(f"cannot read {where}: {error}", _DAMAGED) from error
