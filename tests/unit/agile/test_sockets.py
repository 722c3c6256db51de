"""Sends that fail: what passes is tried again, what is wrong is told, and only an end is one."""

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Awaitable, Callable

import pytest

from firstlight.agile import sockets
from firstlight.agile.sockets import Connection, Outbox
from firstlight.errors import Failed

PASSING = (errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS, errno.EAGAIN)
GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
WRONG = (errno.EMSGSIZE, errno.EBADF, errno.EACCES, errno.EINVAL)


class Troubled(socket.socket):
    """A socket whose sends fail by these errors first."""

    errors: list[int]

    def sendmsg(self, *words: object, **more: object) -> int:
        if self.errors:
            raise OSError(self.errors.pop(0), "no")
        return super().sendmsg(*words, **more)  # type: ignore[arg-type]


def pair() -> tuple[Troubled, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    troubled = Troubled(fileno=ours.detach())
    troubled.errors = []
    troubled.setblocking(False)
    theirs.settimeout(60)
    return troubled, theirs


def on_loop(main: Callable[[], Awaitable[None]]) -> None:
    async def inside() -> None:
        await asyncio.wait_for(main(), 60)

    asyncio.run(inside())


async def received(theirs: socket.socket, count: int) -> list[bytes]:
    return [await asyncio.to_thread(theirs.recv, 99) for _ in range(count)]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.mark.parametrize("error", PASSING)
def test_busy_link_keeps_messages_in_order(error: int) -> None:
    async def main() -> None:
        ours, theirs = pair()
        outbox = Outbox(ours)
        ours.errors = [error, error, error]
        before = descriptors()
        for number in range(4):
            outbox.send(b"%d" % number, [theirs.fileno()] if number == 1 else [])
        assert await received(theirs, 4) == [b"0", b"1", b"2", b"3"]
        while len(outbox):
            await asyncio.sleep(0)
        assert descriptors() == before
        ours.close()
        theirs.close()

    on_loop(main)


@pytest.mark.parametrize("error", WRONG)
def test_a_malformed_message_is_an_error_for_its_sender(error: int) -> None:
    async def main() -> None:
        ours, theirs = pair()
        outbox = Outbox(ours)
        ours.errors = [error]
        with pytest.raises(Failed, match="cannot send 3 bytes"):
            outbox.send(b"one")
        outbox.send(b"two")
        assert await received(theirs, 1) == [b"two"]
        ours.errors = [errno.EAGAIN, error]  # of one that waited: both ends see it
        outbox.send(b"six")
        assert await received(theirs, 1) == [b""]
        ours.close()
        theirs.close()

    on_loop(main)


@pytest.mark.parametrize("error", GONE)
def test_an_end_is_the_reader_s_to_tell(error: int) -> None:
    async def main() -> None:
        ours, theirs = pair()
        ended = asyncio.Event()
        connection = Connection(ours, lambda *_: None, ended.set)
        ours.errors = [error]
        connection.send(b"one")
        assert not ended.is_set()
        theirs.close()
        await ended.wait()
        assert not connection.is_open

    on_loop(main)


def test_oversized_message_is_refused_and_link_survives() -> None:
    async def main() -> None:
        ours, theirs = pair()
        connection = Connection(ours, lambda *_: None, lambda: None)
        with pytest.raises(Failed, match="Message too long"):
            connection.send(bytes(1 << 20))
        connection.send(b"short")
        assert await received(theirs, 1) == [b"short"]
        connection.close()
        theirs.close()

    on_loop(main)


def test_outbox_without_descriptor_refuses_one_message() -> None:
    async def main() -> None:
        ours, theirs = pair()
        outbox = Outbox(ours)
        sent = 0
        while not len(outbox):
            outbox.send(bytes(4096))
            sent += 1
        before, most = descriptors(), resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most[1]))
        try:
            with pytest.raises(Failed, match="Too many open files"):
                outbox.send(b"held", [0, 1, 2, 3, 4, 5])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, most)
        assert descriptors() == before
        outbox.send(b"held", [0, 1])
        messages = await received(theirs, sent + 1)
        assert messages[-1] == b"held"
        ours.close()
        theirs.close()

    on_loop(main)


def test_messages_for_a_client_that_never_reads_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sockets, "_UNSENT_MOST", 100)

    async def main() -> None:
        ours, theirs = pair()
        outbox = Outbox(ours)
        while len(outbox) < 100:
            outbox.send(bytes(4096))
        with pytest.raises(Failed, match="100 messages wait"):
            outbox.send(b"one more")
        outbox.close()
        assert len(outbox) == 0
        ours.close()
        theirs.close()

    on_loop(main)
