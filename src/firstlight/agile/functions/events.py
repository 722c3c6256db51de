"""The queue of asynchronous events: each accepted event is answered at least once, or kept as dead.

An event is in the database from before it is accepted until it is done. After a kill, the next
process answers it. If its function fails, the event is retried with growing delays. One that cannot
be answered is appended to the dead-letter file, as a line of JSON. Both are bounded: the database
refuses events that it has no room for, and the oldest dead letters are removed.

Times are from a clock that cannot be set while this process runs (``clock``), so a correction of
the host's clock neither delays events nor expires them.
"""

import asyncio
import base64
import errno
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from firstlight.agile.config import Events
from firstlight.agile.function import NodeFailed
from firstlight.agile.functions.errors import NotFound
from firstlight.agile.functions.records import Event
from firstlight.agile.functions.store import Excluded, Store
from firstlight.agile.serving import Answer, Throttled
from firstlight.errors import FirstlightError

_AT_ONCE, _PER_FUNCTION = 64, 16
"""How many events are answered at once, of all functions and of each."""
_ENDS_MOST = 5
_BUSY_SECONDS, _BUSY_MOST = 1.0, 300.0
_log = logging.getLogger(__name__)

Answering = Callable[[Event], Awaitable[Answer]]
_BEGAN = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def clock() -> float:
    """Seconds since 1970, by the host's clock at this process's start plus the time since then."""
    return _BEGAN + time.clock_gettime(time.CLOCK_BOOTTIME)


