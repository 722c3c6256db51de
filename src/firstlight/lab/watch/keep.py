"""Stores watched starts as runs, so that report, compare and exports work on them.

A run is closed when it is large or old, and old runs are removed; see ``Limits``.
"""

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import msgspec
import polars as pl

from firstlight.host import facts
from firstlight.lab.runner import revision
from firstlight.lab.watch.follow import Window
from firstlight.lab.watch.starts import Start
from firstlight.model import (
    Ending,
    EndPoint,
    Footer,
    Header,
    Point,
    Presentation,
    Sample,
    Stamps,
)
from firstlight.store import Writer

AXES = ("runtime", "engine", "namespace", "instances")
_OTHER = "other"
_PARTS, _DAY_SECONDS = 7, 86_400
_NAME = re.compile(r"watch-\d{8}T\d{6}\.\d{6}")
_LONGEST = 256  # of a name, in characters
_MOST_NAMESPACES = 20  # keeps the axes of a run readable, and metrics bounded


@dataclass(frozen=True)
class Limits:
    """Runs of more than ``days``, and the oldest of those larger than ``total`` bytes together, are
    removed. A run ends after ``starts`` starts or a seventh of either limit, so that what is
    removed is a small part.
    """

    total: int = 1 << 30
    days: float = 7.0
    starts: int = 10_000

    @property
    def seconds(self) -> float:
        """The longest time that one run covers."""
        return self.days * _DAY_SECONDS / _PARTS

    @property
    def size(self) -> int:
        """The size at which a run ends, in bytes."""
        return self.total // _PARTS


def sample_of(start: Start, index: int, window: Window, point: Point) -> Sample:
    """A watched start as a sample; failed if the container's program was never executed."""
    failed = start.ready is None
    return Sample(
        index=index,
        batch=index,
        instance=0,
        repetition=index,
        point=point,
        traced=start.traced,
        ending=Ending.FAILED if failed else Ending.READY,
        stamps=Stamps(start.began, start.began, start.ready, start.ready),
        pid=start.root,
        error="the container's program was not executed" if failed else None,
        lost=window.lost,
        labels={
            name: plain(text) for name, text in {"id": start.container, **start.labels}.items()
        },
    )


def plain(text: str) -> str:
    """A name that others chose, fit for a terminal, a page and a metric's label."""
    shown = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"


class Samples:
    """Turns starts into samples. Namespaces beyond the first few become ``other``."""

    def __init__(self) -> None:
        self._namespaces: dict[str, None] = {}
        self._count = 0

    def add(self, window: Window) -> Iterator[tuple[Sample, pl.DataFrame]]:
        """Each start of a window as a sample, with its spans."""
        for start in window.starts:
            yield self.sample(start, self._count, window), window.spans_of(start, self._count)
            self._count += 1

    def sample(self, start: Start, index: int, window: Window) -> Sample:
        """A start as the sample with this index."""
        namespace = plain(start.labels.get("namespace", "-"))
        if namespace not in self._namespaces and len(self._namespaces) >= _MOST_NAMESPACES:
            namespace = _OTHER
        self._namespaces.setdefault(namespace)
        point: Point = {
            "runtime": plain(start.labels["runtime"]),
            "engine": plain(start.labels.get("engine", "-")),
            "namespace": namespace,
            "instances": 1,
        }
        return sample_of(start, index, window, point)


class Keeper:
    """Writes starts as runs below ``directory``."""

    def __init__(self, directory: Path, limits: Limits) -> None:
        self._directory, self._limits = directory, limits
        self._environment, self._revision = facts.collect(), revision()
        self._samples = Samples()
        self._header: Header
        self._writer: Writer

    def __enter__(self) -> "Keeper":
        self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    @property
    def path(self) -> Path:
        """The directory of the current run."""
        return self._writer.path

    def add(self, window: Window) -> list[tuple[Sample, pl.DataFrame]]:
        """Write a window's starts; returns each as a sample, with its spans."""
        kept = []
        for start in window.starts:
            if self._is_full():
                self._close()
                self._open()
            sample = self._samples.sample(start, self._count, window)
            self._note(sample.point)
            spans = window.spans_of(start, sample.index)
            if sample.traced:
                self._writer.append_spans(sample.batch, spans)
            self._writer.append([sample])
            self._count += 1
            kept.append((sample, spans))
        return kept

    def _note(self, point: Point) -> None:
        if point not in self._header.points:
            self._header = msgspec.structs.replace(
                self._header, points=(*self._header.points, point)
            )
            self._writer.write_header(self._header)

    def _is_full(self) -> bool:
        age = (datetime.now(UTC) - self._opened).total_seconds()
        limits = self._limits
        return (
            self._count >= limits.starts
            or age >= limits.seconds
            or not self.path.exists()  # somebody has removed it
            or (self._count > 0 and self._writer.written >= limits.size)
        )

    def _open(self) -> None:
        self._opened, self._count = datetime.now(UTC), 0
        name = f"watch-{self._opened:%Y%m%dT%H%M%S.%f}"
        self._header = Header(
            run=name,
            experiment="watch",
            question="Where do the starts on this node spend their time?",
            end_point=EndPoint.FIRST_INSTRUCTION,
            axes=AXES,
            points=(),
            argv=tuple(sys.argv),
            seed=0,
            started=self._opened.isoformat(timespec="seconds"),
            revision=self._revision,
            repetitions=1,
            environment=self._environment,
            presentation=Presentation(subject="a start ({series})", headline="all"),
        )
        self._writer = Writer(self._directory / name, self._header)

    def _close(self) -> None:
        if self.path.exists():
            self._writer.finish(Footer(ended=datetime.now(UTC).isoformat(timespec="seconds")))
        self._writer.__exit__()
        self._remove_old()

    def _remove_old(self) -> None:
        oldest = datetime.now(UTC).timestamp() - self._limits.days * _DAY_SECONDS
        total = 0
        for run in sorted(self._directory.glob("watch-*"), reverse=True):
            if not _NAME.fullmatch(run.name):
                continue  # what others keep beside the runs
            with suppress(FileNotFoundError):  # somebody removes it, too
                total += _size(run)
                if total > self._limits.total or run.stat().st_mtime < oldest:
                    shutil.rmtree(run, ignore_errors=True)


def _size(run: Path) -> int:
    """The size of a run's files in bytes."""
    return sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
