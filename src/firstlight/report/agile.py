"""What runs of the agile runtime say: the sentence on top, and each experiment's own table."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from firstlight.analysis import figures, stats
from firstlight.analysis.figures import Figures, PointFigures, batches, latencies
from firstlight.analysis.stats import Floats
from firstlight.model import EndPoint, Interval, Sample
from firstlight.report.tables import Table
from firstlight.units import digits, duration, duration_interval, percent, ratio_interval

KEEPS_UP = 0.95
"""A pool keeps up with its requests when it has a part for this share of them."""
_BASES = {"sandboxes": "nothing", "everything": "nothing"}
_PACKET = "packet"


@dataclass(frozen=True)
class Worth:
    """What one prepared part is worth to one start of ``instances`` at once.

    ``longer`` is the median without it over the median with it; ``extra`` their difference, ns.
    ``end`` is what the times end at: the run's end point, or the first packet's answer.
    """

    part: str
    instances: int
    end: str
    median: Interval
    longer: Interval
    extra: float


def answer(run: Figures) -> str | None:
    """The answer of a run of the agile runtime; None for other runs, and for one too thin."""
    say = _ANSWERS.get(run.run.header.experiment)
    return say(run) if say else None


def table(run: Figures) -> Table | None:
    """The table that a run has besides its latencies; None where there is none."""
    make = _TABLES.get(run.run.header.experiment)
    return make(run) if make else None


def worth(run: Figures) -> list[Worth]:
    """What each part that an ablation left out is worth, by end, instances and place.

    To the run's end point with each number of instances, and to the first packet with the fewest.
    A part is compared with the same start with it: sandboxes and everything with a start that
    lacks nothing, the other parts with one that only lacks sandboxes, for those hold them all.
    """
    found = []
    fewest = min((point.instances for point in run.points), default=1)
    for point in run.points:
        part = str(point.point["without"])
        base = _find(run, without=_BASES.get(part, "sandboxes"), instances=point.instances)
        if part == "nothing" or point.latency is None or base is None:
            continue
        ends = [(str(run.end_point), latencies), (str(EndPoint.FIRST_PACKET), _to_packet)]
        both = point.instances == fewest and run.end_point is not EndPoint.FIRST_PACKET
        for end, times in ends if both else ends[:1]:
            without, having = times(point.untraced_samples), times(base.untraced_samples)
            if not (without.size == len(point.untraced_samples) and having.size):
                continue
            groups = batches(point.untraced_samples), batches(base.untraced_samples)
            found.append(
                Worth(
                    part, point.instances, end,
                    stats.quantile_interval(without, 0.5, groups=groups[0]),
                    stats.ratio_interval(without, having, groups_a=groups[0], groups_b=groups[1]),
                    float(np.median(without) - np.median(having)),
                )
            )  # fmt: skip
    return sorted(found, key=lambda one: (one.end != str(run.end_point), one.instances))


def counts(point: PointFigures) -> dict[str, float]:
    """What the backend counted over a batch: medians over the point's untraced batches."""
    each = [sample.counts for sample in point.untraced_samples if sample.counts]
    return {name: float(np.median([one[name] for one in each])) for name in (each or [{}])[0]}


def _to_packet(samples: Sequence[Sample]) -> Floats:
    """From the intended arrival to the first packet's answer, of samples that have one, in ns."""
    ends = [
        step.end - sample.stamps.intended
        for sample in samples
        for step in sample.steps
        if step.name == _PACKET
    ]
    return np.array(ends, dtype=np.float64)


def _find(run: Figures, **setting: object) -> PointFigures | None:
    for point in run.points:
        if point.latency and setting.items() <= point.point.items():
            return point
    return None


def _over(slow: PointFigures, fast: PointFigures, q: float = 0.5) -> Interval:
    """By how much the one's quantile is that of the other."""
    return stats.ratio_interval(
        latencies(slow.untraced_samples),
        latencies(fast.untraced_samples),
        q=q,
        groups_a=batches(slow.untraced_samples),
        groups_b=batches(fast.untraced_samples),
    )


def _last_over(slow: PointFigures, fast: PointFigures) -> Interval:
    """The same of the times until the last start of a batch is ready."""
    return stats.ratio_interval(_spans(slow), _spans(fast))


def _spans(point: PointFigures) -> Floats:
    """How long each batch took of which every start was ready, in ns."""
    size = Counter(sample.batch for sample in point.untraced_samples)
    return figures.makespans(s for s in point.untraced_samples if size[s.batch] == point.instances)


