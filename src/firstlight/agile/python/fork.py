"""A fork of a zygote, and its conversation with the runtime."""

import asyncio
import fcntl
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from struct import pack, unpack_from
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from firstlight.agile import coding, verify
from firstlight.agile.function import HANDLER_ERROR, Ended, Function, HandlerFailed
from firstlight.agile.node import kept
from firstlight.agile.node.kept import KeptFork
from firstlight.agile.node.process import Keepsake
from firstlight.agile.output import Output, pipes
from firstlight.agile.partial_answers import Partial
from firstlight.agile.python.place import Place
from firstlight.errors import Failed, longer

if TYPE_CHECKING:
    from firstlight.agile.python.interpreter import Interpreter

ANSWER_MOST = 8 << 20
_OUTPUT_MOST = 1 << 16
_SHORT = 1 << 16  # bytes of an answer with half a surrogate pair: Python's parser takes its time
_END_SECONDS = longer(1.0)
_PIDFD_GET_INFO, _PIDFD_INFO_EXIT = 0xC040FF0B, 8  # Linux 6.15


class Line(Struct, frozen=True):
    """A line from a fork: it waits, its handler has returned or failed, or it is not confined."""

    ready: int | None = None
    began: int | None = None
    result: Any = None
    raised: str | None = None
    error: tuple[str, str] | None = None
    exited: str | None = None
    unfit: str | None = None
    failed: str = "no reason given"


class _LongLine(Line, frozen=True):
    """One whose result is not parsed: that takes the loop's time, and many times its memory."""

    result: msgspec.Raw = msgspec.Raw(b"null")


_lines, _long_lines = msgspec.json.Decoder(Line), msgspec.json.Decoder(_LongLine)


