"""A worker as a resident instance, which serves the connections that it is passed."""

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress

from firstlight.agile.function import Function
from firstlight.agile.instance import Instance
from firstlight.agile.node import kept
from firstlight.agile.node.kept import KeptWorker
from firstlight.agile.node.process import Keepsake
from firstlight.agile.output import Output
from firstlight.agile.sockets import rights
from firstlight.errors import Failed

_WORDS_MOST = 1 << 16


class Resident:
    """A resident instance; its standard input is the other end of ``control``."""

    def __init__(
        self, instance: Instance, control: socket.socket, errors: Output,
        keep: Callable[[list[int]], Keepsake | None],
    ) -> None:  # fmt: skip
        """``keep`` has the node keep descriptors."""
        self.ended = instance.ended
        self._instance, self._control, self._errors = instance, control, errors
        self._keep = keep
        self._keepsake: Keepsake | None = None
        self._note = -1
        self._words = asyncio.ensure_future(errors.all(_WORDS_MOST))
        control.setblocking(False)
        instance.ended.add_done_callback(lambda _: self._close())

    def keep(self, function: Function, identity: tuple[int, ...]) -> None:
        """Have the node keep its descriptors for the next manager."""
        if self.ended.done():
            return
        self._note = kept.written(KeptWorker(function, self._instance.number, identity))
        self._keepsake = self._keep([self._note, self._control.fileno(), self._errors.descriptor])

    def take_over(self, keepsake: Keepsake, note: int) -> None:
        """Note that the node keeps it for an earlier manager."""
        self._keepsake, self._note = keepsake, note

    def connect(self) -> socket.socket:
        """Make a seqpacket connection to it. Raises Failed."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._control.sendmsg([b"connection"], rights([theirs.fileno()]))
            except OSError as error:
                ours.close()
                raise Failed(f"instance {self._instance.id} takes no connection: {error.strerror}",
                             "try again") from error  # fmt: skip
        return ours

    async def words(self) -> str:
        """Its standard error; call it after its end."""
        text = await self._words
        self._errors.close()
        return text.decode(errors="replace")

    def leave(self) -> None:
        """Give it no more connections: it ends once all are closed."""
        if self._note >= 0:
            kept.mark(self._note)
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)  # the node has a copy

    def _close(self) -> None:
        self._control.close()
        if self._note >= 0:
            os.close(self._note)
            self._note = -1
        if self._keepsake:
            self._keepsake.drop()

    def kill(self) -> None:
        """End it."""
        self._instance.kill()
