"""Makes things on first use, each once."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from firstlight.errors import Failed

Made = TypeVar("Made")


async def shared(work: asyncio.Future[Made]) -> Made:
    """Work that several callers wait for; a caller that gives up does not end it.

    Raises what the work raises, and Failed if it is cancelled, for example when the runtime stops.
    """
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if work.cancelled() and task and not task.cancelling():
            raise Failed("the runtime is stopping", "try again when it has been started") from None
        raise


class SingleFlight(Generic[Made]):
    """Things by key. Callers that ask for a thing while it is made wait for it, and get its
    failure.

    A caller that gives up does not end the work. After a failure the next call retries.
    """

    def __init__(self) -> None:
        self._made: dict[bytes, Made] = {}
        self._making: dict[bytes, asyncio.Future[Made]] = {}

    async def get(self, key: bytes, make: Callable[[], Awaitable[Made]]) -> Made:
        """The thing with this key, made if needed. Raises what making it raises."""
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
        """Add a thing that was made elsewhere."""
        self._made[key] = made

    def has(self, key: bytes, made: Made) -> bool:
        """Whether this is the thing with the key."""
        return self._made.get(key) is made

    def known(self, key: bytes) -> Made | None:
        """The thing with this key, if it is made."""
        return self._made.get(key)

    def values(self) -> list[Made]:
        """All things that are made."""
        return list(self._made.values())

    def pop(self, key: bytes) -> Made | None:
        """Remove and return the thing with this key, if it is made."""
        return self._made.pop(key, None)

    def forget(self, made: Made) -> None:
        """Remove it: the next call for its key makes another."""
        self._made = {key: value for key, value in self._made.items() if value is not made}

    async def close(self) -> None:
        """Make no more."""
        making = list(self._making.values())
        for task in making:
            task.cancel()
        await asyncio.gather(*making, return_exceptions=True)
