"""How many parts to keep ready: the rule by which pools follow their use.

Parts of a pool are *out* if they were taken, or missed, and are neither returned nor replaced. The
demand is the most that were out at once within the last ``window`` seconds, or ever, if that is
infinite. A pool that follows the demand keeps as many, between its low and its high mark; any other
keeps its high mark.
"""

import math
import time
from collections import deque
from collections.abc import Callable

from firstlight.agile.config import PoolSize


class Demand:
    """The demand for the parts of one pool. With a ``window`` of 0, the pool does not follow it."""

    def __init__(
        self, size: PoolSize, window: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.size, self._clock = size, clock
        self._window = 0.0 if size.dry == "refuse" else window  # it would refuse while it grows
        self._peaks: deque[tuple[float, int]] = deque()  # falling, each the maximum since its time
        self.out = 0

    @property
    def follows(self) -> bool:
        """Whether the pool's size follows it."""
        return self._window > 0

    def take(self, count: int = 1) -> None:
        """Count this many more as out."""
        self.out += count
        self.expect(self.out)

    def give(self, count: int = 1) -> None:
        """Count this many as back, or replaced."""
        self.expect(self.out)  # until now
        self.out = max(0, self.out - count)

    def settle(self) -> None:
        """Note that none is out: the pool is full."""
        self.give(self.out)

    def expect(self, count: int) -> None:
        """Keep this many for a window."""
        while self._peaks and self._peaks[-1][1] <= count:
            self._peaks.pop()
        if count:
            self._peaks.append((self._clock(), count))

    def changes(self) -> float:
        """The seconds until the target falls, if no more are taken meanwhile."""
        if not self.follows or not self._peaks:
            return math.inf
        return self._peaks[0][0] + self._window - self._clock() + 1e-6

    def target(self) -> int:
        """How many the pool keeps."""
        if not self.follows:
            return self.size.high
        while self._peaks and self._peaks[0][0] < self._clock() - self._window:
            self._peaks.popleft()
        most = max(self.out, self._peaks[0][1] if self._peaks else 0)
        return min(self.size.high, max(self.size.low, most))
