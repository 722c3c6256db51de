"""Things that are made when they are first asked for."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from firstlight.errors import Failed

Made = TypeVar("Made")


async def shared(work: asyncio.Future[Made]) -> Made:
    """What others wait for too: who gives up waiting does not end it.

    Raises what it raises, and Failed if it is cancelled, as when the runtime stops.
    """
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if work.cancelled() and task and not task.cancelling():
            raise Failed("the runtime is stopping", "try again when it has been started") from None
        raise


class SingleFlight(Generic[Made]):
    """Things by key. Those who ask for one while it is made wait for it, or hear of its failure.

    A waiter that gives up does not end the work. A failure is not kept: the next call retries.
    """

    def __init__(self) -> None:
        self._made: dict[bytes, Made] = {}
        self._making: dict[bytes, asyncio.Future[Made]] = {}

    async def get(self, key: bytes, make: Callable[[], Awaitable[Made]]) -> Made:
        """What has this key, made if need be. Raises what making it raises."""
        if key in self._made:
            return self._made[key]
        if key not in self._making:
            self._making[key] = asyncio.ensure_future(self._make(key, make))
        return await shared(self._making[key])

    async def _make(self, key: bytes, make: Callable[[], Awaitable[Made]]) -> Made:
        try:
            self._made[key] = await make()
        finally:
            del self._making[key]
        return self._made[key]

    def put(self, key: bytes, made: Made) -> None:
        """Have one that was made elsewhere."""
        self._made[key] = made

    def has(self, key: bytes, made: Made) -> bool:
        """Whether this is what has the key."""
        return self._made.get(key) is made

    def known(self, key: bytes) -> Made | None:
        """What there is for a key, if it is made."""
        return self._made.get(key)

    def values(self) -> list[Made]:
        """All that are made."""
        return list(self._made.values())

    def pop(self, key: bytes) -> Made | None:
        """What has this key, if it is made, which is not had again."""
        return self._made.pop(key, None)

    def forget(self, made: Made) -> None:
        """Forget it: the next call for its key makes another."""
        self._made = {key: value for key, value in self._made.items() if value is not made}

    async def close(self) -> None:
        """Make no more."""
        making = list(self._making.values())
        for task in making:
            task.cancel()
        await asyncio.gather(*making, return_exceptions=True)
