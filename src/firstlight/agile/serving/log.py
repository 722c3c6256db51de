"""What an instance writes, of which the end is kept."""

import asyncio
import os
from contextlib import suppress

from firstlight.errors import Failed

_KEPT = 64 << 10
_PART = 64 << 10
_REST_SECONDS = 0.01


class Log:
    """Reads the output of one instance. A flood is read slowly: it blocks who writes it."""

    def __init__(self) -> None:
        try:
            self._reading, self._writing = os.pipe2(os.O_CLOEXEC)
            self._null = os.open(os.devnull, os.O_RDONLY)
        except OSError as error:
            raise Failed(f"cannot open an instance's streams: {error.strerror}") from error
        os.set_blocking(self._reading, False)
        self._kept = bytearray()
        self._size = 0
        self._rest: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def streams(self) -> tuple[int, int, int]:
        """What the instance gets: no input, and one stream for both outputs, in order."""
        return self._null, self._writing, self._writing

    def open(self) -> None:
        """The instance has its streams: read what it writes."""
        os.close(self._null)
        os.close(self._writing)
        self._null = self._writing = -1
        self._loop.add_reader(self._reading, self._read)

    @property
    def size(self) -> int:
        """How many bytes were written so far, as far as they were read."""
        return self._size

    def since(self, size: int, most: int) -> bytes:
        """The end of what was written since it had this size."""
        self._take()
        length = min(self._size - size, len(self._kept), most)
        return bytes(self._kept[len(self._kept) - length :])

    def last_line(self) -> str:
        """The last line with anything on it."""
        lines = self.since(0, _KEPT).decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def _read(self) -> None:
        if self._take() == _PART:
            self._loop.remove_reader(self._reading)
            self._rest = self._loop.call_later(_REST_SECONDS, self._go_on)

    def _go_on(self) -> None:
        self._rest = None
        self._loop.add_reader(self._reading, self._read)

    def _take(self) -> int:
        if self._reading < 0:
            return 0
        part = b""
        with suppress(BlockingIOError):
            part = os.read(self._reading, _PART)
            if not part:
                self._loop.remove_reader(self._reading)
        self._size += len(part)
        self._kept += part
        del self._kept[:-_KEPT]
        return len(part)

    def close(self) -> None:
        """Read what is there, and no more; a writer gets SIGPIPE."""
        if self._rest:
            self._rest.cancel()
        if self._reading >= 0:
            self._loop.remove_reader(self._reading)
            self._take()
        for descriptor in (self._reading, self._writing, self._null):
            if descriptor >= 0:
                os.close(descriptor)
        self._reading = self._writing = self._null = -1
