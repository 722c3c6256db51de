"""Messages with descriptors over a seqpacket socket, without waiting."""

import errno
import logging
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from firstlight.errors import Failed

RIGHTS_MAX = 8
"""Descriptors that one message holds: as many as native/common/socket.h allows."""
_MESSAGE_MAX = 65536
_UNSENT_MOST = 1 << 16
_SPACE = socket.CMSG_SPACE(4 * RIGHTS_MAX)
_RETRY_SECONDS = 0.01
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ECONNREFUSED, errno.ESHUTDOWN)
_BUSY = (errno.EAGAIN, errno.EWOULDBLOCK)
_SHORT = (errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)
"""Of the kernel, for a while: memory, or what may be in flight of descriptors."""
_log = logging.getLogger(__name__)


class Outbox:
    """Sends messages in order, at once or when there is room.

    Never waits, and holds a bounded number. The caller keeps the connection.
    """

    def __init__(
        self, connection: socket.socket, flushed: Callable[[], None] = lambda: None
    ) -> None:  # fmt: skip
        """``flushed`` is called when a waiting message has been sent."""
        import asyncio  # slow, and the command line needs only ``rights``

        self._socket, self._flushed = connection, flushed
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._loop = asyncio.get_running_loop()
        self._retry: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._unsent)

    def send(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a message; the descriptors may be closed then. Raises Failed if it cannot be sent.

        Messages that the other end does not read before it ends are lost. If sending fails later,
        the connection is shut down, which both ends see.
        """
        if len(self._unsent) >= _UNSENT_MOST:
            raise Failed(f"the other side reads nothing: {len(self._unsent)} messages wait",
                         "it hangs, or is stopped")  # fmt: skip
        if not self._unsent:
            try:
                self._socket.sendmsg([message], rights(descriptors))
            except OSError as error:
                if error.errno in _GONE:
                    return  # the reader notices
                if not self._waits(error):
                    raise Failed(f"cannot send {len(message)} bytes: {error.strerror}") from error
            else:
                return
        self._unsent.append((message, _copies(descriptors)))

    def _waits(self, error: OSError) -> bool:
        """Whether to retry when there is room, or the kernel has memory."""
        if error.errno in _BUSY:
            self._loop.add_writer(self._socket.fileno(), self._flush)
        elif error.errno in _SHORT:  # it counts as writable meanwhile
            self._loop.remove_writer(self._socket.fileno())
            self._retry = self._loop.call_later(_RETRY_SECONDS, self._flush)
        else:
            return False
        return True

    def _flush(self) -> None:
        while self._unsent:
            message, descriptors = self._unsent[0]
            try:
                self._socket.sendmsg([message], rights(descriptors))
            except OSError as error:
                if self._waits(error):
                    break
                if error.errno not in _GONE:
                    _log.error("cannot send %d bytes: %s", len(message), error.strerror)
                    with suppress(OSError):
                        self._socket.shutdown(socket.SHUT_RDWR)
                self.close()
            else:
                self._unsent.popleft()
                _close(descriptors)
        else:
            self._loop.remove_writer(self._socket.fileno())
        self._flushed()

    def close(self) -> None:
        """Stop sending; waiting messages are lost. Call it before the connection is closed."""
        self._loop.remove_writer(self._socket.fileno())
        if self._retry:
            self._retry.cancel()
        for _, descriptors in self._unsent:
            _close(descriptors)
        self._unsent.clear()


class Connection:
    """One end of a connection, which it owns.

    ``received`` gets each message with its descriptors; ``ended`` is called once, after the other
    end has closed.
    """

    def __init__(
        self, connection: socket.socket, received: Callable[[bytes, list[int]], None],
        ended: Callable[[], None],
    ) -> None:  # fmt: skip
        import asyncio  # as above

        connection.setblocking(False)
        self._socket, self._received, self._ended = connection, received, ended
        self._outbox = Outbox(connection)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(connection.fileno(), self._read)

    @property
    def is_open(self) -> bool:
        """Whether the other end is not known to have closed."""
        return self._socket.fileno() >= 0

    def send(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a message, at once or when there is room; the caller may close the descriptors.

        Messages that the other end does not live to read are lost. Raises Failed.
        """
        if self.is_open:
            self._outbox.send(message, descriptors)

    def _read(self) -> None:
        while self.is_open:
            try:
                message, ancillary, _, _ = self._socket.recvmsg(
                    _MESSAGE_MAX, _SPACE, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                message, ancillary = b"", []
            if not message:
                self.close()
                self._ended()
                return
            data = ancillary[0][2] if ancillary else b""
            words = [data[at : at + 4] for at in range(0, len(data), 4)]
            self._received(message, [int.from_bytes(word, "little") for word in words])

    def close(self) -> None:
        """Close; messages not yet sent are lost."""
        if self.is_open:
            self._outbox.close()
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()


def is_passing(error: OSError) -> bool:
    """Whether a failed send may succeed later: the connection is open and the message is valid."""
    return error.errno in (*_BUSY, *_SHORT)


def rights(descriptors: Sequence[int]) -> list[tuple[int, int, bytes]]:
    """Ancillary data with descriptors."""
    data = b"".join(descriptor.to_bytes(4, "little") for descriptor in descriptors)
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, data)] if descriptors else []


def is_readable(descriptor: int, seconds: float) -> bool:
    """Wait until a descriptor is readable, whatever its number; a pidfd is when its process has
    ended.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def open_standard() -> None:
    """Open closed standard streams: else a socket of ours would take their place, and an instance
    would get it.
    """
    opened = 0
    while opened <= 2:
        opened = os.open(os.devnull, os.O_RDWR)
    os.close(opened)


def _copies(descriptors: Sequence[int]) -> list[int]:
    copies: list[int] = []
    try:
        for descriptor in descriptors:
            copies += [os.dup(descriptor)]
    except OSError as error:
        _close(copies)
        raise Failed(f"cannot hold a message until it is sent: {error.strerror}",
                     "allow more open files, or fewer instances") from error  # fmt: skip
    return copies


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
