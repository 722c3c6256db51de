"""The recent output of functions' instances, by function, as lines in the CRI's log format."""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from firstlight.agile.logs import Position
from firstlight.errors import Failed

_KEPT = 64 << 10
_LINE_MOST = 16 << 10


class _Lines:
    """The last lines of one function. ``begin`` is the number of the first line kept.

    ``born`` tells them from those of an earlier manager, or of a function that was removed.
    """

    def __init__(self) -> None:
        self.born = time.monotonic_ns()
        self._lines: deque[bytes] = deque()
        self._size = self.begin = 0
        self.news = asyncio.Event()

    def add(self, text: bytes, is_whole: bool) -> None:
        now = time.time_ns()
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9))
        head = f"{when}.{now % 10**9:09}Z stdout {'F' if is_whole else 'P'} "
        line = head.encode() + text + b"\n"
        self._lines.append(line)
        self._size += len(line)
        while self._size > _KEPT:
            self._size -= len(self._lines.popleft())
            self.begin += 1
        self.news.set()

    def since(self, number: int) -> tuple[bytes, int]:
        """The lines from this number on, and the next number."""
        skipped = max(0, number - self.begin)
        text = b"".join(list(self._lines)[skipped:])
        return text, self.begin + len(self._lines)


class RecentOutput:
    """The last 64 KiB of each function: in memory, as its instances end with this process."""

    def __init__(self) -> None:
        self._of: dict[str, _Lines] = {}

    def sink(self, name: str) -> Callable[[bytes], None]:
        """A receiver of one instance's output, in any parts; an empty part ends it.

        After ``forget`` nobody reads what it gets: another function may have the name.
        """
        rest, lines = bytearray(), self._of.setdefault(name, _Lines())

        def take(part: bytes) -> None:
            rest.extend(part)
            *whole, last = rest.split(b"\n")
            for line in whole:
                for at in range(0, max(len(line), 1), _LINE_MOST):
                    end = at + _LINE_MOST
                    lines.add(bytes(line[at:end]), is_whole=end >= len(line))
            rest[:] = last
            if rest and (not part or len(rest) > _LINE_MOST):
                lines.add(bytes(rest), is_whole=not part)
                rest.clear()

        return take

    def forget(self, name: str) -> None:
        """Remove a function's lines."""
        self._of.pop(name, None)

    async def following(
        self, name: str, position: Position, seconds: float
    ) -> tuple[bytes, Position]:
        """Wait for lines from a position on; returns them and the next position."""
        lines = self._of.setdefault(name, _Lines())
        begin = position[1] if position[0] == lines.born else 0
        text, number = lines.since(begin)
        if not text and seconds:
            lines.news.clear()
            try:
                async with asyncio.timeout(seconds):
                    await lines.news.wait()
            except TimeoutError:
                pass
            text, number = lines.since(begin)
        return text, (lines.born, number)


def unknown(name: str) -> Failed:
    """The name is neither an instance's nor a function's."""
    return Failed(
        f"there is no instance or function {name!r}",
        "list them: firstlight agile ps --all, firstlight agile function list",
    )
