"""A table that one experiment has besides its latencies, as words that every report shows alike."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table of words: a name, then figures."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
