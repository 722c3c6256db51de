"""The resident runtime behind its unix socket: what ``firstlight agile up`` runs."""

import asyncio
import errno
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import msgspec

from firstlight.agile import journal, protocol
from firstlight.agile.client import Client, Gone
from firstlight.agile.config import Config
from firstlight.agile.functions import remote
from firstlight.agile.functions.catalogue import Functions
from firstlight.agile.log_lines import log_lines
from firstlight.agile.node import liveness, process
from firstlight.agile.runtime import Runtime, remove_files
from firstlight.agile.serving import Serving, per_event
from firstlight.agile.sockets import Outbox
from firstlight.errors import Failed, FirstlightError, longer

_NICE = -10
_AT_ONCE = 64
_WAIT_MOST = 60.0
_NODE_SECONDS, _LOOK_SECONDS = longer(10.0), 0.02
_CANNOT_ACCEPT, _ACCEPT_SECONDS = "socket.accept() out of system resource", 1.0  # asyncio's words
_received = memoryview(bytearray(protocol.MESSAGE_MAX))  # allocating as much for each is slower
_log = logging.getLogger(__name__)


def serve(config: Config, ready: Callable[[], None] = lambda: None, keep: bool = False) -> None:
    """Serve until SIGINT or SIGTERM, then remove everything. Raises FirstlightError.

    With ``keep``, SIGTERM ends this process alone: the instances go on, and the next call with the
    same name takes them over. ``ready`` is called when clients are served; systemd is notified too.
    """
    log_lines()
    asyncio.run(_serve(config, ready, keep))


def leave(config: Config) -> None:
    """End the process that serves, if there is one, but not its instances. Raises Failed."""
    if journal.is_owned(config.directory):
        with Client(config.socket) as client:
            client.leave()


def end(config: Config) -> None:
    """End all instances, their node and the process that serves, if there is one.

    Raises Failed if there is nothing to end.
    """
    if journal.is_owned(config.directory):
        try:
            liveness.check_node(config.socket)
        except Failed:
            process.end(config, hangs=True)
            _await_node(config)
        try:
            with Client(config.socket) as client:
                client.end()
            return
        except Failed as error:
            manager = liveness.owner(config.directory)
            numbers = [0]  # another "down" may be at work
            if manager > 0 and not isinstance(error, Gone):
                _log.warning("%s: it is killed unless it ends by itself", error.message)
                numbers.append(signal.SIGKILL)
            if not process.kill(manager, *numbers):
                raise Failed(
                    f"pid {manager} has runtime {config.name!r}, and takes no requests",
                    "end that program",
                ) from None
    if not (config.directory / "journal").exists():
        raise Failed(f"runtime {config.name!r} is not running")
    process.end(config)
    left = journal.Journal(config.directory)
    left.open()
    remove_files(config)
    left.close()


def _await_node(config: Config) -> None:
    """Return when the manager has started another node, or after a while."""
    until = time.monotonic() + _NODE_SECONDS
    while process.pid_of(config) < 0 and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)


async def _serve(config: Config, ready: Callable[[], None], keep: bool) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_handler())
    stopped = asyncio.Event()

    def stop(leaves: bool) -> None:
        if leaves and not stopped.is_set():
            runtime.leave()
        stopped.set()

    with suppress(PermissionError):  # requests must not wait for instances' work
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(ValueError, RuntimeError):  # outside the main thread, signals are the owner's
            loop.add_signal_handler(number, stop, keep and number == signal.SIGTERM)
    connections: set[_Connection] = set()

    held: list[int] = []
    opened = asyncio.Event()

    def rich(descriptor: int) -> None:
        if not opened.is_set() or stopped.is_set():
            held.append(descriptor)  # until adopted instances are known; at the end, for the next
            return
        peer = socket.socket(fileno=descriptor)
        connections.add(_Connection(peer, runtime, functions, stop, connections.discard))

    runtime = Runtime(config, stay=True, rich=rich)
    serving = Serving(runtime)
    functions = Functions(runtime, serving)
    async with runtime, serving, functions, AsyncExitStack() as others:
        if config.http:
            from firstlight.agile.http import node  # its dependencies are optional

            await others.enter_async_context(node.opened(config, functions, serving))
        opened.set()
        for descriptor in held.copy():
            rich(descriptor)
        try:
            _tell_systemd(b"READY=1")
            ready()
            await stopped.wait()
        finally:
            for connection in list(connections):
                connection.close()


def _handler() -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """A loop's handler of exceptions that says once a second that no connection can be accepted.

    asyncio says so for each place of a listener's backlog.
    """
    said_at = -_ACCEPT_SECONDS

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal said_at
        if context["message"] != _CANNOT_ACCEPT:
            loop.default_exception_handler(context)
        elif loop.time() - said_at >= _ACCEPT_SECONDS:
            said_at = loop.time()
            _log.warning("cannot accept connections, so clients wait: %s", context["exception"])

    return handle


def _tell_systemd(state: bytes) -> None:
    if path := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, suppress(OSError):
            notify.sendto(state, path.replace("@", "\0", 1))


