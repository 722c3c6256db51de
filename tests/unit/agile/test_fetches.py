"""Who fetches and unpacks code has threads of its own, a few for each owner."""

import asyncio
import threading

import pytest

from firstlight.agile.functions import fetches as module
from firstlight.agile.functions.fetches import Fetches
from firstlight.agile.serving import Throttled
from firstlight.errors import Failed


def test_slow_fetches_hold_up_nobody_else_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAITING", 40)
    released = threading.Event()

    async def main() -> None:
        fetches = Fetches()
        slow = [asyncio.create_task(fetches.run(("a", True), released.wait)) for _ in range(42)]
        await asyncio.sleep(0)
        with pytest.raises(Throttled, match="40 functions wait"):
            await fetches.run(("a", True), released.wait)
        assert await fetches.run(("b", True), lambda: 1) == 1
        assert await asyncio.to_thread(lambda: 2) == 2
        left = [slow.pop(0), slow.pop()]  # one at work, and one that waits
        for each in left:
            each.cancel()
        await asyncio.wait(left)
        assert fetches._running["a", True] == module._EACH  # its thread is at work
        assert len(fetches._waiting) == 39
        released.set()
        assert all(await asyncio.gather(*slow))
        with pytest.raises(ZeroDivisionError):
            await fetches.run(("a", True), lambda: 1 // 0)
        assert not fetches.busy

    asyncio.run(main())


def test_all_owners_together_have_a_few_threads() -> None:
    released = threading.Event()

    async def main() -> None:
        fetches = Fetches()
        slow = [
            asyncio.create_task(fetches.run((str(each % 20), False), released.wait))
            for each in range(40)
        ]
        await asyncio.sleep(0)
        assert sum(each.name == "fetch" for each in threading.enumerate()) == module._AT_ONCE
        released.set()
        await asyncio.gather(*slow)

    asyncio.run(main())


def test_images_leave_threads_to_others_and_owners_have_turns() -> None:
    released, order = threading.Event(), list[str]()

    async def main() -> None:
        fetches = Fetches()
        images = [
            asyncio.create_task(fetches.run((owner, True), released.wait))
            for owner in "abcd"
            for _ in range(20)
        ]
        await asyncio.sleep(0)
        assert await fetches.run(("e", False), lambda: 1) == 1
        late = asyncio.create_task(fetches.run(("e", True), lambda: order.append("e")))
        for each in images:
            each.add_done_callback(lambda _: order.append("image"))
        released.set()
        await asyncio.gather(late, *images)
        assert order.index("e") < 20

    asyncio.run(main())


def test_a_thread_that_cannot_start_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        fetches = Fetches()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            for _ in range(3):
                with pytest.raises(Failed, match="no more threads"):
                    await fetches.run(("a", True), lambda: 1)
        assert not fetches.busy
        assert await fetches.run(("a", True), lambda: 1) == 1

    asyncio.run(main())
