"""A connection to a WebAssembly worker, which answers requests in any order."""

import asyncio
import socket
import time

from firstlight.agile.sockets import Outbox
from firstlight.agile.wasm import wire
from firstlight.agile.wasm.wire import Reply
from firstlight.errors import Failed

WAITING_MAX = 4096
_READS = 4  # at most, before other tasks run


class _Call:
    """The events of a message, and their results as they arrive."""

    def __init__(self, events: int) -> None:
        self.replies: list[Reply | None] = [None] * events
        self.missing = events
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, first: int, count: int, message: bytes) -> None:
        """Raises Failed for results that were not requested, before reading them."""
        places = range(first, first + count)
        if count > self.missing or any(
            self.replies[place : place + 1] != [None] for place in places
        ):
            raise Failed("a worker answered an event twice, or an unknown one")
        _, _, replies = wire.answer(message)
        self.replies[first : first + count] = replies
        self.missing -= len(replies)
        if not self.missing and not self.done.done():
            self.done.set_result(None)


class Channel:
    """A connection. ``over`` is done once the worker has closed it or violated the protocol.

    ``answered`` is the time of its last answer, in s of ``time.monotonic``.
    """

    def __init__(self, connection: socket.socket, name: str) -> None:
        self._socket, self._name = connection, name
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, _Call] = {}
        self._serial = self._waiting = 0
        self._error: Failed | None = None
        self.answered = 0.0
        self.over: asyncio.Future[None] = self._loop.create_future()
        connection.setblocking(False)
        self._outbox = Outbox(connection)
        self._loop.add_reader(connection.fileno(), self._read)

    async def ask(self, events: list[bytes]) -> list[Reply]:
        """Send events, and wait for their results; without events, wait until the worker serves.
        Raises Failed.
        """
        if self._error:
            raise self._error
        if self._waiting + len(events) > WAITING_MAX:
            raise Failed(f"{self._waiting} events are waiting for the worker of {self._name}",
                         "send fewer at once, or give the function more CPUs")  # fmt: skip
        self._serial += 1
        serial = self._serial
        message = wire.request(serial, events)
        call = self._calls[serial] = _Call(len(events))
        self._waiting += len(events)
        try:
            self._outbox.send(message)
            await call.done
        finally:
            self._waiting -= len(events)
            self._calls.pop(serial, None)
        return [reply for reply in call.replies if reply]

    @property
    def waiting(self) -> int:
        """The number of events without a result."""
        return self._waiting

    def close(self) -> None:
        """Disconnect; no event may be waiting."""
        self._error = Failed(f"the connection to the worker of {self._name} is closed", "try again")
        self._end()

    def fail(self, error: Failed) -> None:
        """Fail all waiting and future requests with this error."""
        self._error = error
        self._end()
        for call in self._calls.values():
            if not call.done.done():
                call.done.set_exception(error)

    def _read(self) -> None:
        for _ in range(_READS):
            try:
                message = self._socket.recv(wire.MESSAGE_MAX)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            try:
                if not message:
                    raise Failed(f"the worker of {self._name} is gone")
                identity, first, count = wire.head(message)
                if identity in self._calls:  # else its caller gave up
                    self._calls[identity].take(first, count, message)
                    self.answered = time.monotonic()
            except Failed:
                self._end()
                return

    def _end(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._outbox.close()
            self._socket.close()
        if not self.over.done():
            self.over.set_result(None)
