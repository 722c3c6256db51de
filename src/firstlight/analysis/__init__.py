"""What is computed from a run: phases, causes, figures, comparisons. Pure functions of it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import polars as pl

from firstlight.analysis import breakdown, figures, holders
from firstlight.analysis.figures import PointFigures
from firstlight.model import EndPoint, Header, Sample
from firstlight.store import Run


@dataclass(frozen=True)
class Analysis:
    """One run and all that is computed from it: each thing once, when it is first asked for.

    Tables, page, pictures, claims and exports all read it, so that they agree.
    """

    run: Run
    _timelines: dict[int, pl.DataFrame] = field(default_factory=dict, init=False, repr=False)

    @property
    def header(self) -> Header:
        """The run's."""
        return self.run.header

    @property
    def end_point(self) -> EndPoint:
        """What every latency here ends at."""
        return self.run.header.end_point

    @cached_property
    def breakdown(self) -> pl.DataFrame:
        """Each traced, ready sample's time by phase, shade and cause: ``breakdown.SCHEMA``."""
        return breakdown.breakdown(self.run)

    @cached_property
    def holders(self) -> pl.DataFrame:
        """How long samples queued for locks, and what their holders did: ``holders.SCHEMA``."""
        return holders.holders(self.run)

    @cached_property
    def points(self) -> tuple[PointFigures, ...]:
        """The figures of each point, in the order of the header."""
        return figures.points(self.run, self.breakdown, self.holders)

    @property
    def series(self) -> list[str]:
        """The names of what is compared, in the order of the points."""
        return list(dict.fromkeys(point.series for point in self.points))

    def of(self, series: str) -> list[PointFigures]:
        """The points of one series that were measured, by instances."""
        chosen = [point for point in self.points if point.series == series and point.latency]
        return sorted(chosen, key=lambda point: point.instances)

    def ends(self, series: str) -> list[PointFigures]:
        """The points of one series with the fewest and the most instances."""
        points = self.of(series)
        return points[:1] + points[-1:] if len(points) > 1 else points

    @property
    def lead(self) -> list[PointFigures]:
        """The ends of the series that the answer is about: the first whose starts overlap."""
        parallel = [point.series for point in self.points if point.parallel and point.latency]
        names = parallel or [point.series for point in self.points if point.latency]
        return self.ends(names[0]) if names else []

    def timeline(self, sample: Sample) -> pl.DataFrame:
        """The critical path of one ready sample in order: ``breakdown.TIMELINE``."""
        if sample.index not in self._timelines:
            self._timelines[sample.index] = breakdown.timeline(self.run, sample)
        return self._timelines[sample.index]

    def programs(self, sample: Sample) -> dict[int, str]:
        """What each process of a sample executed in turn, by its id; its parent's before that.

        A program executed through /proc (by descriptor, or as ``exe``) keeps the name that it had.
        """
        names: dict[int, str] = {}
        for kind, program, pid, child in self._ancestry(sample):
            if kind == "fork":
                if pid in names:
                    names.setdefault(child, names[pid].rpartition(" → ")[2])
            elif not (program.isdigit() or program == "exe"):
                before = names.get(pid)
                names[pid] = program if before in (None, program) else f"{before} → {program}"
        return names

    def _ancestry(self, sample: Sample) -> Iterator[tuple[str, str, int, int]]:
        """Each exec and fork of a sample in order: its kind, program, process, and child."""
        own = self.run.spans_of(sample).filter(pl.col("kind").is_in(["exec", "fork"]))
        for kind, detail, pid, child in (
            own.sort("start")
            .select(pl.col("kind", "detail").cast(pl.String), "pid", "peer")
            .iter_rows()
        ):
            yield kind, Path(detail or "").name, pid, child
