"""The figures of runs as plain data for ``--json``, with the keys of docs/schema.md.

Durations are integers in ns, shares and ratios are fractions. An estimate is
``{"value", "low", "high"}`` with its 95 % interval. What was not measured is null.
"""

from collections.abc import Sequence
from typing import Any

from firstlight.analysis import Analysis, figures
from firstlight.analysis.capacity import Capacity
from firstlight.analysis.figures import Boot, Part, PointFigures
from firstlight.claims import catalogue
from firstlight.claims.advice import Advice, advise
from firstlight.claims.advice.storms import STORMS
from firstlight.claims.engine import judge
from firstlight.model import Interval, Sample
from firstlight.report import answer, points
from firstlight.report.views import boots


def as_json(runs: Sequence[Analysis]) -> dict[str, Any]:
    """The figures of all runs: ``runs`` and ``claims``."""
    return {
        "runs": [_run(run) for run in runs],
        "claims": [
            {
                "id": verdict.id,
                "claim": verdict.claim,
                "verdict": verdict.verdict,
                "figure": verdict.figure,
                "paper": verdict.paper,
            }
            for verdict in judge(catalogue.ALL, runs)
        ],
    }


def _run(analysis: Analysis) -> dict[str, Any]:
    header = analysis.header
    return {
        "run": header.run,
        "path": str(analysis.run.path),
        "experiment": header.experiment,
        "question": header.question,
        "end_point": str(header.end_point),
        "started": header.started,
        "revision": header.revision,
        "seed": header.seed,
        "cold": header.cold,
        "environment": header.environment,
        "answer": answer.answer(analysis),
        "advice": boots.advice(analysis),
        "storms": [_storm(each) for each in advise(analysis, STORMS)],
        "warnings": answer.warnings(analysis),
        "skipped": [{"point": point, "reason": reason} for point, reason in header.skipped],
        "points": [_point(point) for point in analysis.points],
        "capacity": [_capacity(each) for each in analysis.capacities],
        "failed": [_failure(sample) for sample in analysis.run.samples if sample.latency is None],
    }


def _storm(advice: Advice) -> dict[str, Any]:
    return {
        "storm": advice.storm,
        "point": advice.point,
        "fact": advice.fact,
        "remedy": advice.remedy,
        "gain_ns": _ns(advice.gain),
        "share": advice.share,
        "evidence": [
            {"phase": phase, "cause": cause, "ns": ns} for phase, cause, ns in advice.evidence
        ],
    }


def _capacity(capacity: Capacity) -> dict[str, Any]:
    saturating = capacity.saturating_cores
    return {
        "point": capacity.point.point,
        "cores": capacity.cores,
        "cpu_ns": _ns(capacity.cpu),
        "locks": [{"lock": each.lock, "held_ns": _ns(each.held)} for each in capacity.sections],
        "starts_per_second_per_core": capacity.per_core,
        "starts_per_second_at_most": (
            capacity.rate(capacity.cores) if capacity.is_predicted else None
        ),
        "starts_per_second": _fraction(capacity.measured),
        "saturating_cores": saturating.value if saturating and capacity.is_predicted else None,
    }


def _point(point: PointFigures) -> dict[str, Any]:
    latency = point.latency
    return {
        "point": point.point,
        "series": point.series,
        "instances": point.instances,
        "ended": {str(ending): count for ending, count in point.ended.items()},
        "untraced": latency.count if latency else 0,
        "traced": point.traced,
        "traced_with_lost_events": point.lost,
        "latency_ns": {
            "median": _ns(latency.median if latency else None),
            "p95": _ns(latency.p95 if latency else None),
            "p99": _ns(latency.p99 if latency else None),
        },
        "all_ready_ns": _ns(point.all_ready),
        "lateness_p95_share_of_median": point.late,
        "traced_over_untraced": _fraction(point.overhead),
        "phases": [_part(part) for part in point.parts],
        "causes": [{"cause": cause, "share": share} for cause, share in point.causes()],
        "queues": [
            {
                "lock": queue.lock,
                "share": queue.share,
                "holders": [{"cause": name, "share": share} for name, share in queue.holders],
            }
            for queue in point.queues
        ],
        "boot": _boot(point.boot),
        "counts": points.counts(point),
        "steps": [{"step": name, "median_ns": _ns(took)} for name, took in figures.steps(point)],
    }


def _boot(boot: Boot | None) -> dict[str, Any] | None:
    if boot is None:
        return None
    return {
        "clock": boot.clock,
        "uncertainty_ns": boot.uncertainty,
        "phases": [{"phase": name, "median_ns": _ns(took)} for name, took in boot.phases],
    }


def _part(part: Part) -> dict[str, Any]:
    return {
        "phase": part.phase,
        "share": _fraction(part.share),
        "wall_ns": _ns(part.wall),
        "summed_ns": _ns(part.summed),
        "kernel_share": part.kernel,
        "causes": [{"cause": cause, "share": share} for cause, share in part.causes],
    }


def _failure(sample: Sample) -> dict[str, Any]:
    return {
        "sample": sample.index,
        "point": sample.point,
        "batch": sample.batch,
        "instance": sample.instance,
        "traced": sample.traced,
        "ending": str(sample.ending),
        "exit_status": sample.exit_status,
        "error": sample.error,
        "output": sample.output,
    }


def _ns(interval: Interval | None) -> dict[str, int] | None:
    if interval is None:
        return None
    return {name: round(value) for name, value in vars(interval).items()}


def _fraction(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else dict(vars(interval))
