"""Parts of a report: tables, pictures, failures, and a run's view."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from firstlight.analysis import Analysis
from firstlight.model import Sample

if TYPE_CHECKING:
    import altair as alt

Rows = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Table:
    """A table of text: a name column, then figures; ``advice`` is shown below it.

    ``brief`` (headings and rows) is the same table for a terminal of 80 columns.
    """

    title: str
    headings: tuple[str, ...]
    rows: Rows
    advice: str = ""
    brief: tuple[tuple[str, ...], Rows] | None = None


def failures(samples: Iterable[Sample]) -> list[tuple[Sample, int]]:
    """The starts that did not become ready, by what failed: the first such start, and how many of
    its point failed alike, the most first. Numbers in their words, as of processes, may differ.
    """
    alike: dict[object, list[Sample]] = {}
    for sample in samples:
        if sample.latency is None:
            words = re.sub(r"\d+", "", f"{sample.ending} {sample.error} {sample.output}")
            alike.setdefault((frozenset(sample.point.items()), words), []).append(sample)
    return [(some[0], len(some)) for some in sorted(alike.values(), key=len, reverse=True)]


@dataclass(frozen=True)
class Picture:
    """One chart, or two of the same thing. ``name`` and the charts' keys name their files.

    ``legend`` has its names and colours, for a page that draws its own.
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
    """What a report shows of some runs in addition to what it shows of every run.

    ``answer`` is the sentence at the top, None if the run has too few samples. ``pictures`` imports
    the drawing library when called: a terminal does not need it.
    """

    answer: Callable[[Analysis], str | None] = _no_answer
    tables: Callable[[Analysis], Iterable[Table]] = _nothing
    pictures: Callable[[Analysis], Iterable[Picture]] = _nothing
