"""Where the time of one pod and of many goes, what their networks cost, and whether the components'
own figures agree."""

from collections.abc import Iterator

import numpy as np
import polars as pl

from firstlight.analysis import Analysis, phases, pods
from firstlight.analysis.figures import PointFigures
from firstlight.model import OPERATIONS, Sample
from firstlight.report.records import Table, View
from firstlight.units import duration, duration_interval, percent, percent_interval

_INSIDE = 3
"""As many phases of a network's set-up are named."""
_METRICS = {
    "run_podsandbox": "kubelet",
    "network": "containerd",
    "create_container": "kubelet",
    "start_container": "kubelet",
}


def _tables(analysis: Analysis) -> Iterator[Table]:
    for series in analysis.series:
        ends = [point for point in analysis.ends(series) if point.traced_samples]
        if ends:
            yield _where(series, ends)
    networks = list(_networks(analysis))
    if networks:
        yield Table(
            "what the networks cost a pod",
            ("network", "starts", "network's set-up", "of the pod", "mostly"),
            tuple(networks),
        )
    operations = [row for point in analysis.points for row in _operations(point)]
    if operations:
        yield Table(
            "a pod's stages by phases, by the components' spans and by their metrics (means)",
            ("operation", "phases", "span", "apart", "metric", "apart"),
            tuple(operations),
            "The phases of start_container end at the first instruction, before it returns; "
            "the network is the phases sandbox.netns and cni.",
        )


def _where(series: str, ends: list[PointFigures]) -> Table:
    headings = ["phase"]
    for point in ends:
        headings += [f"{point.instances} at once" if point.instances > 1 else "alone", "share"]
    shares = [{part.phase: part for part in point.parts} for point in ends]
    rows = []
    for phase in phases.ORDER:
        if any(phase in each and each[phase].seen for each in shares):
            row = [phase]
            for each in shares:
                part = each.get(phase)
                row += [duration_interval(part.wall), percent_interval(part.share)] if part else \
                    ["–", "–"]  # fmt: skip
            rows.append(tuple(row))
    total = ["the start"]
    for point in ends:
        total += [duration_interval(point.latency.median) if point.latency else "–", ""]
    worst = ", ".join(
        f"{percent(_unexplained(point))} of one pod at {point.instances}" for point in ends
    )
    whole = (*rows, tuple(total))
    brief = tuple(tuple(cell.partition(" (")[0] for cell in row) for row in whole)
    return Table(
        f"where the time of a pod goes ({series})",
        tuple(headings),
        whole,
        f"Unattributed at most: {worst}.",
        (tuple(headings), brief),
    )


def _unexplained(point: PointFigures) -> float:
    """The largest unattributed share of a pod."""
    return max(
        pods.account(sample).get(phases.UNATTRIBUTED, 0) / (sample.latency or 1)
        for sample in point.traced_samples
    )


def _networks(analysis: Analysis) -> Iterator[tuple[str, ...]]:
    for point in analysis.points:
        setups = [time for sample in point.traced_samples if (time := pods.network(sample))]
        if "network" not in point.point or not setups:
            continue
        of = [sample.latency or 1 for sample in point.traced_samples]
        yield (
            str(point.point["network"]),
            str(point.instances),
            duration(float(np.median(setups))),
            percent(sum(setups) / sum(of)),
            _mostly(analysis, [sample for sample in point.traced_samples if sample.traced]),
        )


def _mostly(analysis: Analysis, samples: list[Sample]) -> str:
    """The largest phases of the plugins' work, with their shares of it."""
    if not samples:
        return "–"
    parts = analysis.stages.filter(
        pl.col("sample").is_in([sample.index for sample in samples]), stage="cni"
    )
    total = parts["wall"].sum()
    largest = parts.group_by("phase").agg(pl.col("wall").sum()).sort("wall", descending=True)
    return ", ".join(
        f"{phase} {percent(length / total)}" for phase, length in largest.head(_INSIDE).iter_rows()
    )


def _operations(point: PointFigures) -> Iterator[tuple[str, ...]]:
    """The mean of each operation over a point's pods, by three sources."""
    samples = [sample for sample in point.traced_samples if sample.telemetry]
    metrics = [sample.counts for sample in samples if sample.counts]
    operations = [pods.of_operations(sample) for sample in samples]
    for name in OPERATIONS if operations else ():
        both = [each[name] for each in operations]
        by_phases, span = (float(np.mean(each)) for each in zip(*both, strict=True))
        metric = float(np.mean([each.get(f"{name} ns", 0.0) for each in metrics] or [0.0]))
        yield (
            f"{name}, {point.name}",
            duration(by_phases),
            duration(span),
            _apart(by_phases, span),
            f"{duration(metric)} ({_METRICS[name]})" if metric else "–",
            _apart(by_phases, metric),
        )


def _apart(a: float, b: float) -> str:
    return percent(abs(a - b) / b) if b else "–"


VIEW = View(tables=_tables)