class Queue:
    """The queue over a store; ``answer`` answers an event by its function. ``close`` at the end."""

    def __init__(self, config: Events, store: Store, letters: Path, answer: Answering) -> None:
        self._config, self._store, self._answer = config, store, answer
        self._letters, self._letters_lock = letters, threading.Lock()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._busy: Counter[str] = Counter()
        self._accepting: list[tuple[Event, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._serve())

    async def accept(self, event: Event) -> None:
        """Store an event durably. Raises Throttled, Failed."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._accepting.append((event, written))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write())
        await written

    async def waiting(self) -> int:
        """How many events are kept."""
        return await asyncio.to_thread(self._store.waiting)

    async def close(self) -> None:
        """Stop. Unanswered events stay in the store."""
        tasks = [self._task, *self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._writing:
            await asyncio.gather(self._writing, return_exceptions=True)

    async def _write(self) -> None:
        """Write the events accepted in the meantime in one transaction."""
        while self._accepting:
            batch, self._accepting = self._accepting, []
            error: Exception | None = None
            refused: set[str] = set()
            events, most = [event for event, _ in batch], self._config.queue_bytes
            try:
                refused = await asyncio.to_thread(self._store.accept, events, most)
            except Exception as failed:
                error = failed
            for event, written in batch:
                if written.done():
                    continue
                if error:
                    written.set_exception(error)
                elif event.id in refused:
                    written.set_exception(_full(event.name, most))
                else:
                    written.set_result(None)
            self._news.set()

    async def _serve(self) -> None:
        with suppress(FirstlightError):  # the disk is full; they are retried later
            now = clock()
            await asyncio.to_thread(self._store.hasten, now, now + self._longest())
        while True:
            self._news.clear()
            try:
                room = _AT_ONCE - len(self._running)
                events = await asyncio.to_thread(self._store.due, clock(), room, self._excluded())
                for event in events:
                    if self._busy[event.name] < _PER_FUNCTION:
                        self._busy[event.name] += 1
                        task = asyncio.get_running_loop().create_task(self._deliver(event))
                        self._running[event.id] = task
                later = await asyncio.to_thread(self._store.next_due, self._excluded())
            except FirstlightError as error:
                _log.error("the queue of events: %s", error.message)
                later = clock() + _BUSY_SECONDS
            full = len(self._running) >= _AT_ONCE
            wait = None if later is None or full else max(later - clock(), 0.0)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._news.wait()

    def _excluded(self) -> Excluded:
        """The events being answered, and the functions whose events must wait."""
        busy = [name for name, count in self._busy.items() if count >= _PER_FUNCTION]
        return list(self._running), busy

    async def _deliver(self, event: Event) -> None:
        try:
            await self._try_event(event)
        except asyncio.CancelledError:
            self._store.postpone(event.id, event.attempts, event.due)  # no attempt has failed
            raise
        except Exception as error:
            if isinstance(error, FirstlightError):  # the disk is full, perhaps that of the log too
                _log.error("the event %s of %s: %s", event.id, event.name, error.message)
            else:
                _log.exception("the event %s of %s", event.id, event.name)
            await asyncio.sleep(_BUSY_SECONDS)  # it is due again at once
        finally:
            del self._running[event.id]
            self._busy[event.name] -= 1
            if not self._busy[event.name]:
                del self._busy[event.name]
            self._news.set()

    async def _try_event(self, event: Event) -> None:
        """Answer an event; postpone or give up one that fails."""
        attempts = event.attempts + 1
        if attempts > self._config.retries + _ENDS_MOST:
            await self._bury(event, attempts - 1, "its instance was ended from outside each time")
            return
        # Counted before the attempt: an event that ends the process must not be retried for ever.
        await asyncio.to_thread(self._store.postpone, event.id, attempts, event.due)
        reason, ended = "", False
        try:
            answer = await self._answer(event)
            if not answer.error:
                await asyncio.to_thread(self._store.done, [event.id])
                return
            reason = answer.payload.decode(errors="replace")
            delay = self._config.retry_seconds * attempts
        except NotFound as error:
            await self._bury(event, attempts, error.message)
            return
        except FirstlightError as error:
            reason = error.message
            if isinstance(error, Throttled):  # it was not attempted
                attempts -= 1
            delay = min(_BUSY_SECONDS * 2 ** min(attempts, 10), _BUSY_MOST)
            ended = isinstance(error, NodeFailed)  # as when this process had ended
        if (attempts > self._config.retries and not ended) or self._is_old(event, delay):
            await self._bury(event, attempts, reason)
        else:
            due = clock() + delay
            await asyncio.to_thread(self._store.postpone, event.id, attempts, due)

    def _longest(self) -> float:
        """The longest delay; an event that is due later was stored by a clock that has been set
        back since.
        """
        attempts = self._config.retries + _ENDS_MOST
        return max(self._config.retry_seconds * attempts, _BUSY_MOST)

    def _is_old(self, event: Event, delay: float) -> bool:
        return clock() + delay - event.accepted > self._config.oldest_seconds

    async def _bury(self, event: Event, attempts: int, reason: str) -> None:
        letter = {
            "time": time.time(), "accepted": event.accepted, "request": event.id,
            "function": event.name, "qualifier": event.qualifier, "attempts": attempts,
            "reason": reason[:4096], **_payload(event.payload),
        }  # fmt: skip
        await asyncio.to_thread(self._append, json.dumps(letter).encode() + b"\n")
        await asyncio.to_thread(self._store.done, [event.id])
        _log.warning("the event %s of %s is dead: %s", event.id, event.name, reason[:200])

    def _append(self, text: bytes) -> None:
        with self._letters_lock:
            self._write_letter(text)

    def _write_letter(self, text: bytes) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._letters, flags, 0o600)
        try:
            before = os.fstat(descriptor).st_size
            try:
                written = os.write(descriptor, text)
                if written < len(text):
                    raise OSError(errno.ENOSPC, f"{self._letters}: no room for a dead letter")
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, before)  # else the next would join an incomplete line
                raise
        finally:
            os.close(descriptor)
        if before + written >= self._config.dead_bytes:
            second = self._letters.with_suffix(f".1{self._letters.suffix}")
            if second.exists():
                _log.warning("the dead-letter file is full: those of %s are removed", second)
            self._letters.replace(second)


def _full(name: str, most: int) -> Throttled:
    return Throttled(
        f"the queue has no room for an event of {name}: {most} bytes are for those of all "
        "functions, of which each leaves as much as it takes", "call again later, or raise "
        "events.queue_bytes",
    )  # fmt: skip


def _payload(payload: bytes) -> dict[str, str]:
    try:
        return {"payload": payload.decode()}
    except UnicodeDecodeError:
        return {"payload_base64": base64.b64encode(payload).decode()}
