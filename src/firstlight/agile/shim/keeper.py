"""The connection to the keeper (native/shim/keeper.c), which started this process.

Descriptor 3 carries frames of containerd's connections, in both directions. Descriptor 4 delivers
the exits of containers' processes, until each is ``noted``, and the descriptors that the previous
server deposited.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from enum import IntEnum
from struct import Struct

from firstlight.errors import Unsupported

RELAY = Struct("=III")
NOTE = Struct("=IiiIq112s")
AGAIN, ENDED = 1, 2
"""Flags of a frame: it may have been served in part, and: the connection has ended."""
_LINK, _NOTES = 3, 4
_PART = 1 << 20


class Kind(IntEnum):
    """Of a note."""

    EXIT = 1
    NOTED = 2
    KEPT = 3
    DROP = 4
    ALL = 5


class Keeper:
    """``kept`` are the deposited descriptors, by name. Open it in the event loop."""

    def __init__(
        self,
        on_frame: Callable[[int, bytes, bool], None],
        on_connection_end: Callable[[int], None],
        on_exit: Callable[[int, int, int], None],
    ) -> None:
        """``on_exit`` gets a pid, its wait status, and ns since 1970."""
        try:
            self._link = socket.socket(fileno=_LINK)
            self._notes = socket.socket(fileno=_NOTES)
        except OSError as error:
            raise Unsupported("the shim's server is started by its keeper",
                              "run firstlight agile shim") from error  # fmt: skip
        for each in (self._link, self._notes):
            each.set_inheritable(False)
        self.kept: dict[str, int] = {}
        self.exits: list[tuple[int, int, int]] = []
        self._on_frame, self._on_connection_end = on_frame, on_connection_end
        self._on_exit = on_exit
        self._in = bytearray()
        self._out = bytearray()
        self._link.setblocking(False)

    def read_state(self) -> None:
        """Read what the keeper has: fills ``kept``, and ``exits`` with processes' exits."""
        while True:
            data, descriptors, _, _ = socket.recv_fds(self._notes, NOTE.size, 1)
            if not data:
                raise Unsupported("the keeper has ended", "start firstlight agile shim again")
            kind, pid, status, _, when, name = NOTE.unpack(data)
            if kind == Kind.KEPT:
                self.kept[name.rstrip(b"\0").decode()] = descriptors[0]
                os.set_inheritable(descriptors[0], False)
            elif kind == Kind.EXIT:
                self.exits.append((pid, status, when))
            else:
                return

    def open(self) -> None:
        """Pass frames and exits to the callbacks."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._link, self._read)
        loop.add_reader(self._notes, self._read_notes)

    def _read(self) -> None:
        try:
            part = self._link.recv(_PART)
        except BlockingIOError:
            return
        if not part:
            os._exit(1)  # without a keeper there are no clients
        self._in += part
        at, size = 0, len(self._in)
        while size - at >= RELAY.size:
            connection, flags, length = RELAY.unpack_from(self._in, at)
            end = at + RELAY.size + length
            if end > size:
                break
            if flags & ENDED:
                self._on_connection_end(connection)
            else:
                self._on_frame(
                    connection, bytes(self._in[at + RELAY.size : end]), bool(flags & AGAIN)
                )
            at = end
        del self._in[:at]

    def send(self, connection: int, frame: bytes) -> None:
        """Send an answer's frame to a connection, if it is still open."""
        self._out += RELAY.pack(connection, 0, len(frame)) + frame
        self._flush()

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._out:
                del self._out[: self._link.send(self._out)]
        except BlockingIOError:
            loop.add_writer(self._link, self._flush)
            return
        loop.remove_writer(self._link)

    def _read_notes(self) -> None:
        while True:
            try:
                data = self._notes.recv(NOTE.size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            if not data:
                os._exit(1)
            kind, pid, status, _, when, _ = NOTE.unpack(data)
            if kind == Kind.EXIT:
                self._on_exit(pid, status, when)

    def noted(self, pid: int) -> None:
        """Tell the keeper that a process's exit is recorded."""
        self._notes.send(NOTE.pack(Kind.NOTED, pid, 0, 0, 0, b""))

    def keep(self, name: str, descriptor: int) -> None:
        """Deposit a descriptor for the next server."""
        note = NOTE.pack(Kind.KEPT, 0, 0, 0, 0, name.encode())
        socket.send_fds(self._notes, [note], [descriptor])

    def drop(self, name: str) -> None:
        """Drop a deposited descriptor, if there is one."""
        self._notes.send(NOTE.pack(Kind.DROP, 0, 0, 0, 0, name.encode()))
