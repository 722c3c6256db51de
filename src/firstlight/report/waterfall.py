"""The start of a command as a waterfall in the terminal: phases, causes, slowest waits."""

import polars as pl
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from firstlight.analysis import phases
from firstlight.report.plots.palette import PHASES as COLOURS

_WAITS = 8
_FIXED_COLUMNS = 43  # columns for everything except the lane and the cause
_FRAMES = 6
_LEAST_NS = 1000


def waterfall(timeline: pl.DataFrame, spans: pl.DataFrame, width: int) -> RenderableType:
    """Lanes of the phases over time with their durations, and below them the longest waits.

    ``timeline`` is ``breakdown.timeline`` of one sample, ``spans`` its raw spans, ``width`` the
    terminal's columns.
    """
    waits = _waits(timeline, spans)
    return Group(_lanes(timeline, width), *((Text(), waits) if waits.row_count else ()))


def _lanes(timeline: pl.DataFrame, width: int) -> Table:
    cells = max((width - _FIXED_COLUMNS) * 2 // 5, 10)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("phase", no_wrap=True, width=13)
    table.add_column("where in time", no_wrap=True, width=cells)
    for name, wide in (("ms", 9), ("share", 5), ("kernel", 6)):
        table.add_column(name, justify="right", no_wrap=True, width=wide)
    table.add_column(
        "mostly", overflow="ellipsis", no_wrap=True, width=max(width - _FIXED_COLUMNS - cells, 16)
    )
    if timeline.is_empty():
        return table
    begin, total = int(timeline["start"].to_numpy().min()), _span(timeline)
    for phase in phases.ORDER:
        rows = timeline.filter(pl.col("phase") == phase)
        took = int((rows["end"] - rows["start"]).sum())
        if took < _LEAST_NS:
            continue
        inside = rows.filter(pl.col("shade") == "kernel")
        kernel = int((inside["end"] - inside["start"]).sum())
        table.add_row(
            phase,
            _lane(rows, begin, total, cells, COLOURS.get(phase, "white")),
            f"{took / 1e6:.2f}",
            f"{100 * took / total:.0f} %",
            f"{100 * kernel / took:.0f} %",
            _mostly(rows, took),
        )
    table.add_row("total", "", f"{total / 1e6:.2f}", style="bold")
    return table


def _span(timeline: pl.DataFrame) -> int:
    return int((timeline["end"] - timeline["start"]).sum())


def _lane(rows: pl.DataFrame, begin: int, total: int, cells: int, colour: str) -> Text:
    """A cell is full if the phase owns most of its time, half if it owns some."""
    owned = [0.0] * cells
    size = total / cells
    for start, end in zip(rows["start"].to_list(), rows["end"].to_list(), strict=True):
        first, last = (start - begin) / size, (end - begin) / size
        for cell in range(int(first), min(int(last) + 1, cells)):
            owned[cell] += min(last, cell + 1) - max(first, cell)
    return Text(
        "".join("█" if part > 0.5 else "▌" if part > 0.05 else "·" for part in owned), style=colour
    )


def _mostly(rows: pl.DataFrame, took: int) -> str:
    by_cause = (
        rows.group_by("cause")
        .agg((pl.col("end") - pl.col("start")).sum().alias("took"))
        .sort("took", descending=True)
    )
    cause, most = by_cause.row(0)
    return f"{100 * most / took:.0f} % {cause}"


def _waits(timeline: pl.DataFrame, spans: pl.DataFrame) -> Table:
    """The kernel waits that took most of the critical path, grouped by stack."""
    table = Table(title="slowest kernel waits on the critical path", title_justify="left",
                  box=None, pad_edge=False, header_style="bold")  # fmt: skip
    table.add_column("ms", justify="right", width=7)
    table.add_column("times", justify="right")
    table.add_column("phase", no_wrap=True, width=13)
    table.add_column("kernel functions, innermost first", overflow="fold")
    pieces = timeline.with_columns(took=pl.col("end") - pl.col("start")).sort("start")
    inside = []
    for kind in ("lock", "blocked"):
        waits = (
            spans.filter(pl.col("kind") == kind)
            .select(pl.col("tid").cast(pl.Int64), "stack", from_="start", to="end")
            .sort("from_")
        )
        # Each piece's latest wait: all of a thread's would be millions for thousands of each.
        latest = pieces.join_asof(
            waits, left_on="start", right_on="from_", by="tid", check_sortedness=False
        )
        inside.append(latest.filter(pl.col("to") >= pl.col("end")))
    longest = (
        pl.concat(inside)
        .unique(["start", "tid"], keep="first", maintain_order=True)
        .sort("took", descending=True, maintain_order=True)
        .with_columns(pl.col("stack").cast(pl.String).str.split(";").list.head(_FRAMES))
        .group_by("phase", "stack", maintain_order=True)
        .agg(pl.col("took").sum(), times=pl.len())
        .sort("took", descending=True, maintain_order=True)
        .head(_WAITS)
    )
    for phase, stack, took, times in longest.iter_rows():
        table.add_row(f"{took / 1e6:.2f}", f"{times}", phase, " ← ".join(stack))
    return table
