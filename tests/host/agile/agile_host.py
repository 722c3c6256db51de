"""A host for a runtime: the namespaces of a thread, so that the test process stays put."""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from firstlight import place

Outcome = TypeVar("Outcome")
HERE = Path(__file__).parent
SECONDS = 60.0


def on_host(main: Callable[[], Awaitable[Outcome]]) -> Outcome:
    """Run a coroutine in a thread that has network and mount namespaces of its own."""
    outcome: list[Outcome] = []
    errors: list[BaseException] = []

    async def limited() -> Outcome:
        return await asyncio.wait_for(main(), SECONDS)

    def run() -> None:
        try:
            with place.isolated(f"test-agile-{os.getpid()}"):
                outcome.append(asyncio.run(limited()))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return outcome[0]
