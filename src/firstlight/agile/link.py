"""Messages with descriptors over a seqpacket socket, sent and received without waiting."""

import os
import socket
from collections import deque
from collections.abc import Callable, Sequence

RIGHTS_MAX = 8
"""Descriptors that one message holds: as many as native/common/socket.h allows."""
_MESSAGE_MAX = 65536
_SPACE = socket.CMSG_SPACE(4 * RIGHTS_MAX)


class Link:
    """One end of a connection, which it owns.

    ``received`` gets each message with its descriptors; ``ended`` is called once, when the other
    end is gone.
    """

    def __init__(
        self, connection: socket.socket, received: Callable[[bytes, list[int]], None],
        ended: Callable[[], None],
    ) -> None:  # fmt: skip
        import asyncio  # slow, and the command line needs of this module only ``rights``

        self._socket, self._received, self._ended = connection, received, ended
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._loop = asyncio.get_running_loop()
        connection.setblocking(False)
        self._loop.add_reader(connection.fileno(), self._read)

    @property
    def is_open(self) -> bool:
        """Whether the other end is there, as far as is known."""
        return self._socket.fileno() >= 0

    def send(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a message, now or when there is room; the descriptors may be closed then.

        What the other end does not live to read is lost.
        """
        if not self.is_open:
            return
        if not self._unsent:
            try:
                self._socket.sendmsg([message], rights(descriptors))
            except BlockingIOError:
                self._loop.add_writer(self._socket.fileno(), self._flush)
            except OSError:
                return  # it is gone: the reader notices
            else:
                return
        self._unsent.append((message, [os.dup(descriptor) for descriptor in descriptors]))

    def _flush(self) -> None:
        while self._unsent:
            message, descriptors = self._unsent[0]
            try:
                self._socket.sendmsg([message], rights(descriptors))
            except BlockingIOError:
                return
            except OSError:
                break
            self._unsent.popleft()
            _close(descriptors)
        self._loop.remove_writer(self._socket.fileno())

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
        """Leave; what is not sent is lost."""
        if self.is_open:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
        for _, descriptors in self._unsent:
            _close(descriptors)
        self._unsent.clear()


def rights(descriptors: Sequence[int]) -> list[tuple[int, int, bytes]]:
    """The ancillary data that sends descriptors."""
    data = b"".join(descriptor.to_bytes(4, "little") for descriptor in descriptors)
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, data)] if descriptors else []


def open_standard() -> None:
    """A standard stream that is closed would become a socket of ours, and then an instance's."""
    opened = 0
    while opened <= 2:
        opened = os.open(os.devnull, os.O_RDWR)
    os.close(opened)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
