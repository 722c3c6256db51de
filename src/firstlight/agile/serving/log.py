"""The output of an instance, of which the end is kept."""

import asyncio
import os
from collections.abc import Callable, Sequence

from firstlight.agile.function import Function
from firstlight.agile.instance import Instance
from firstlight.agile.output import pipes
from firstlight.agile.runtime import Runtime

_KEPT = 64 << 10
_PART = 64 << 10
_REST_SECONDS = 0.01


class Log:
    """Reads the outputs of an instance. A flood is read slowly, so its writer blocks."""

    def __init__(
        self, readings: Sequence[int], sink: Callable[[bytes], None] = lambda _: None
    ) -> None:
        """Takes over the descriptors. ``sink`` gets all that is read, then b""."""
        self._sink = sink
        self._readings = set(readings)
        self._kept = bytearray()
        self._resting: dict[int, asyncio.TimerHandle] = {}
        self._loop = asyncio.get_running_loop()
        self.size = 0
        """How many bytes were written, as far as they were read."""
        for reading in readings:
            os.set_blocking(reading, False)
            self._loop.add_reader(reading, self._read, reading)

    def since(self, size: int, most: int = _KEPT) -> bytes:
        """The end of what was written since the log had this size."""
        for reading in list(self._readings):
            self._take(reading)
        length = min(self.size - size, len(self._kept), most)
        return bytes(self._kept[len(self._kept) - length :])

    def close(self) -> None:
        """Read what is available, and close: a writer gets SIGPIPE."""
        for reading in list(self._readings):
            self._take(reading)
        for reading in list(self._readings):
            self._leave(reading)

    def _read(self, reading: int) -> None:
        if self._take(reading) == _PART:
            self._loop.remove_reader(reading)
            self._resting[reading] = self._loop.call_later(_REST_SECONDS, self._go_on, reading)

    def _go_on(self, reading: int) -> None:
        del self._resting[reading]
        self._loop.add_reader(reading, self._read, reading)

    def _take(self, reading: int) -> int:
        try:
            part = os.read(reading, _PART)
        except BlockingIOError:
            return 0
        if not part:
            self._leave(reading)
        else:
            self._sink(part)
        self.size += len(part)
        self._kept += part
        del self._kept[:-_KEPT]
        return len(part)

    def _leave(self, reading: int) -> None:
        self._readings.discard(reading)
        if reading in self._resting:
            self._resting.pop(reading).cancel()
        self._loop.remove_reader(reading)
        os.close(reading)
        if not self._readings:
            self._sink(b"")


async def start_logged(
    runtime: Runtime,
    function: Function,
    sink: Callable[[bytes], None],
    requested: int | None = None,
) -> tuple[Instance, Log]:
    """Start an instance with one log for both outputs, so that lines stay in order.

    ``requested`` is as of ``Runtime.start``. Raises Failed.
    """
    [output, errors], streams = pipes()
    errors.close()
    try:
        given = (streams[0], streams[1], streams[1])
        instance = await runtime.start(function, given, requested)
    except BaseException:
        output.close()
        raise
    finally:
        for descriptor in streams:
            os.close(descriptor)
    return instance, Log([output.detach()], sink)
