"""What a report is made of besides latencies: tables of words, pictures, and a run's own view."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from firstlight.analysis import Analysis

if TYPE_CHECKING:
    import altair as alt

Rows = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Table:
    """A table of words: a name, then figures; ``advice`` stands below it.

    ``brief``, headings and rows, is the same for a terminal of 80 columns.
    """

    title: str
    headings: tuple[str, ...]
    rows: Rows
    advice: str = ""
    brief: tuple[tuple[str, ...], Rows] | None = None


@dataclass(frozen=True)
class Picture:
    """One chart or two of the same thing; ``name`` and the charts' keys name their files.

    ``legend`` is the names and colours in it, for a page that draws its own.
    """

    name: str
    title: str
    caption: str
    charts: "dict[str, alt.Chart | alt.FacetChart]"
    legend: tuple[tuple[str, str], ...] = ()


def _no_answer(_: Analysis) -> str | None:
    return None


def _nothing(_: Analysis) -> tuple[()]:
    return ()


@dataclass(frozen=True)
class View:
    """What a report shows of some runs besides what it shows of every run.

    ``answer`` is the sentence on top, None for a run that is too thin for it. ``pictures`` import
    what draws them when they are asked for: a terminal has no use for it.
    """

    answer: Callable[[Analysis], str | None] = _no_answer
    tables: Callable[[Analysis], Iterable[Table]] = _nothing
    pictures: Callable[[Analysis], Iterable[Picture]] = _nothing