def _median(point: PointFigures) -> str:
    assert point.latency
    return duration_interval(point.latency.median)


def _agile(run: Figures) -> str | None:
    runtime = next((s for s in run.series if " + " in s), "")
    one, slow = _find(run, backend="agile", instances=1), _find(run, backend=runtime, instances=1)
    if not (one and slow):
        return None
    sentence = (
        f"On this machine an agile start takes {_median(one)} to its {run.end_point}, "
        f"{ratio_interval(_over(slow, one))} faster than {runtime}"
    )
    if whole := _find(run, backend="agile-ready", instances=1):
        sentence += f"; from a whole sandbox {_median(whole)}, {ratio_interval(_over(slow, whole))}"
    pooled = f"{runtime.rpartition(' + ')[0]} + pooled"
    if pool := _find(run, backend=pooled, instances=1):
        sentence += f"; {pooled}, {_median(pool)}, {ratio_interval(_over(slow, pool))}"
    most = max(p.instances for p in run.of("agile"))
    many, slow = (_find(run, backend=name, instances=most) for name in ("agile", runtime))
    if most > 1 and many and slow and many.all_ready and slow.all_ready:
        sentence += (
            f". With {most} at once the last is ready after "
            f"{duration_interval(many.all_ready)}, {ratio_interval(_last_over(slow, many))} faster"
        )
        whole = _find(run, backend="agile-ready", instances=most)
        if whole and whole.all_ready:
            sentence += (
                f"; from whole sandboxes after {duration_interval(whole.all_ready)}, "
                f"{ratio_interval(_last_over(slow, whole))}"
            )
    return sentence + "."


_HANDLERS = {
    "zygote": "a fork of a warm Python runs its handler's first line after {}",
    "zygote-ready": "one that waits for its event after {}",
    "wasm": "a WebAssembly function runs after {}",
}
_CONTAINER = "python3 in runc"


def _functions(run: Figures) -> str | None:
    slow = _find(run, function=_CONTAINER, instances=1)
    kinds = {name: _find(run, function=name, instances=1) for name in _HANDLERS}
    if not any(kinds.values()):
        return None
    clauses = []
    for name, words in _HANDLERS.items():
        if point := kinds[name]:
            faster = f", {ratio_interval(_over(slow, point))} faster" if slow else ""
            clauses.append(words.format(_median(point)) + faster)
    beside = f" than {_CONTAINER} ({_median(slow)})" if slow else ""
    return f"On this machine {clauses[0]}{beside}{''.join(f'; {c}' for c in clauses[1:])}."


def _functions_table(run: Figures) -> Table | None:
    slow = _find(run, function=_CONTAINER, instances=1)
    rows = []
    for name in dict.fromkeys(str(point.point["function"]) for point in run.points):
        point = _find(run, function=name, instances=1)
        if point:
            faster = ratio_interval(_over(slow, point)) if slow and point is not slow else "–"
            rows.append((name, _median(point), faster))
    headings = ("function", "one start", f"faster than {_CONTAINER}")
    return Table("kinds of functions, one at a time", headings, tuple(rows)) if rows else None


def _rates(run: Figures) -> list[tuple[float, PointFigures, PointFigures | None]]:
    """Each rate with its point that refills, and the one that does not."""
    pairs = []
    for point in run.points:
        rate, size = point.point["rate"], point.instances
        if point.latency and point.point["pools"] == "refilling":
            pairs.append((float(rate), point, _find(run, pools="full", rate=rate, instances=size)))
    return pairs


def _churn(run: Figures) -> str | None:
    pairs = [(rate, refilling, full) for rate, refilling, full in _rates(run) if full]
    if not pairs:
        return None
    kept = [pair for pair in pairs if _found_share(pair[1]) >= KEEPS_UP]
    rate, refilling, full = (kept or pairs)[-1]
    tail = _tail(refilling, full)
    sentence = (
        f"On this machine, at {rate:.0f} starts and stops a second, a start takes "
        f"{_median(refilling)} to its {run.end_point} while the pool refills"
        f"{f', and its P99 is {tail} that of a pool that need not' if tail else ''}. "
        f"The pool is filled with {counts(full)['fill']:.0f} sandboxes a second before, and "
        f"refilled with {counts(refilling)['refill']:.0f} a second meanwhile"
    )
    dry = next((pair for pair in pairs if pair not in kept), None)
    if kept and dry:
        found = percent(_found_share(dry[1]))
        sentence += f"; at {dry[0]:.0f} a second it runs dry: {found} find a sandbox waiting"
    return sentence + "."


