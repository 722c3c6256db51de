"""A resident instance, which serves connections that are passed to it."""

import asyncio
import socket

from firstlight.agile.instance import Instance
from firstlight.agile.link import rights
from firstlight.agile.output import Output
from firstlight.errors import Failed

_WORDS_MOST = 1 << 16


class Resident:
    """A resident instance; its standard input is the other end of ``control``."""

    def __init__(self, instance: Instance, control: socket.socket, errors: Output) -> None:
        self.ended = instance.ended
        self._instance, self._control, self._errors = instance, control, errors
        self._words = asyncio.ensure_future(errors.all(_WORDS_MOST))
        control.setblocking(False)
        instance.ended.add_done_callback(lambda _: control.close())

    def connect(self) -> socket.socket:
        """A seqpacket connection to it. Raises Failed."""
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
        """Its standard error, after its end."""
        text = await self._words
        self._errors.close()
        return text.decode(errors="replace")

    def kill(self) -> None:
        """End it."""
        self._instance.kill()
