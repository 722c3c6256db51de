"""What is computed from a run: phases, causes, figures, comparisons. Pure functions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import polars as pl

from firstlight.analysis import breakdown, capacity, figures, holders
from firstlight.analysis.capacity import Capacity
from firstlight.analysis.figures import PointFigures
from firstlight.analysis.spent import Spent
from firstlight.model import EndPoint, Header, Sample
from firstlight.store import Run


@dataclass(frozen=True)
class Analysis:
    """A run and everything computed from it: each result once, when first needed.

    Tables, page, pictures, claims and exports all read it, so they agree.
    """

    run: Run
    _timelines: dict[int, pl.DataFrame] = field(default_factory=dict, init=False, repr=False)

    @property
    def header(self) -> Header:
        """The run's."""
        return self.run.header

    @property
    def end_point(self) -> EndPoint:
        """The end point of every latency."""
        return self.run.header.end_point

    @cached_property
    def breakdown(self) -> pl.DataFrame:
        """Each traced, ready sample's time by phase, shade and cause: ``breakdown.SCHEMA``."""
        followed = breakdown.breakdown(self.run)
        if self.stages.is_empty():
            return followed
        return pl.concat([breakdown.of_stages(self.stages), followed])

    @cached_property
    def stages(self) -> pl.DataFrame:
        """The time of starts that components report: ``breakdown.STAGES``."""
        return breakdown.stages(self.run)

    @cached_property
    def spent(self) -> Spent:
        """The break-down as arrays."""
        return Spent.read(self.breakdown)

    @cached_property
    def locks(self) -> holders.Locks:
        """How long samples waited for locks, and what the holders did."""
        return holders.read(self.run)

    @cached_property
    def points(self) -> tuple[PointFigures, ...]:
        """The figures of each point, in the order of the header."""
        return figures.points(self.run, self.spent, self.locks.holders)

    @cached_property
    def capacities(self) -> tuple[Capacity, ...]:
        """What limits the rate of starts, of each series whose starts were traced at once."""
        known = self.header.environment.get("cores")
        cores = known if isinstance(known, int) and known > 0 else 1
        held = self.locks.held
        return tuple(capacity.capacities(self.points, self.breakdown, held, cores))

    @property
    def series(self) -> list[str]:
        """The names of the series, in the order of the points."""
        return list(dict.fromkeys(point.series for point in self.points))

    def of(self, series: str) -> list[PointFigures]:
        """The measured points of one series, by instances."""
        chosen = [point for point in self.points if point.series == series and point.latency]
        return sorted(chosen, key=lambda point: point.instances)

    def ends(self, series: str) -> list[PointFigures]:
        """The points of one series with the fewest and the most instances."""
        points = self.of(series)
        return points[:1] + points[-1:] if len(points) > 1 else points

    @property
    def lead(self) -> list[PointFigures]:
        """The ends of the series for the answer: the first whose starts overlap."""
        parallel = [point.series for point in self.points if point.parallel and point.latency]
        names = parallel or [point.series for point in self.points if point.latency]
        return self.ends(names[0]) if names else []

    def timeline(self, sample: Sample) -> pl.DataFrame:
        """The critical path of one ready sample in order: ``breakdown.TIMELINE``."""
        return self.timelines([sample])[0]

    def timelines(self, samples: Sequence[Sample]) -> list[pl.DataFrame]:
        """The critical paths of some ready samples: quicker than one by one."""
        missing = [sample for sample in samples if sample.index not in self._timelines]
        self._timelines.update(breakdown.timelines(self.run, missing))
        return [self._timelines[sample.index] for sample in samples]

    def programs(self, sample: Sample) -> dict[int, str]:
        """The programs that each process of a sample executed, by pid; before that its parent's.

        A program executed through /proc (by descriptor, or as ``exe``) keeps its earlier name.
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
        """The execs and forks of a sample in order: kind, program, process, child."""
        own = self.run.spans_of(sample).filter(pl.col("kind").is_in(["exec", "fork"]))
        for kind, detail, pid, child in (
            own.sort("start")
            .select(pl.col("kind", "detail").cast(pl.String), "pid", "peer")
            .iter_rows()
        ):
            yield kind, Path(detail or "").name, pid, child
