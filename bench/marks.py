"""A line of the output of ``make bench``."""

from msgspec import Struct


class Mark(Struct, frozen=True):
    """A measured value and its mark, both with units, and whether the mark is met."""

    name: str
    measured: str
    mark: str
    met: bool