class Fork:
    """A fork and its place, from before it exists.

    ``expected`` is the confinement that it must have. ``given`` are the descriptors that the zygote
    makes it from: the event's socket, standard output and error, and namespaces.
    """

    def __init__(
        self, function: Function, place: Place, events: socket.socket, outputs: list[Output],
        expected: verify.Expected | None = None, zygote: "Interpreter | None" = None,
    ) -> None:  # fmt: skip
        """Takes over ``events`` and ``outputs``."""
        self.zygote = zygote
        self.name, self.place = function.handler, place
        self.outputs, self.expected = outputs, expected
        self._owner, self._function = function.owner, function.name or function.handler
        self.given: list[int] = []
        self.pid = self.pidfd = self._note = -1
        self._events, self._listens = events, False
        events.setblocking(False)

    def keep(self, keep: Callable[[list[int]], Keepsake | None], zygote: int) -> None:
        """Have the node keep its descriptors for the next manager."""
        place = self.place
        network = place.network.note().decode()
        self._note = kept.written(
            KeptFork(zygote, place.pid, int(place.cgroup.memory.name), network)
        )
        place.kept = keep(
            [self._note, place.hold.fileno(), place.pidfd, place.network.descriptor,
             self._events.fileno(), *(output.descriptor for output in self.outputs)]
        )  # fmt: skip

    async def listen(self) -> None:
        """Open the reader of its lines."""
        self._reader, self._writer = await asyncio.open_connection(sock=self._events, limit=_SHORT)
        self._listens = True

    def hand_over(self) -> None:
        """Close this process's copies of the descriptors, so that the fork's end is visible."""
        for descriptor in self.given:
            os.close(descriptor)
        self.given = []

    async def ready(self) -> None:
        """Wait until it is ready for its event. Raises Failed."""
        try:
            line = await self._reader.readline()
        except (OSError, ValueError):
            line = b""
        if not line:
            raise HandlerFailed(
                "Runtime.ExitError", f"a fork of {self.name} ended before it was ready"
            )
        answer = self.parsed(line)
        if answer.ready is None:
            raise HandlerFailed(HANDLER_ERROR, f"cannot fork {self.name}: {answer.failed}")

    async def has_ended(self) -> bool:
        """Whether all that held its end of the socket are gone, as when it was killed.

        The zygote closes its own copy after the fork, unless its import keeps one.
        """
        try:
            async with asyncio.timeout(_END_SECONDS):
                return not await self._reader.read(1)
        except TimeoutError:
            return False
        except (OSError, ValueError):
            return True

    def check(self, pid: int, zygote: int) -> None:
        """Set its process, and verify that this is confined and shares nothing. Raises Failed."""
        try:
            self.pid, self.pidfd = pid, os.pidfd_open(pid)
        except OSError as error:
            raise HandlerFailed(
                "Runtime.ExitError", f"a fork of {self.name} ended before it was ready"
            ) from error
        assert self.expected
        verify.check(f"a fork of {self.name}", pid, self.expected, zygote)

    async def run(self, line: bytes) -> Line | int | None:
        """Send its handler's event, and wait for its end; returns its answer or its wait status."""
        self._writer.write(line)
        answer = b""
        with suppress(ValueError, ConnectionError, Failed):
            answer = await self._read_line()
        if answer:
            with suppress(Failed):
                return self.parsed(answer)
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                return await _exit_status(self.pidfd)
        return None

    async def ask(self, line: bytes) -> tuple[Line, list[bytes]]:
        """Send an event; returns the answer and the output. Raises Failed."""
        if self._note >= 0:
            kept.mark(self._note)
        self._writer.write(line)
        return await self.answer()

    async def answer(self) -> tuple[Line, list[bytes]]:
        """Wait for the answer to its event; returns it with the output. Raises Failed."""
        texts = [asyncio.ensure_future(output.end(_OUTPUT_MOST)) for output in self.outputs]
        try:
            answer = await self._line()
            self.place.end()  # its children end with its answer
            return self.parsed(answer), list(await asyncio.gather(*texts))
        finally:
            for text in texts:
                text.cancel()

    def written(self) -> str:
        """What it has written so far."""
        return b"".join(each.so_far(_OUTPUT_MOST) for each in self.outputs).decode(errors="replace")

    async def _line(self) -> bytes:
        try:
            line = await self._read_line()
        except ValueError:
            raise HandlerFailed(
                "Function.ResponseSizeTooLarge",
                f"the answer of {self.name} is longer than {ANSWER_MOST} bytes",
                "return less, or write it elsewhere",
            ) from None
        except ConnectionError:
            line = b""
        if not line:
            try:
                async with asyncio.timeout(_END_SECONDS):
                    status = await _exit_status(self.pidfd)
            except TimeoutError:
                raise HandlerFailed(
                    "Runtime.ExitError", f"{self.name} closed its descriptor 3 and still runs",
                    "leave it open: it belongs to the runtime",
                ) from None  # fmt: skip
            how = "" if status is None else f": {Ended.of(status)}"
            raise HandlerFailed("Runtime.ExitError", f"{self.name} ended without an answer{how}")
        return line

    async def _read_line(self) -> bytes:
        """A line, or what came instead of its end. Raises ValueError for a longer one than an
        answer may be, ConnectionError, NodeFailed.
        """
        try:
            return await self._reader.readuntil()
        except asyncio.IncompleteReadError as error:
            return error.partial
        except asyncio.LimitOverrunError:
            pass
        with closing(Partial(self._owner, self._function)) as line:
            while len(line) <= ANSWER_MOST:
                try:
                    line.add(await self._reader.readuntil())
                except asyncio.IncompleteReadError as error:
                    line.add(error.partial)
                except asyncio.LimitOverrunError as error:
                    line.add(await self._reader.readexactly(error.consumed))
                    continue
                return line.take()
        raise ValueError

    def parsed(self, line: bytes) -> Line:
        """Parse a line from it. Raises Failed."""
        try:
            if len(line) <= _SHORT:
                return coding.decode(line, _lines)
            line.decode()  # which the other does not check
            return _long_lines.decode(line)
        except (ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise HandlerFailed(
                HANDLER_ERROR, f"{self.name} wrote something other than an answer: {error}",
                "leave descriptor 3 to the runtime",
            ) from None  # fmt: skip

    def close(self) -> None:
        """End it and stop reading; the place keeps its parts."""
        self.place.end()
        self.hand_over()
        if self._listens:
            self._writer.close()
        else:
            self._events.close()
        for descriptor in (self.pidfd, self._note):
            if descriptor >= 0:
                os.close(descriptor)
        self.pidfd = self._note = -1
        for output in self.outputs:
            output.close()


def made(
    function: Function, place: Place, expected: verify.Expected, zygote: "Interpreter"
) -> Fork:
    """Prepare a fork. Raises Failed, OSError."""
    with ExitStack() as failed:
        outputs, [null, *streams] = pipes()
        for output in outputs:
            failed.callback(output.close)
        os.close(null)
        for descriptor in streams:
            failed.callback(os.close, descriptor)
            os.fchown(descriptor, expected.uid, -1)  # otherwise /dev/stdout cannot be opened
        events, theirs = socket.socketpair()
        failed.callback(events.close)
        failed.callback(theirs.close)
        spaces = place.open()
        failed.pop_all()
    fork = Fork(function, place, events, outputs, expected, zygote)
    fork.given = [theirs.detach(), *streams, *spaces]
    return fork


async def _exit_status(pidfd: int) -> int | None:
    """The wait status of an exiting process; None before Linux 6.15."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)
    information = bytearray(pack("=Q56x", _PIDFD_INFO_EXIT))
    for _ in range(20):  # available only after the zygote has reaped it
        try:
            fcntl.ioctl(pidfd, _PIDFD_GET_INFO, information)
        except OSError:
            return None
        if unpack_from("=Q", information)[0] & _PIDFD_INFO_EXIT:
            return int(unpack_from("=i", information, 60)[0])
        await asyncio.sleep(0.001)
    return None
