"""Times of pods' networks: of plugins called by the lab, and of a cluster's pods.

Both give the same tables, so that claims C12 to C17 are judged by the same rules from either.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

import polars as pl

from firstlight.analysis import Analysis, pods
from firstlight.claims.engine import REPETITIONS, complete_batches
from firstlight.model import Sample

PAPERS_RUNTIME = "runc"


class Evidence(Protocol):
    """Times of setting up pods' networks, in ns, by the network's name."""

    def times(self, axis: str) -> dict[str, dict[int, pl.DataFrame]]:
        """Without the kernel's tracer, by the setting of an axis: batch and value."""

    def inside(self, phases: tuple[str, ...]) -> dict[str, pl.DataFrame]:
        """Of traced pods alone: batch, and the time in some phases (value) and in all (total)."""


class Plugins:
    """ADDs by the lab, without a runtime: ``cni-breakdown``, ``cni-background``, ``cni-burst``."""

    def __init__(self, analysis: Analysis) -> None:
        self._analysis = analysis

    def times(self, axis: str) -> dict[str, dict[int, pl.DataFrame]]:
        """The untraced ADDs."""
        return _by_setting(
            (str(sample.point["cni"]), int(sample.point[axis]), sample.batch, sample.latency or 0)
            for _, batch in complete_batches(self._analysis.run, traced=False)
            for sample in batch
        )

    def inside(self, phases: tuple[str, ...]) -> dict[str, pl.DataFrame]:
        """The traced ADDs of one pod alone."""
        known = _spent(self._analysis.breakdown, phases)
        return _by_name(
            (str(sample.point["cni"]), sample.batch, *known[sample.index])
            for sample in _alone(self._analysis)
            if sample.index in known
        )


class Pods:
    """The stage ``cni`` of a cluster's pods: ``kubernetes-pods``, ``kubernetes-background``."""

    def __init__(self, analysis: Analysis) -> None:
        self._analysis = analysis

    def times(self, axis: str) -> dict[str, dict[int, pl.DataFrame]]:
        """The untraced pods."""
        return _by_setting(
            (str(sample.point["network"]), int(sample.point[axis]), sample.batch, time)
            for _, batch in complete_batches(self._analysis.run, traced=False)
            for sample in batch
            if self._counts(sample) and (time := pods.network(sample))
        )

    def inside(self, phases: tuple[str, ...]) -> dict[str, pl.DataFrame]:
        """The traced pods that started alone."""
        known = _spent(self._analysis.stages.filter(pl.col("stage") == "cni"), phases)
        return _by_name(
            (str(sample.point["network"]), sample.batch, *known[sample.index])
            for sample in _alone(self._analysis)
            if self._counts(sample) and sample.index in known
        )

    def _counts(self, sample: Sample) -> bool:
        return sample.point.get("runtime") == PAPERS_RUNTIME


def _spent(times: pl.DataFrame, phases: tuple[str, ...]) -> dict[int, tuple[int, int]]:
    """The time of these phases, and all time, in ns, of each sample."""
    wall = pl.col("wall")
    of_phases = wall.filter(pl.col("phase").is_in(phases)).sum()
    sums = times.group_by("sample").agg(value=of_phases, total=wall.sum())
    return {sample: (value, total) for sample, value, total in sums.iter_rows()}


def _alone(analysis: Analysis) -> Iterator[Sample]:
    for size, batch in complete_batches(analysis.run, traced=True):
        if size == 1 and not batch[0].point.get("background"):
            yield batch[0]


def _by_setting(
    rows: Iterable[tuple[str, int, int, int]],
) -> dict[str, dict[int, pl.DataFrame]]:
    frame = pl.DataFrame(list(rows), schema=["name", "setting", "batch", "value"], orient="row")
    points: dict[str, dict[int, pl.DataFrame]] = {}
    for (name, setting), part in frame.group_by("name", "setting"):
        if part["batch"].n_unique() >= REPETITIONS:
            points.setdefault(str(name), {})[int(str(setting))] = part.select("batch", "value")
    return points


def _by_name(rows: Iterable[tuple[str, int, int, int]]) -> dict[str, pl.DataFrame]:
    frame = pl.DataFrame(list(rows), schema=["name", "batch", "value", "total"], orient="row")
    return {
        str(name): part.drop("name")
        for (name,), part in frame.group_by("name")
        if part["batch"].n_unique() >= REPETITIONS
    }
