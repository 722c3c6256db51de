"""The resident runtime behind its unix socket: what ``firstlight agile up`` runs."""

import asyncio
import errno
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import msgspec

from firstlight.agile import protocol
from firstlight.agile.config import Config
from firstlight.agile.instance import Instance
from firstlight.agile.runtime import Runtime
from firstlight.errors import Failed, FirstlightError

_BACKLOG = 512
_NICE = -10
_STREAMS, _SEND = 3, "send standard input, output and error"
_NO_DESCRIPTOR = (
    "the runtime has no descriptor left", "raise its limit of open files, or stop instances"
)  # fmt: skip
_received = memoryview(bytearray(protocol.MESSAGE_MAX))  # to allocate as much for each costs more
_log = logging.getLogger(__name__)


def serve(config: Config, ready: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGINT or SIGTERM, then leave nothing behind. Raises FirstlightError.

    ``ready`` is called when clients are served; under systemd it is told as well.
    """
    asyncio.run(_serve(config, ready))


async def _serve(config: Config, ready: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    with suppress(PermissionError):  # a request must not queue behind the work of the instances
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(ValueError, RuntimeError):  # not in the main thread: its owner's to handle
            loop.add_signal_handler(number, stopped.set)
    async with Runtime(config) as runtime:
        listener = _listen(config)
        connections: set[_Connection] = set()

        spare = _Spare()

        def accept() -> None:
            try:
                accepted, _ = listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    spare.refuse(listener)
                return
            connections.add(_Connection(accepted, runtime, connections.discard))

        loop.add_reader(listener, accept)
        try:
            _tell_systemd(b"READY=1")
            ready()
            await stopped.wait()
        finally:
            loop.remove_reader(listener)
            listener.close()
            spare.close()
            config.socket.unlink(missing_ok=True)
            for connection in list(connections):
                connection.close()


def _listen(config: Config) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    config.socket.unlink(missing_ok=True)  # the journal's lock says that no one listens there
    try:
        listener.bind(str(config.socket))
        config.socket.chmod(0o600)
    except OSError as error:
        raise Failed(f"cannot listen on {config.socket}: {error.strerror}") from error
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


def _tell_systemd(state: bytes) -> None:
    if path := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, suppress(OSError):
            notify.sendto(state, path.replace("@", "\0", 1))


class _Spare:
    """A descriptor to part with when none is left, so that a client hears why it is not served.

    A connection that is left waiting would wake the runtime for ever.
    """

    def __init__(self) -> None:
        self._descriptor = os.open(os.devnull, os.O_RDONLY)

    def refuse(self, listener: socket.socket) -> None:
        """Answer one waiting client with an error."""
        self.close()
        with suppress(OSError):
            refused, _ = listener.accept()
            with refused:
                refused.send(protocol.encode(protocol.Error(*_NO_DESCRIPTOR)))
        with suppress(OSError):
            self._descriptor = os.open(os.devnull, os.O_RDONLY)

    def close(self) -> None:
        """Part with it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _Connection:
    """One client. Its requests are served at the same time, in no order."""

    def __init__(
        self, peer: socket.socket, runtime: Runtime, closed: "Callable[[_Connection], None]"
    ) -> None:
        self._socket, self._runtime, self._closed = peer, runtime, closed
        self._tasks: set[asyncio.Task[None]] = set()
        self._mine: dict[str, Instance] = {}
        self._unsent: deque[bytes] = deque()
        self._open = True
        self._loop = asyncio.get_running_loop()
        peer.setblocking(False)
        self._loop.add_reader(peer.fileno(), self._read)

    def _read(self) -> None:
        try:
            size, ancillary, flags, _ = self._socket.recvmsg_into(
                [_received], protocol.RIGHTS_MAX, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            size, ancillary, flags = 0, [], 0
        descriptors = [
            int.from_bytes(data[at : at + 4], "little")
            for level, kind, data in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            for at in range(0, len(data) - len(data) % 4, 4)
        ]
        if not size:
            _close(descriptors)
            self.close()
            return
        whole = not flags & socket.MSG_TRUNC
        message = bytes(_received[:size]) if whole else b""
        lost = bool(flags & socket.MSG_CTRUNC)
        task = self._loop.create_task(self._handle(message, descriptors, lost))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, message: bytes, descriptors: list[int], lost: bool) -> None:
        """``lost``: some descriptors of the message did not come with it."""
        try:
            request = protocol.request(message)
            if lost and len(descriptors) >= _STREAMS:
                raise Failed(f"a message came with more than {_STREAMS} descriptors", _SEND)
            if lost:
                raise Failed(*_NO_DESCRIPTOR)
            answer = await self._answer(request, descriptors)
        except FirstlightError as error:
            answer = protocol.Error(error.message, error.hint)
        except Exception as error:  # a client must not wait for an answer that never comes
            _log.exception("a request failed")
            answer = protocol.Error(f"the runtime failed: {error!r}", "see its log")
        finally:
            _close(descriptors)
        self._send(answer)

    async def _answer(
        self, request: protocol.Request, descriptors: list[int]
    ) -> protocol.Answer:  # fmt: skip
        runtime = self._runtime
        match request:
            case protocol.Start():
                return await self._start(request, descriptors)
            case protocol.Prepare(function, sandboxes):
                await runtime.prepare(function, sandboxes)
                return protocol.Done()
            case protocol.Invoke(function, event):
                result = await runtime.invoke(function, msgspec.json.decode(event))
                return protocol.Answered(result)
            case protocol.Stop(identity):
                return protocol.Stopped(await runtime.instance(identity).stop())
            case protocol.List(after):
                return protocol.listed(runtime.running(), after)
            case protocol.Pools():
                return protocol.PoolCounts(runtime.pools())

    async def _start(self, request: protocol.Start, descriptors: list[int]) -> protocol.Answer:
        if len(descriptors) != _STREAMS:
            raise Failed(f"a start came with {len(descriptors)} descriptors", _SEND)
        streams = (descriptors[0], descriptors[1], descriptors[2])
        instance = await self._runtime.start(request.function, streams, request.asked or None)
        if not request.detached:
            self._mine[instance.id] = instance
            if not self._open:
                instance.kill()
            instance.ended.add_done_callback(lambda _: self._tell_end(instance))
        return protocol.Started(
            instance.id,
            instance.pid,
            None if instance.address is None else str(instance.address),
            instance.warm,
            instance.stamps,
        )

    def _tell_end(self, instance: Instance) -> None:
        self._mine.pop(instance.id, None)
        self._send(protocol.HasEnded(instance.id, instance.ended.result()))

    def _send(self, answer: protocol.Answer) -> None:
        if not self._open:
            return
        try:
            text = protocol.encode(answer)
        except Failed as error:
            text = protocol.encode(protocol.Error(error.message, error.hint))
        if not self._unsent:
            try:
                self._socket.send(text)
            except BlockingIOError:
                self._loop.add_writer(self._socket.fileno(), self._flush)
            except OSError:
                return  # it is gone: its end is told by the reader
            else:
                return
        self._unsent.append(text)

    def _flush(self) -> None:
        try:
            while self._unsent:
                self._socket.send(self._unsent[0])
                self._unsent.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()
        self._loop.remove_writer(self._socket.fileno())

    def close(self) -> None:
        """The client is gone: so are the instances that it did not detach."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
            for instance in self._mine.values():
                instance.kill()
            self._closed(self)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
