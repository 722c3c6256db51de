"""A breakdown as arrays, for sums over many starts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from firstlight.analysis.segments import Integers
from firstlight.analysis.words import Words
from firstlight.model import Sample


@dataclass(frozen=True)
class Spent:
    """The rows of a breakdown. ``kind`` is each one's place in ``kinds``, which are the distinct
    phases, shades and causes; ``sample`` is an index, or a place after ``of``.
    """

    kinds: list[tuple[str, ...]]
    kind: Integers
    sample: Integers
    wall: Integers
    summed: Integers

    @classmethod
    def read(cls, breakdown: pl.DataFrame) -> "Spent":
        """All rows of ``breakdown.SCHEMA``."""
        columns = "phase", "shade", "cause"
        every = np.arange(len(breakdown))
        kinds = Words(breakdown, *columns).combinations(every, *columns)
        sample, wall, summed = (
            breakdown[name].to_numpy().astype(np.int64) for name in ("sample", "wall", "summed")
        )
        return cls(kinds.words, kinds.place, sample, wall, summed)

    def of(self, samples: Sequence[Sample]) -> "Spent":
        """The rows of some samples, each by its place among them."""
        indices = np.array([sample.index for sample in samples], np.int64)
        order = np.argsort(indices)
        place = np.searchsorted(indices, self.sample, sorter=order)
        place = order[np.minimum(place, len(indices) - 1)] if len(indices) else place
        mine = np.flatnonzero(np.isin(self.sample, indices))
        return replace(
            self, kind=self.kind[mine], sample=place[mine], wall=self.wall[mine],
            summed=self.summed[mine],
        )  # fmt: skip
