"""Waiting for events of instances."""

import asyncio
from typing import Any

from firstlight.agile import Function
from firstlight.agile.instance import Instance
from firstlight.agile.node.history import History


def test_who_waits_can_be_cancelled_in_any_turn_of_the_loop() -> None:
    """Before Python 3.12, ``asyncio.wait_for`` loses a cancellation of one that is just served."""
    never: Any = None

    async def ends_after(turns: int) -> None:
        history = History()
        function = Function(rootfs="/", command=("true",))
        instance = Instance(1, function, 1, None, False, never, never)
        waiting = asyncio.ensure_future(history.after(0, 60))
        await asyncio.sleep(0.001)
        history.started(instance)
        for _ in range(turns):
            await asyncio.sleep(0)
        if waiting.cancel():
            await asyncio.wait([waiting])
            assert waiting.cancelled(), f"it goes on, {turns} turns after an event"

    for turns in range(6):
        asyncio.run(ends_after(turns))
