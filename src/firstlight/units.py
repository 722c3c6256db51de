"""Formats figures: three digits, one unit for an estimate and its interval.

An interval of no width, as of one batch, is not shown.
"""

import math

from firstlight.model import Header, Interval

UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns"))


def duration(ns: float) -> str:
    """``31.2 ms`` for 31_204_000."""
    scale, unit = _unit(ns)
    return f"{digits(ns / scale, _decimals(ns / scale))} {unit}"


def duration_interval(interval: Interval) -> str:
    """``31.2 ms (29.0–33.1)``: all three in the unit of the estimate."""
    scale, _ = _unit(interval.value)
    decimals = _decimals(interval.value / scale)
    return f"{duration(interval.value)}{_bounds(interval, scale, decimals)}"


def ratio_interval(interval: Interval) -> str:
    """``1.04× (0.98–1.10)``, ``78.4× (71.2–83.0)``, ``361× (336–429)``."""
    decimals = _decimals(interval.value) if interval.value >= 10 else 2
    return f"{digits(interval.value, decimals)}×{_bounds(interval, 1, decimals)}"


def percent(share: float) -> str:
    """``24 %``; one decimal below ten per cent, ``<0.1 %`` for what would read as zero."""
    if 0 < share < 0.001:
        return "<0.1 %"
    return f"{100 * share:.{1 if share < 0.0995 else 0}f} %"


def percent_interval(interval: Interval) -> str:
    """``24 % (22–26)``."""
    decimals = 1 if interval.value < 0.0995 else 0
    return f"{percent(interval.value)}{_bounds(interval, 0.01, decimals)}"


def several(words: list[str]) -> str:
    """Words in a row: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def cause(name: str) -> str:
    """A cause inside a sentence: ``the lock rtnl_mutex (rtnl_newlink)``."""
    kind, _, what = name.partition(": ")
    words = {"lock": "waiting for the lock", "RCU": "waiting for RCU in", "I/O": "I/O in"}
    return f"{words[kind]} {what}" if what and kind in words else name


def clock(name: str, uncertainty: int | None) -> str:
    """A guest's clock, and the uncertainty of its stamps on the host's clock (ns)."""
    return name if uncertainty is None else f"{name}, ± {duration(uncertainty)}"


def skipped(header: Header) -> list[tuple[str, str]]:
    """Each reason for skipped points, with the names of those points."""
    names: dict[str, list[str]] = {}
    for name, reason in header.skipped:
        names.setdefault(reason, []).append(name)
    return [(reason, ", ".join(of)) for reason, of in names.items()]


def digits(value: float, decimals: int) -> str:
    """A figure with a narrow space between thousands, from five digits on."""
    grouped = f"{value:,.{decimals}f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:.{decimals}f}" if abs(value) < 10_000 else grouped


def _unit(ns: float) -> tuple[float, str]:
    return next((unit for unit in UNITS if abs(ns) >= unit[0]), UNITS[-1])


def _decimals(value: float) -> int:
    return max(0, 2 - math.floor(math.log10(abs(value)))) if abs(value) >= 1 else 0


def _bounds(interval: Interval, scale: float, decimals: int) -> str:
    if interval.low == interval.high:
        return ""
    low, high = (digits(bound / scale, decimals) for bound in (interval.low, interval.high))
    return f" ({low}–{high})"
