"""What an interpreter writes while nobody waits for it: read to its end, and its end is kept."""

import asyncio
from collections.abc import Sequence

from firstlight.agile.output import Output

_MOST = 8 << 10


class Drain:
    """Reads outputs as they come, so that who writes is never held up."""

    def __init__(self, outputs: Sequence[Output]) -> None:
        self._outputs = outputs
        self._kept = b""
        self._size = 0
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._read(output)) for output in outputs]

    async def _read(self, output: Output) -> None:
        while part := await output.read():
            self._size += len(part)
            self._kept = (self._kept + part)[-_MOST:]

    @property
    def text(self) -> str:
        """The last of all outputs, in the order of its arrival, and how much there was before."""
        text = self._kept.decode(errors="replace").rstrip()
        before = self._size - len(self._kept)
        return f"({before} bytes before) {text}" if before else text

    async def end(self) -> str:
        """The same when the outputs have ended, or after a second."""
        await asyncio.wait(self._tasks, timeout=1.0)
        return self.text

    def close(self) -> None:
        """Stop reading; what writes there gets SIGPIPE."""
        for task in self._tasks:
            task.cancel()
        for output in self._outputs:
            output.close()
