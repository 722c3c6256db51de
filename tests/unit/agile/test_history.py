"""What happened to instances, and waiting for it."""

import asyncio
import signal
from typing import Any

from firstlight.agile import Function
from firstlight.agile.function import Ended
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


def test_instance_ended_by_runtime_is_stopped() -> None:
    async def ended() -> list[str]:
        history = History()
        for kills, state, how in (
            (True, "running", Ended(signal=signal.SIGKILL)),
            (True, "timed out", Ended(signal=signal.SIGKILL)),
            (False, "running", Ended(signal=signal.SIGKILL)),
            (True, "running", Ended(signal=signal.SIGSEGV)),
            (True, "running", Ended(status=3)),
            (True, "running", Ended(signal=signal.SIGKILL, out_of_memory=True)),
        ):
            never: Any = None
            function = Function(rootfs="/", command=("true",))
            instance = Instance(1, function, 1, None, False, lambda *_: None, never)
            instance.state = state
            if kills:
                instance.kill()
            history.ended(instance, how)
        return [event.words for event in await history.after(0, 60)]

    assert asyncio.run(ended()) == [
        "stopped", "killed by SIGKILL", "killed by SIGKILL", "killed by SIGSEGV", "exit status 3",
        "out of memory: the limit is 128 MiB",
    ]  # fmt: skip


def test_a_later_history_has_greater_numbers() -> None:
    async def main() -> None:
        never: Any = None
        function = Function(rootfs="/", command=("true",))
        last = 0
        for number in range(3):
            history = History()
            history.started(Instance(number, function, 1, None, False, never, never))
            [event] = await history.after(last, 60)
            assert event.id == str(number)
            last = event.serial

    asyncio.run(main())
