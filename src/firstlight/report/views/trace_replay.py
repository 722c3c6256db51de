"""Costs and gains of pools that follow the demand, in the replay and over a simulated day."""

from collections.abc import Iterator

import numpy as np

from firstlight.analysis import Analysis
from firstlight.analysis.figures import PointFigures, batches, latencies
from firstlight.report.points import counts, find, median, middle
from firstlight.report.records import Table, View
from firstlight.units import duration, percent

_FOLLOWS = "follows"


_OF_DAY = {"functions", "day", "fixed day", "size", "p99", "fixed p99", "ready", "made"}


def _day(analysis: Analysis) -> dict[str, float]:
    """The counts of the simulated day; empty if there is none."""
    point = find(analysis, pool=_FOLLOWS)
    counted = counts(point) if point else {}
    return counted if counted.keys() >= _OF_DAY else {}


def _answer(analysis: Analysis) -> str | None:
    day = _day(analysis)
    if not day:
        return _replayed(analysis)
    less = 1 - day["day"] / day["fixed day"]
    return (
        f"Over a simulated day of {day['functions']:.0f} functions, with the costs measured here, "
        f"pools that follow the demand hold {percent(abs(less))} {'fewer' if less > 0 else 'more'} "
        f"idle MiB·s than the best fixed size, {day['size']:.0f} forks of each function. "
        f"Their P99s are {duration(day['p99'])} and {duration(day['fixed p99'])}. "
        f"{_played(analysis)}"
    ).rstrip()


def _played(analysis: Analysis) -> str:
    """How pools that follow compare in the hour that was played with the best fixed size."""
    follows = find(analysis, pool=_FOLLOWS)
    mine = counts(follows).get("idle") if follows else None
    if follows is None or not mine:
        return ""
    tail = duration(_tail(follows))
    others = [
        (idle, point)
        for point in analysis.points
        if point.latency and point.instances == follows.instances and point is not follows
        and _tail(point) <= _tail(follows) and (idle := counts(point).get("idle"))
    ]  # fmt: skip
    if not others:
        return f"In the hour that was played, no fixed size has as low a P99 as theirs, {tail}."
    idle, best = min(others, key=lambda each: each[0])
    less = 1 - mine / idle
    return (
        f"In the hour that was played they hold {percent(abs(less))} "
        f"{'fewer' if less > 0 else 'more'} than pools of {best.point['pool']}, the cheapest whose "
        f"P99 was not higher in these calls: {duration(_tail(best))} against {tail}."
    )


def _tail(point: PointFigures) -> float:
    return float(np.quantile(latencies(point.untraced_samples), 0.99))


def _replayed(analysis: Analysis) -> str | None:
    """How long a call takes with each pool, of the points of most calls."""
    measured = [point for point in analysis.points if point.latency]
    calls = max((point.instances for point in measured), default=0)
    clauses = [
        f"{median(point)} where the pool "
        + ("follows the demand" if point.point["pool"] == _FOLLOWS else f"is {point.point['pool']}")
        for point in measured
        if point.instances == calls
    ]
    if not clauses:
        return None
    return (
        f"In a replay of {calls} calls on this machine, a call reaches its {analysis.end_point} in "
        f"{', '.join(clauses)} (medians)."
    )


def _tails(point: PointFigures) -> str:
    """The P99 of all calls, and the range of those of single batches."""
    samples = point.untraced_samples
    times, of = latencies(samples), batches(samples)
    each = [float(np.quantile(times[of == batch], 0.99)) for batch in np.unique(of)]
    least, most = duration(min(each)), duration(max(each))
    return f"{duration(_tail(point))}" + (f" ({least}–{most})" if len(each) > 1 else "")


def _tables(analysis: Analysis) -> Iterator[Table]:
    rows = []
    for point in analysis.points:
        counted = counts(point)
        if not point.latency or not counted:
            continue
        hits = counted.get("hits", 0.0)
        starts = hits + counted.get("misses", 0.0)
        share = percent(hits / starts) if starts else "–"
        rows.append(
            (str(point.point["pool"]), duration(middle(point)), _tails(point), share,
             f"{counted.get('idle', 0):.0f}")
        )  # fmt: skip
    if rows:
        headings = ("pool", "median", "P99", "found a fork", "idle MiB·s")
        yield Table("the replay: an hour in a minute", headings, tuple(rows))
    if day := _day(analysis):
        yield Table(
            f"the simulated day: a call takes {duration(day['ready'])} with a fork that waits, "
            f"{duration(day['made'])} without",
            ("pool", "P99", "idle MiB·s"),
            ((_FOLLOWS, duration(day["p99"]), f"{day['day']:.0f}"),
             (f"fixed {day['size']:.0f}", duration(day["fixed p99"]), f"{day['fixed day']:.0f}")),
        )  # fmt: skip


VIEW = View(answer=_answer, tables=_tables)
