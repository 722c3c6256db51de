"""Answers that have begun to come: what they take together in this process is bounded.

Beyond the bound, the owner that has most of it gives way, by the longest answer of the function
that has most of that owner's: none takes the room of another with less.
"""

from collections import Counter
from typing import ClassVar

from firstlight.agile.function import NodeFailed

MOST = 256 << 20
"""Bytes of all answers together."""


class Partial:
    """An answer that comes in parts; it counts until it is closed."""

    _all: ClassVar[set["Partial"]] = set()
    _total: ClassVar[int] = 0

    def __init__(self, owner: str, function: str) -> None:
        self._owner, self._function = owner, function
        self._data, self._is_dropped = bytearray(), False

    def __len__(self) -> int:
        return len(self._data)

    def add(self, part: bytes) -> None:
        """Raises NodeFailed if it gave way to others."""
        self._check()
        Partial._all.add(self)
        self._data += part
        Partial._total += len(part)
        while Partial._total > MOST:
            self._drop_one()
        self._check()

    def take(self) -> bytes:
        """All that was added. Raises NodeFailed if it gave way to others."""
        self._check()
        data = bytes(self._data)
        self.close()
        return data

    def close(self) -> None:
        """Count no more."""
        Partial._all.discard(self)
        Partial._total -= len(self._data)
        self._data = bytearray()

    def _check(self) -> None:
        if self._is_dropped:
            raise NodeFailed(
                f"an answer of {self._function} was dropped: those that had begun to come took "
                f"more than {MOST} bytes, its owner had most of them, and it was the longest of "
                "the function with most of these",
                "call it less often at once, or have it return less",
            )

    @classmethod
    def _drop_one(cls) -> None:
        largest = list(cls._all)
        for whose in ("_owner", "_function"):
            of: Counter[str] = Counter()
            for each in largest:
                of[getattr(each, whose)] += len(each)
            [(most, _)] = of.most_common(1)
            largest = [each for each in largest if getattr(each, whose) == most]
        longest = max(largest, key=len)
        longest._is_dropped = True
        longest.close()
