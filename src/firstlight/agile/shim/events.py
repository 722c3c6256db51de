"""Sends events to containerd in order; they wait while it is down."""

import asyncio
import logging
import socket
from collections import deque
from contextlib import suppress

from firstlight.agile.shim.ttrpc import HEADER, Message, messages, now, request, timestamp
from firstlight.errors import longer

_SERVICE = "containerd.services.events.ttrpc.v1.Events"
_TOPICS = {
    "TaskCreate": "/tasks/create", "TaskStart": "/tasks/start", "TaskExit": "/tasks/exit",
    "TaskDelete": "/tasks/delete", "TaskOOM": "/tasks/oom", "TaskPaused": "/tasks/paused",
    "TaskResumed": "/tasks/resumed", "TaskExecAdded": "/tasks/exec-added",
    "TaskExecStarted": "/tasks/exec-started",
}  # fmt: skip
_WAITING_MAX = 10_000
_ANSWER_SECONDS = longer(10.0)
_AGAIN_SECONDS = 0.2
_log = logging.getLogger(__name__)


class Events:
    """Forwards events to containerd's ttrpc socket."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._waiting: deque[tuple[bytes, str, asyncio.Future[None]]] = deque(maxlen=_WAITING_MAX)
        self._task: asyncio.Task[None] | None = None
        self._peer: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._stream = 1

    def publish(self, namespace: str, event: Message) -> "asyncio.Future[None]":
        """Queue an event of containerd.events; the future is done when containerd has it."""
        name = event.DESCRIPTOR.name
        envelope = messages.Envelope(
            timestamp=timestamp(now()), namespace=namespace, topic=_TOPICS[name],
            event=messages.Any(
                type_url=f"containerd.events.{name}", value=event.SerializeToString()
            ),
        )  # fmt: skip
        payload = messages.ForwardRequest(envelope=envelope).SerializeToString()
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((payload, namespace, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send())
        return done

    async def _send(self) -> None:
        while self._waiting:
            payload, namespace, done = self._waiting[0]
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await self._forward(payload, namespace)
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                _log.debug("containerd's event socket %s: %s", self._address, error)
                self._hang_up()
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            if self._waiting and self._waiting[0][2] is done:
                self._waiting.popleft()
            if not done.done():
                done.set_result(None)

    async def _forward(self, payload: bytes, namespace: str) -> None:
        if self._peer is None:
            self._peer = await asyncio.open_unix_connection(self._address)
            writer = self._peer[1]
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        reader, writer = self._peer
        self._stream += 2
        writer.write(request(self._stream, _SERVICE, "Forward", payload, namespace))
        await writer.drain()
        length, _, _, _ = HEADER.unpack(await reader.readexactly(HEADER.size))
        answer = messages.Response.FromString(await reader.readexactly(length))
        if answer.status.code:
            _log.warning("containerd refused an event: %s", answer.status.message)

    def _hang_up(self) -> None:
        if self._peer:
            self._peer[1].close()
            self._peer = None

    async def close(self, seconds: float) -> None:
        """Send waiting events for at most this time."""
        if self._task:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await asyncio.shield(self._task)
            self._task.cancel()
        self._hang_up()
