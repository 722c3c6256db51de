"""Watches for changes of the host's packet filter by other programs."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from struct import Struct

_NETLINK_NETFILTER, _GROUP_NFTABLES = 12, 7  # linux/netlink.h, linux/netfilter/nfnetlink.h
_HEAD = Struct("=IHHII")
_KINDS = frozenset({0, 2, 3, 5, 8})
"""NFT_MSG_ of linux/netfilter/nf_tables.h: tables and chains made or deleted, rules deleted."""
_SETTLE_SECONDS = 0.1


class RuleWatch:
    """Awaits ``changed`` shortly after tables or chains change, one call at a time."""

    def __init__(self, changed: Callable[[], Awaitable[None]]) -> None:
        self._changed = changed
        self._socket: socket.socket | None = None
        self._is_due = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Start watching this thread's network namespace."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        self._socket.bind((0, 1 << (_GROUP_NFTABLES - 1)))
        self._socket.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._socket, self._read)
        self._task = loop.create_task(self._call())

    def close(self) -> None:
        """Stop watching."""
        if self._task:
            self._task.cancel()
        if self._socket:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _read(self) -> None:
        while self._socket:
            try:
                message = self._socket.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:  # the buffer overflowed: lost messages may have been about our table
                self._is_due.set()
                return
            if any(kind & 0xFF in _KINDS for kind in _kinds(message)):
                self._is_due.set()

    async def _call(self) -> None:
        while True:
            await self._is_due.wait()
            await asyncio.sleep(_SETTLE_SECONDS)
            self._is_due.clear()
            await self._changed()


def _kinds(message: bytes) -> list[int]:
    kinds = []
    while len(message) >= _HEAD.size:
        size, kind, *_ = _HEAD.unpack_from(message)
        kinds.append(kind)
        message = message[max(size + -size % 4, _HEAD.size) :]
    return kinds
