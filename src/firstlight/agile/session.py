"""A program started in a running instance, beside its own."""

import asyncio
from dataclasses import dataclass

from firstlight.agile.function import Ended
from firstlight.agile.output import Output


@dataclass
class Session:
    """It ends with its instance, and with the runtime that started it."""

    pid: int
    stdout: Output
    stderr: Output
    ended: asyncio.Future[Ended]

    async def wait(self) -> Ended:
        """Wait for its end; returns how it ended."""
        return await asyncio.shield(self.ended)
