"""Stores watched starts as runs, so that report, compare and exports work on them.

A run is closed when it is large or old, and the oldest runs are removed; see ``Limits``.
"""

import shutil
import sys
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
_MOST_NAMESPACES = 20  # keeps the axes of a run readable, and metrics bounded


@dataclass(frozen=True)
class Limits:
    """A run ends after ``starts`` starts or ``seconds``; ``runs`` of them are kept."""

    starts: int = 10_000
    seconds: float = 86_400.0
    runs: int = 7


def sample_of(start: Start, index: int, lost: int, point: Point) -> Sample:
    """A watched start as a sample; failed if the container's program was never executed."""
    failed = start.ready is None
    return Sample(
        index=index,
        batch=index,
        instance=0,
        repetition=index,
        point=point,
        traced=True,
        ending=Ending.FAILED if failed else Ending.READY,
        stamps=Stamps(start.began, start.began, start.ready, start.ready),
        pid=start.root,
        error="the container's program was not executed" if failed else None,
        lost=lost,
        labels={"id": start.container, **start.labels},
    )


class Keeper:
    """Writes starts below ``directory``, or into a directory that is deleted on exit."""

    def __init__(self, directory: Path, limits: Limits, *, keep: bool = True) -> None:
        self._directory, self._limits, self._keep = directory, limits, keep
        self._namespaces: dict[str, None] = {}
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
        if not self._keep:
            shutil.rmtree(self._directory, ignore_errors=True)

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
            sample = sample_of(start, self._count, window.lost, self._point(start))
            spans = window.spans_of(start, sample.index)
            self._writer.append_spans(sample.batch, spans)
            self._writer.append([sample])
            self._count += 1
            kept.append((sample, spans))
        return kept

    def _point(self, start: Start) -> Point:
        """The point of a start; namespaces beyond the first few become ``other``."""
        namespace = start.labels.get("namespace", "-")
        if namespace not in self._namespaces and len(self._namespaces) >= _MOST_NAMESPACES:
            namespace = _OTHER
        self._namespaces.setdefault(namespace)
        point: Point = {
            "runtime": start.labels["runtime"],
            "engine": start.labels.get("engine", "-"),
            "namespace": namespace,
            "instances": 1,
        }
        if point not in self._header.points:
            self._header = msgspec.structs.replace(
                self._header, points=(*self._header.points, point)
            )
            self._writer.write_header(self._header)
        return point

    def _is_full(self) -> bool:
        age = (datetime.now(UTC) - self._opened).total_seconds()
        return self._count >= self._limits.starts or age >= self._limits.seconds

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
            revision=revision(),
            repetitions=1,
            environment=facts.collect(),
            presentation=Presentation(subject="a start ({series})", headline="traced"),
        )
        self._writer = Writer(self._directory / name, self._header)

    def _close(self) -> None:
        self._writer.finish(Footer(ended=datetime.now(UTC).isoformat(timespec="seconds")))
        self._writer.__exit__()
        runs = sorted(self._directory.glob("watch-*"))
        for old in runs[: -self._limits.runs]:
            shutil.rmtree(old, ignore_errors=True)
