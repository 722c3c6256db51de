"""The table of what limits the rate of starts; see ``analysis.capacity``."""

from firstlight.analysis import Analysis
from firstlight.analysis.capacity import ASSUMED, Capacity
from firstlight.analysis.stats import FEWEST_BATCHES
from firstlight.model import Interval
from firstlight.report.records import Table
from firstlight.units import digits, duration, duration_interval

_MORE = (2, 8)
"""The tables show the bound for so many times the CPUs of the host."""
_HEADINGS = ("", "CPU time of a start", "lock held longest", "held by a start, at least",
             "starts/s per core, by CPU time", "measured here")  # fmt: skip
_BRIEF = ("", "CPU time", "lock held longest", "held ≥", "starts/s")


def tables(analysis: Analysis) -> list[Table]:
    """One table, or none if no starts at once were traced."""
    capacities = analysis.capacities
    if not capacities:
        return []
    cores = capacities[0].cores
    counts = (cores, *(cores * more for more in _MORE))
    bounds = tuple(f"≤ with {count}" for count in counts)
    rows = tuple(
        (
            each.point.name,
            duration_interval(each.cpu),
            _either(each.longest),
            duration_interval(each.sections[0].held) if each.sections else "–",
            _rate(each.per_core),
            _rate(each.measured.value) if each.measured else "–",
            *(_bound(each, count) for count in counts),
        )
        for each in capacities
    )
    brief = tuple(
        (
            each.point.name,
            duration(each.cpu.value),
            _first(each.longest),
            duration(each.sections[0].held.value) if each.sections else "–",
            _rate(each.measured.value) if each.measured else "–",
            *(_bound(each, count) for count in counts[::2]),
        )
        for each in capacities
    )
    return [
        Table(
            title="what limits the rate of starts: CPU time, or a lock, traced",
            headings=(*_HEADINGS, *bounds),
            rows=rows,
            advice=f"{' '.join(map(_saturation, capacities))} Assumed: {ASSUMED}.",
            brief=((*_BRIEF, *bounds[::2]), brief),
        )
    ]


def _either(locks: tuple[str, ...]) -> str:
    return " or ".join(locks) or "none seen"


def _first(locks: tuple[str, ...]) -> str:
    """As ``_either``, for a narrow column."""
    return f"{locks[0]} or {len(locks) - 1} more" if len(locks) > 1 else _either(locks)


def _bound(capacity: Capacity, cores: int) -> str:
    return _rate(capacity.rate(cores)) if capacity.is_predicted else "–"


def _rate(starts: float) -> str:
    """With three digits at most: no measurement has more."""
    return digits(float(f"{starts:.3g}"), 0 if starts >= 10 else 1)


def _rates(starts: Interval) -> str:
    return f"{_rate(starts.value)} ({_rate(starts.low)}–{_rate(starts.high)})"


def _saturation(capacity: Capacity) -> str:
    if not capacity.is_saturated:
        return (
            f"{capacity.point.name} is too few at once for {capacity.cores} CPUs: no rate is "
            "predicted."
        )
    if not capacity.is_repeated:
        return (
            f"{capacity.point.name} was traced in too few batches ({capacity.batches} of "
            f"{FEWEST_BATCHES}): no rate is predicted."
        )
    exceeded = ""
    if capacity.is_exceeded:
        exceeded = " More were measured than its bound: tracing makes these times longer."
    cores = capacity.saturating_cores
    if not capacity.sections:
        return f"{capacity.point.name} waits for no lock of the whole kernel.{exceeded}"
    if cores is None or capacity.most is None:
        fewer = capacity.unlimited_cores
        if fewer <= capacity.cores:
            return (
                f"{capacity.point.name} varies too much to tell whether a lock limits it.{exceeded}"
            )
        return f"No lock limits {capacity.point.name} below {_rate(fewer)} CPUs.{exceeded}"
    used = "one CPU" if cores.high < 1.5 else f"{_rates(cores)} CPUs"
    return (
        f"{capacity.point.name} can use at most {used}: "
        f"{_either(capacity.longest)} admits at most {_rates(capacity.most)} starts a "
        f"second.{exceeded}"
    )
