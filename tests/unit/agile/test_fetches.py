"""Who fetches and unpacks code has threads of its own, a few for each owner."""

import asyncio
import threading

import pytest

from firstlight.agile.functions import fetches as module
from firstlight.agile.functions.fetches import Fetches
from firstlight.agile.serving import Throttled


def test_slow_fetches_hold_up_nobody_else_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAITING", 40)
    released = threading.Event()

    async def main() -> None:
        fetches = Fetches()
        slow = [asyncio.create_task(fetches.run("a", released.wait)) for _ in range(42)]
        await asyncio.sleep(0)
        with pytest.raises(Throttled, match="40 functions wait"):
            await fetches.run("a", released.wait)
        assert await fetches.run("b", lambda: 1) == 1
        assert await asyncio.to_thread(lambda: 2) == 2
        left = [slow.pop(0), slow.pop()]  # one at work, and one that waits
        for each in left:
            each.cancel()
        await asyncio.wait(left)
        assert fetches._running["a"] == module._EACH  # its thread is at work
        assert len(fetches._waiting) == 39
        released.set()
        assert all(await asyncio.gather(*slow))
        with pytest.raises(ZeroDivisionError):
            await fetches.run("a", lambda: 1 // 0)
        assert not fetches.busy

    asyncio.run(main())


def test_all_owners_together_have_a_few_threads() -> None:
    released = threading.Event()

    async def main() -> None:
        fetches = Fetches()
        slow = [asyncio.create_task(fetches.run(each % 20, released.wait)) for each in range(40)]
        await asyncio.sleep(0)
        assert sum(each.name == "fetch" for each in threading.enumerate()) == module._AT_ONCE
        released.set()
        await asyncio.gather(*slow)

    asyncio.run(main())
