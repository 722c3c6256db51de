"""Drains interpreters' output, and keeps the end of it."""

import asyncio
from collections.abc import Sequence

from firstlight.agile.output import Output
from firstlight.errors import longer

_MOST = 8 << 10


class Drain:
    """Reads output as it comes, so that writers never block."""

    def __init__(self, outputs: Sequence[Output]) -> None:
        self._outputs = outputs
        self._kept = b""
        self._size = 0
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._read(output)) for output in outputs]

    async def _read(self, output: Output) -> None:
        async for part in output.parts():
            self._size += len(part)
            self._kept = (self._kept + part)[-_MOST:]

    @property
    def text(self) -> str:
        """The end of all outputs, in order of arrival, with the number of bytes before it."""
        text = self._kept.decode(errors="replace").rstrip()
        before = self._size - len(self._kept)
        return f"({before} bytes before) {text}" if before else text

    async def end(self) -> str:
        """The end of all outputs, once they have ended or a second has passed."""
        await asyncio.wait(self._tasks, timeout=longer(1.0))
        return self.text

    def close(self) -> None:
        """Stop reading; writers get SIGPIPE."""
        for task in self._tasks:
            task.cancel()
        for output in self._outputs:
            output.close()
