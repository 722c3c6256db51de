"""One line of what ``make bench`` says."""

from msgspec import Struct


class Mark(Struct, frozen=True):
    """What was measured, the mark it should meet (both with their units), and whether it does."""

    name: str
    measured: str
    mark: str
    met: bool
