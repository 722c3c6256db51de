"""Progress of `run` on stderr: how long it takes, and the figures so far."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from firstlight.cli.output import say, stderr
from firstlight.units import duration

if TYPE_CHECKING:
    from rich.console import RenderableType

    from firstlight.lab.schedule import Batch
    from firstlight.model import Sample

_SHOWN = 12
"""As many points are shown, the latest ones."""
_SHOWN_AFTER = 0.03
"""The share of the time after which what the rest takes is known well enough to tell."""
_WARM_UP = 5.0
"""Seconds in which the first batches take longer than later ones: tell at a tenth of the time."""
_ASTRAY = 1.3
"""A time that turns out to be longer or shorter by this factor is told again."""


@dataclass
class _Figures:
    """A point's untraced starts so far."""

    latencies: list[int] = field(default_factory=list)
    failed: int = 0


class Progress:
    """A bar with the current batch and the time left, and below it each point's median so far.

    Without a terminal, a line says how long the run takes once that is known, and another where it
    turns out otherwise.
    """

    def __init__(self, title: str, budget: float | None, *, all_of_it: bool = True) -> None:
        """Without ``all_of_it`` the run may end before its budget."""
        from rich.live import Live
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"),
            TimeRemainingColumn(), TextColumn("{task.fields[batch]}"), console=stderr(),
        )  # fmt: skip
        self._points: dict[str, _Figures] = {}
        self._task = self._bar.add_task(title, total=1.0, batch="")
        self._live = Live(
            console=stderr(), transient=True, auto_refresh=True, refresh_per_second=4,
            get_renderable=self._render,
        )  # fmt: skip
        self._is_live = sys.stderr.isatty()
        self._begun = self._first = time.monotonic()
        self._is_known, self._said = budget is not None and all_of_it, 0.0
        if budget is not None:
            takes = _roughly(budget) if budget >= 90 else f"{budget:.0f} s"
            say(f"{title}: measuring takes {'about' if all_of_it else 'at most'} {takes}")

    def __enter__(self) -> "Progress":
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_live:
            self._live.stop()

    def begin(self, batch: "Batch", done: float) -> None:
        """Show the batch that starts, and how long the run takes."""
        traced = ", traced" if batch.traced else ""
        self._bar.update(self._task, completed=min(done, 1.0), batch=_name(batch) + traced)
        now = time.monotonic()
        if not done:
            self._first = now
        spent = now - self._first
        if done >= (0.1 if spent < _WARM_UP else _SHOWN_AFTER) and not self._is_known:
            self._tell(self._first - self._begun + spent / done)

    def _tell(self, seconds: float) -> None:
        if not self._said:
            say(f"measuring takes about {_roughly(seconds)}")
        elif self._said / _ASTRAY <= seconds <= self._said * _ASTRAY:
            return
        elif _roughly(seconds) != _roughly(self._said):
            say(f"measuring takes about {_roughly(seconds)} in all, not {_roughly(self._said)}")
        self._said = seconds

    def end(self, batch: "Batch", samples: Sequence["Sample"]) -> None:
        """Add the batch's untraced starts to the figures."""
        if batch.traced:
            return
        figures = self._points.pop(_name(batch), _Figures())
        figures.latencies += [each.latency for each in samples if each.latency is not None]
        figures.failed += sum(each.latency is None for each in samples)
        self._points[_name(batch)] = figures

    def _render(self) -> "RenderableType":
        from rich.console import Group
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("so far", "starts", "median", "failed"):
            table.add_column(heading, justify="left" if heading == "so far" else "right")
        for name, figures in list(self._points.items())[-_SHOWN:]:
            ordered = sorted(figures.latencies)
            median = duration(ordered[len(ordered) // 2]) if ordered else "–"
            table.add_row(name, str(len(ordered)), median, str(figures.failed or ""))
        return Group(self._bar, table) if self._points else self._bar


def _name(batch: "Batch") -> str:
    return ", ".join(f"{axis} {value}" for axis, value in batch.point.items())


def _roughly(seconds: float) -> str:
    """A time rounded to its leading figures, because it is an estimate."""
    if seconds < 90:
        return f"{max(round(seconds, -1), 10):.0f} s"
    return f"{seconds / 60:.0f} min"
