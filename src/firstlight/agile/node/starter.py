"""Requests starts from the node, each by one message, as any client can."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from firstlight.agile.node import liveness, wire
from firstlight.agile.node.liveness import peer
from firstlight.agile.node.wire import Answer, AnswerVerb, RequestVerb
from firstlight.agile.sockets import is_passing, rights
from firstlight.errors import Failed, longer

ANSWER_SECONDS = longer(60.0)
"""The node refuses a start that waits for parts after half of it."""


class Starter:
    """This process's connection to the node."""

    def __init__(self, path: Path, unwanted: Callable[[int], None] = lambda _: None) -> None:
        """``unwanted`` gets the instances whose caller gave up before they started."""
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, asyncio.Future[Answer]] = {}
        self._sessions: dict[int, Callable[[int], None]] = {}
        self._serial = 0
        self._late: set[int] = set()
        self._unwanted = unwanted
        self._room = asyncio.Event()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise Failed(f"no node answers at {path}: {error.strerror}") from error
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._read)

    async def start(
        self, number: int, version: int, streams: list[int], env: dict[str, str], requested: int,
        flags: int = 0,
    ) -> Answer:  # fmt: skip
        """Request a start; returns the answer. Raises Failed."""
        words = wire.words((), env) if env else -1
        flags |= wire.AWAITED | (wire.WITH_WORDS if env else 0)
        self._serial += 1
        message = wire.request(
            RequestVerb.START, number, flags, self._serial, requested, version=version
        )
        given = [*streams, words] if env else [*streams]
        try:
            return await self._answer(self._serial, message, given)
        finally:
            if words >= 0:
                os.close(words)

    async def execute(
        self, instance: int, words: int, streams: list[int], ended: Callable[[int], None]
    ) -> Answer:
        """Request an exec; returns the answer. ``ended`` gets its wait status. Raises Failed."""
        self._serial += 1
        serial = self._serial
        self._sessions[serial] = ended
        message = wire.request(RequestVerb.EXEC, tag=serial, instance=instance)
        try:
            answer = await self._answer(serial, message, [*streams, words])
        except BaseException:
            self._sessions.pop(serial, None)
            raise
        if answer.verb == AnswerVerb.REFUSED:
            self._sessions.pop(serial, None)
        return answer

    async def _answer(self, serial: int, message: bytes, descriptors: list[int]) -> Answer:
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._pending[serial] = future
        sent = False
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._send(message, descriptors)
                sent = True
                return await future
        except TimeoutError:
            self._give_up(serial, future, sent)
            raise liveness.hangs(peer(self._socket)) from None
        except asyncio.CancelledError:
            self._give_up(serial, future, sent)
            raise
        finally:
            self._pending.pop(serial, None)

    def _give_up(self, serial: int, future: "asyncio.Future[Answer]", sent: bool) -> None:
        """Give up an answer, which may just have arrived."""
        if future.done() and not future.cancelled() and not future.exception():
            self._end_unwanted(future.result())
        elif sent:
            self._late.add(serial)

    def _end_unwanted(self, answer: Answer) -> None:
        if answer.verb == AnswerVerb.STARTED:
            self._unwanted(answer.instance)

    async def _send(self, message: bytes, descriptors: list[int]) -> None:
        while True:
            try:
                self._socket.sendmsg([message], rights(descriptors))
            except BlockingIOError:
                self._room.clear()
                self._loop.add_writer(self._socket, self._writable)
                await self._room.wait()
            except OSError as error:
                if is_passing(error):
                    await asyncio.sleep(0.001)
                    continue
                raise Failed(f"the node is gone: {error.strerror}", "try again") from error
            else:
                return

    def _writable(self) -> None:
        self._loop.remove_writer(self._socket)
        self._room.set()

    def _read(self) -> None:
        while self.is_open:
            try:
                message = self._socket.recv(4096)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self.close()
                return
            answer = wire.answer(message)
            if answer.verb == AnswerVerb.ENDED and (on_end := self._sessions.pop(answer.tag, None)):
                on_end(answer.status)
            if answer.tag in self._late and answer.verb != AnswerVerb.ENDED:
                self._late.remove(answer.tag)
                self._end_unwanted(answer)
            future = self._pending.get(answer.tag)
            if answer.verb != AnswerVerb.ENDED and future and not future.done():
                future.set_result(answer)

    @property
    def is_open(self) -> bool:
        """Whether the connection is open; the node closes it if it is not read."""
        return self._socket.fileno() >= 0

    def close(self) -> None:
        """Disconnect: instances that were not started detached end."""
        if self.is_open:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
        for future in self._pending.values():
            if not future.done():
                future.set_exception(Failed("the node is gone", "try again"))
        sessions, self._sessions = self._sessions, {}
        for on_end in sessions.values():
            on_end(signal.SIGKILL)
        self._room.set()