class _Connection:
    """One client. Its requests are served concurrently, in no order."""

    def __init__(
        self, peer: socket.socket, runtime: Runtime, functions: Functions,
        stop: Callable[[bool], None], closed: "Callable[[_Connection], None]",
    ) -> None:  # fmt: skip
        self._socket, self._runtime, self._functions = peer, runtime, functions
        self._stop, self._closed = stop, closed
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = self._reads = True
        self._loop = asyncio.get_running_loop()
        peer.setblocking(False)
        self._outbox = Outbox(peer, self._pace)
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
        given = [
            int.from_bytes(data[at : at + 4], "little")
            for level, kind, data in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            for at in range(0, len(data) - len(data) % 4, 4)
        ]
        if not size:
            _close(given)
            self.close()
            return
        message = bytes(_received[:size]) if not flags & socket.MSG_TRUNC else b""
        task = self._loop.create_task(self._handle(message, given))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        self._pace()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._pace()

    def _pace(self) -> None:
        """Stop reading from a client that does not read its answers, or sends too many requests."""
        reads = self._open and len(self._tasks) + len(self._outbox) < _AT_ONCE
        if reads and not self._reads:
            self._loop.add_reader(self._socket.fileno(), self._read)
        elif self._open and self._reads and not reads:
            self._loop.remove_reader(self._socket.fileno())
        self._reads = reads

    async def _handle(self, message: bytes, given: list[int]) -> None:
        answer: protocol.Answer
        connection: socket.socket | None = None
        try:
            try:
                text = protocol.whole(message, given[0] if given else -1)
            finally:
                _close(given)
            request = protocol.request(text)
            if isinstance(request, protocol.FunctionRequest):
                answer = await remote.answer(self._functions, request)
            elif isinstance(request, protocol.RecordRequest):
                answer = await self._answer_record(request)
            elif isinstance(request, protocol.Attach):
                connection = await self._runtime.attach(request.function)
                answer = protocol.Done()
            elif isinstance(request, protocol.ProcessRequest):
                answer = self._of_process(request)
            else:
                answer = await self._answer(request)
        except FirstlightError as error:
            answer = protocol.Error(error.message, error.hint)
        except Exception as error:  # an unanswered client would wait for ever
            _log.exception("a request failed")
            answer = _failure(error)
        self._send(answer, connection)
        if connection:
            connection.close()

    async def _answer(self, request: protocol.RuntimeRequest) -> protocol.Answer:
        runtime = self._runtime
        match request:
            case protocol.Register(function):
                return protocol.Registered(*await runtime.register(function))
            case protocol.Publish(identity):
                await runtime.publish(identity)
                return protocol.Done()
            case protocol.Explain(function):
                raise runtime.explain(function)
            case protocol.Prepare(function, sandboxes):
                await runtime.prepare(function, sandboxes)
                return protocol.Done()
            case protocol.Invoke(function, event):
                protocol.check_json(event)
                value = per_event.value(function.kind, event)
                return protocol.invoked(await runtime.invoke(function, value))
            case protocol.Stop(identity, grace, number):
                instance = await runtime.find_instance(identity)
                return protocol.Stopped(await instance.stop(grace, number))
            case protocol.List(after, ended):
                await runtime.sync()
                return protocol.listed(runtime.ended() if ended else runtime.running(), after)
            case protocol.Pools():
                await runtime.sync()
                return protocol.PoolCounts(runtime.pools())

    def _of_process(self, request: protocol.ProcessRequest) -> protocol.Answer:
        if isinstance(request, protocol.Ping):
            return protocol.Done()
        self._loop.call_soon(self._stop, isinstance(request, protocol.Leave))
        return protocol.Leaving(os.getpid())

    async def _answer_record(self, request: protocol.RecordRequest) -> protocol.Answer:
        runtime = self._runtime
        match request:
            case protocol.KeepLogs():
                await runtime.keep_logs()
                return protocol.Done()
            case protocol.Logs(name, position, seconds) if not name.isdecimal():
                text, position = await self._functions.recent_output(name, position, _wait(seconds))
                return protocol.LogPart(text, position, False)
            case protocol.Logs(identity, position, seconds):
                return protocol.LogPart(*await runtime.log_part(identity, position, _wait(seconds)))
            case protocol.Events(after, seconds):
                return protocol.Happenings(await runtime.events(after, _wait(seconds)))

    def _send(self, answer: protocol.Answer, attached: socket.socket | None) -> None:
        if not self._open:
            return
        try:
            message, large = _encode(answer)
            given = [attached.fileno()] if attached else large
            try:
                self._outbox.send(message, given)
            finally:
                _close(large)
        except (Failed, OSError) as error:  # the client must see that no answer comes
            _log.warning("a client was disconnected: %s", error)
            self.close()

    def close(self) -> None:
        """The client is gone; its last requests are completed."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket.fileno())
            self._outbox.close()
            self._socket.close()
            for task in self._tasks:
                task.cancel()
            self._closed(self)


def _wait(seconds: float) -> float:
    return min(max(0.0, seconds), _WAIT_MOST)


def _encode(answer: protocol.Answer) -> tuple[bytes, list[int]]:
    """Encode a message; text that is too long for one goes into a memory file."""
    try:
        text = protocol.encode(answer)
    except (msgspec.MsgspecError, UnicodeError, ValueError) as error:
        failed = f"the answer cannot be sent: {error}"
        text = msgspec.json.encode(protocol.Error(failed, "return text that is UTF-8"))
    if len(text) <= protocol.MESSAGE_MAX:
        return text, []
    return protocol.encode(protocol.Large()), [protocol.large(text)]


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _failure(error: Exception) -> protocol.Error:
    """The answer to a client after an unexpected error."""
    if str(error) == "can't start new thread":  # as CPython says it
        return protocol.Error("cannot start a thread: Resource temporarily unavailable",
                              "raise the limit of processes")  # fmt: skip
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return protocol.Error(f"the runtime lacks resources for this request: {error.strerror}",
                              "allow more open files and memory, or fewer instances")  # fmt: skip
    return protocol.Error(f"the runtime failed: {error!r}", "see its log")
