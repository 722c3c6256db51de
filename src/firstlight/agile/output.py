"""Readers of an instance's output. A full pipe blocks the instance, not the runtime."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress

from firstlight.errors import Failed

_PART = 65536
_LINE_MOST = 65536
_REST_SECONDS = 0.002


class Output:
    """The reading end of a stream; owns its descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._held = self._kept = b""
        os.set_blocking(descriptor, False)

    @property
    def descriptor(self) -> int:
        """Its descriptor, or -1."""
        return self._descriptor

    async def read(self) -> bytes:
        """Read what is available, at least one byte; empty at the end."""
        if self._held:
            held, self._held = self._held, b""
            return held
        while self._descriptor >= 0:
            try:
                return os.read(self._descriptor, _PART)
            except BlockingIOError:
                await self._readable()
        return b""

    async def all(self, most: int = 1 << 20) -> bytes:
        """Read to the end; keeps at most ``most`` bytes."""
        while part := await self.read():
            self._kept += part[: most - len(self._kept)]
            await asyncio.sleep(0)  # a pipe that is never empty would block the loop
        return self._kept

    async def end(self, most: int) -> bytes:
        """Read to the end; keeps the last ``most`` bytes."""
        async for part in self.parts():
            self._kept = (self._kept + part)[-most:]
        return self._kept

    async def parts(self) -> AsyncIterator[bytes]:
        """All parts, a flood slowly: it blocks its writer, not the event loop."""
        size = 0
        while part := await self.read():
            yield part
            size += len(part)
            if size > _PART:
                await asyncio.sleep(_REST_SECONDS)

    def so_far(self, most: int) -> bytes:
        """What ``end`` kept before it was broken off, and up to ``most`` bytes since."""
        with suppress(BlockingIOError):
            if self._descriptor >= 0:
                self._kept = (self._kept + os.read(self._descriptor, most))[-most:]
        return self._kept

    async def until(self, prefix: bytes) -> None:
        """Read up to a line with this beginning; the output can be read again. Raises Failed."""
        seen = b""
        while not any(line.startswith(prefix) for line in seen.split(b"\n")[:-1]):
            part = await self.read()
            if not part:
                raise Failed("the instance ended before it was ready",
                             f"it wrote: {seen[-500:].decode(errors='replace')}")  # fmt: skip
            seen += part
            if len(seen) > _LINE_MOST:
                raise Failed(f"the instance wrote {len(seen)} bytes without the ready line")
        self._held = seen + self._held

    def detach(self) -> int:
        """Give its descriptor to the caller."""
        descriptor, self._descriptor = self._descriptor, -1
        return descriptor

    def close(self) -> None:
        """Close the descriptor; a writer gets SIGPIPE."""
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._descriptor, _settle, ready)
        try:
            await ready
        finally:
            if self._descriptor >= 0:
                loop.remove_reader(self._descriptor)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def pipes() -> tuple[list[Output], list[int]]:
    """The readers of an instance's output, and the three descriptors for the instance."""
    opened: list[int] = []
    try:
        opened.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(2):
            opened.extend(os.pipe2(os.O_CLOEXEC))
    except OSError as error:
        for descriptor in opened:
            os.close(descriptor)
        raise Failed(f"cannot open an instance's streams: {error.strerror}") from error
    null, out, out_end, err, err_end = opened
    return [Output(out), Output(err)], [null, out_end, err_end]
