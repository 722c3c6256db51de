"""The words of rows as numbers: what depends on words alone is found once for each combination."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from firstlight.analysis.segments import Integers

_WIDEST = 1 << 22


@dataclass(frozen=True)
class Combinations:
    """The distinct combinations of some rows' words, and the ``place`` of each row's in them."""

    words: list[tuple[str, ...]]
    place: Integers

    def map(self, of: Callable[..., int]) -> Integers:
        """What ``of`` returns for each row's words."""
        return np.array([of(*each) for each in self.words], np.int64)[self.place]


class Words:
    """Some columns of a frame that hold words."""

    def __init__(self, frame: pl.DataFrame, *columns: str) -> None:
        self._frame = frame
        physical = pl.col(columns).cast(pl.Categorical()).to_physical().cast(pl.Int64)
        codes = frame.select((physical + 1).fill_null(0))
        self._codes = {name: codes[name].to_numpy() for name in columns}

    def rows(self, column: str, *words: str) -> dict[str, Integers]:
        """The rows that have each of these words in a column."""
        each = self.combinations(np.arange(len(self._frame)), column)
        known = {word: place for place, (word,) in enumerate(each.words)}
        return {word: np.flatnonzero(each.place == known.get(word, -1)) for word in words}

    def combinations(self, rows: Integers, *columns: str) -> Combinations:
        """The combinations of these columns' words in some rows; null is an empty word."""
        if not len(rows):
            return Combinations([], np.empty(0, np.int64))
        key, width = np.zeros(len(rows), np.int64), 1
        for name in columns:
            dense, count = _dense(self._codes[name][rows])
            if width * count > _WIDEST:
                _, key = np.unique(key * count + dense, return_inverse=True)
                width = int(key.max()) + 1
            else:
                key, width = key * count + dense, width * count
        place, count = _dense(key)
        first = np.empty(count, np.int64)
        first[place[::-1]] = rows[::-1]
        words = zip(*(self._frame[name][first].to_list() for name in columns), strict=True)
        return Combinations([tuple(each or "" for each in row) for row in words], place)


def _dense(codes: Integers) -> tuple[Integers, int]:
    """The same codes without gaps between them, and how many there are."""
    is_used = np.zeros(int(codes.max()) + 1, np.bool_)
    is_used[codes] = True
    return (np.cumsum(is_used) - 1)[codes], int(np.count_nonzero(is_used))