def _tail(point: PointFigures, full: PointFigures | None) -> str:
    """A P99 over that of full pools, in words; "" where too few starts bound either."""
    if full is None or full is point:
        return ""
    known = [one.latency and one.latency.p99 for one in (point, full)]
    return ratio_interval(_over(point, full, 0.99)) if all(known) else ""


def _found_share(point: PointFigures) -> float:
    counted = counts(point)
    asked = counted.get("hits", 0) + counted.get("misses", 0)
    return counted["hits"] / asked if asked else 0.0


def _churn_table(run: Figures) -> Table | None:
    rows = []
    for point in run.points:
        if not point.latency:
            continue
        pools, rate = str(point.point["pools"]), point.point["rate"]
        full = _find(run, pools="full", rate=rate, instances=point.instances)
        counted = counts(point)
        rows.append(
            (
                f"{pools} · {rate}/s",
                f"{np.median(_achieved(point)):.0f}",
                percent(_found_share(point)),
                f"{counted['fill']:.0f}" if counted.get("fill") else "–",
                f"{counted['refill']:.0f}" if counted.get("refill") else "–",
                _tail(point, full) or "–",
            )
        )
    headings = ("pools · starts asked", "started a second", "found a sandbox",
                "filled a second", "refilled a second", "P99 over that of full pools")  # fmt: skip
    return Table("starts and stops, and the pool", headings, tuple(rows)) if rows else None


def _achieved(point: PointFigures) -> list[float]:
    """Starts a second of each whole batch, from its first arrival to its last start."""
    return [point.instances / span * 1e9 for span in _spans(point)] or [0.0]


def _density(run: Figures) -> str | None:
    points = sorted(
        (point for point in run.points if point.latency),
        key=lambda point: int(point.point["background"]),
    )
    if len(points) < 2:
        return None
    few, many = points[0], points[-1]
    return (
        f"On this machine an agile start takes {_median(few)} to its {run.end_point} with "
        f"{few.point['background']} instances up, and {_median(many)} with "
        f"{digits(int(many.point['background']), 0)}: {ratio_interval(_over(many, few))} as long."
    )


def _ablation(run: Figures) -> str | None:
    whole = _find(run, without="nothing", instances=min(p.instances for p in run.points))
    if not whole:
        return None
    end = str(run.end_point)
    found = [one for one in worth(run) if (one.instances, one.end) == (whole.instances, end)]
    by = {one.part: one for one in found}
    sentence = (
        f"On this machine an agile start from a whole sandbox takes {_median(whole)} to its {end}"
    )
    for part, words in (("sandboxes", "from parts"), ("everything", "with nothing prepared")):
        if part in by:
            sentence += f"; {words} {ratio_interval(by[part].longer)} as long"
    parts = [one for one in found if one.part not in _BASES]
    gains = sorted((one for one in parts if one.longer.low > 1), key=lambda one: -one.extra)
    if gains:
        listed = (f"{g.part} {duration(g.extra)}, {ratio_interval(g.longer)}" for g in gains)
        sentence += f". Of the parts, most is gained by {'; then '.join(listed)}"
    rest = [one.part for one in parts if one not in gains]
    if rest:
        sentence += f". No gain is shown for {', '.join(rest)}"
    return sentence + "."


def _ablation_table(run: Figures) -> Table | None:
    found = worth(run)
    ends = list(dict.fromkeys((one.end, one.instances) for one in found))
    by = {(one.part, one.end, one.instances): one for one in found}
    rows = [
        (
            part,
            *(
                f"{_signed(one.extra)}, {ratio_interval(one.longer)}"
                if (one := by.get((part, *end)))
                else "–"
                for end in ends
            ),
        )
        for part in dict.fromkeys(one.part for one in found)
    ]
    headings = ("left out", *(f"{end}, {many} at once" for end, many in ends))
    return Table("what each part is worth to a start", headings, tuple(rows)) if rows else None


def _signed(ns: float) -> str:
    return f"{'+' if ns >= 0 else '−'}{duration(abs(ns))}"  # noqa: RUF001 - a minus sign


_ANSWERS: dict[str, Callable[[Figures], str | None]] = {
    "agile": _agile,
    "functions": _functions,
    "churn": _churn,
    "density": _density,
    "ablation": _ablation,
}
_TABLES: dict[str, Callable[[Figures], Table | None]] = {
    "functions": _functions_table,
    "churn": _churn_table,
    "ablation": _ablation_table,
}
