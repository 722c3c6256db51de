"""Shows changed counts as a table for the terminal and as Markdown for a CI summary."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from firstlight.analysis.compare import Comparison, Difference
from firstlight.analysis.gate import Change, PointCounts, Values, Verdict
from firstlight.units import duration, ratio_interval

_MOST_VARYING = 6


def terminal(verdict: Verdict) -> RenderableType:
    """A table of each point's changed counts, and the verdict."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim",
                  title="what a start does, B beside A", title_justify="left",
                  title_style="bold")  # fmt: skip
    for name in ("", "A", "B", "", "which"):
        table.add_column(name, justify="right" if name in ("A", "B") else "left", overflow="fold")
    for point in verdict.points:
        for change in point.changes:
            style = "dim" if change.allowed else "bold red" if change.more else "green"
            cells = (change.count, _values(change.a), _values(change.b), _word(change),
                     ", ".join(change.evidence))  # fmt: skip
            table.add_row(*(Text(cell, style=style if cell == cells[3] else "") for cell in cells))
    lines = [Text(line, style="dim") for line in _summary(verdict)]
    return Group(table, *lines) if any(point.changes for point in verdict.points) else Group(*lines)


def markdown(verdict: Verdict, times: Comparison) -> str:
    """The changed counts and the times as Markdown for GitHub and GitLab."""
    lines = [f"### firstlight: {_OUTCOMES[verdict.outcome]}", ""]
    changes = [change for point in verdict.points for change in point.changes]
    if changes:
        lines += ["| count | A | B | | which |", "|---|--:|--:|---|---|"]
        lines += [
            f"| {_cell(change.count)} | {_values(change.a)} | {_values(change.b)} "
            f"| {_word(change)} | {_cell(', '.join(change.evidence))} |"
            for change in changes
        ]
        lines.append("")
    if times.differences:
        lines += ["| start | A | B | B ÷ A | |", "|---|--:|--:|--:|---|"]
        lines += [_time(difference) for difference in times.differences]
        lines.append("")
    return "\n".join([*lines, *(f"{line}  " for line in _summary(verdict)), "", ""])


_OUTCOMES = {
    "same": "a start does the same",
    "less": "a start does less",
    "more": "a start does more",
}


def _summary(verdict: Verdict) -> Iterator[str]:
    for point in verdict.points:
        yield (
            f"{_name(point)}: {len(point.changes)} of {point.judged} counts differ "
            f"({point.starts_a} and {point.starts_b} traced starts)"
        )
        if point.varying:
            some = ", ".join(point.varying[:_MOST_VARYING])
            more = len(point.varying) - _MOST_VARYING
            yield f"vary among equal starts: {some}{f' and {more} more' if more > 0 else ''}"
    yield "not counted: instructions"


def _name(point: PointCounts) -> str:
    return ", ".join(f"{axis} {setting}" for axis, setting in point.point.items()) or "all starts"


def _values(values: Values) -> str:
    """``33``, or ``47 (46–48)``."""
    return f"{values.usual}" + (
        "" if values.low == values.high else f" ({values.low}–{values.high})"
    )


def _word(change: Change) -> str:
    return f"{change.b.usual - change.a.usual:+}{' allowed' if change.allowed else ''}"


def _time(difference: Difference) -> str:
    sides = (
        duration(side.median.value) if side.median else "–" for side in (difference.a, difference.b)
    )
    name = ", ".join(f"{axis} {setting}" for axis, setting in difference.point.items())
    ratio = ratio_interval(difference.ratio) if difference.ratio else "–"
    return f"| {_cell(name)} | {' | '.join(sides)} | {ratio} | {difference.word} |"


def _cell(text: str) -> str:
    """Text as inline code, escaped for a table cell."""
    return f"`{text.replace('`', ' ').replace('|', chr(92) + '|')}`" if text else ""
