"""A client of the resident runtime, for the verbs of ``firstlight agile``.

Modules that few verbs need are imported where they are used, to keep ``agile start`` quick.
"""

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from firstlight.agile import logs, protocol
from firstlight.agile.function import LOST, Counts, Ended, Function, Happened, Listed, Result
from firstlight.agile.functions.records import Registration
from firstlight.agile.node import liveness, wire
from firstlight.agile.node.liveness import (
    check_manager,
    check_node,
    connect,
    peer,
    wait_readable,
)
from firstlight.agile.node.wire import Answer, AnswerVerb, RequestVerb, Step, refused
from firstlight.agile.sockets import is_readable, open_standard, rights
from firstlight.errors import Failed, longer

if TYPE_CHECKING:
    from firstlight.agile.wasm.client import Attached

_PARTS = (Step.NETWORK, Step.CGROUP)
_END_SECONDS = longer(60.0)
_ENDED_MOST = 65536
"""Ends that are kept until somebody waits for them."""
_WAIT_SECONDS, _SEEN_MOST = 10.0, 65536
_NO_START = 1 << 62  # the tag of requests other than starts
_STALE = (errno.ENOENT, errno.ESTALE)
_PAUSES = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Before each further try to ask a manager, if the one before it ended first, in seconds."""
_REPEATED = (
    protocol.Register, protocol.Prepare, protocol.KeepLogs, protocol.Explain, protocol.Attach,
    protocol.List, protocol.Pools, protocol.Logs, protocol.Events, protocol.ListFunctions,
    protocol.ApplyFunction,
)  # fmt: skip
"""What does no more if it is done twice."""


class Started(Struct, frozen=True):
    """An instance that runs; ``stamps`` are ns of CLOCK_MONOTONIC by step."""

    id: str
    pid: int
    address: str | None
    warm: bool
    stamps: dict[str, int]


class Gone(Failed):
    """The manager ended before it answered. ``had_it``: it may have carried the request out."""

    def __init__(self, had_it: bool) -> None:
        super().__init__("the runtime is gone", "what was asked for may have been done: look, then "
                         "try again; see the runtime's log")  # fmt: skip
        self.had_it = had_it


class NodeGone(Failed):
    """The node has ended, or has hung up."""

    def __init__(self) -> None:
        super().__init__("the node is gone", "try again; see the runtime's log")


class Client:
    """Connections to the runtime that listens at ``path``; blocking. Raises Failed.

    One goes to the node, which starts instances by itself, the other to its manager.
    """

    def __init__(self, path: Path) -> None:
        open_standard()
        self._path = path
        self._manager = connect(path)
        self._managers = 0  # that have ended
        self._node: socket.socket | None = None
        self._up: set[str] = set()
        self._ended: dict[str, Ended] = {}  # oldest first
        self._serial = 0

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; instances that were not started detached end."""
        self._manager.close()
        if self._node:
            self._node.close()

    def register(self, function: Function) -> tuple[int, int]:
        """The number by which the node starts a function, and its version. Raises Failed."""
        bare = msgspec.structs.replace(function, env={})
        answer = self._ask(protocol.Register(bare))
        assert isinstance(answer, protocol.Registered)
        return answer.number, answer.version

    def start(
        self, function: Function, streams: tuple[int, int, int] = (0, 1, 2),
        detached: bool = False, logged: bool = False, terminal: bool = False,
    ) -> Started:  # fmt: skip
        """Start an instance with these descriptors as its standard streams. Raises Failed.

        ``detached``: it outlives this client. ``logged``: its output goes to a log, not to a
        descriptor. ``terminal``: it gets a terminal, whose master arrives on the first stream, a
        socket.
        """
        requested = time.monotonic_ns()
        flags = wire.DETACHED if detached else 0
        flags |= (wire.KEEP_LOG if logged else 0) | (wire.TERMINAL if terminal else 0)
        for again in (True, False):
            number, version = self.register(function)
            words = wire.words((), function.env) if function.env else -1
            answer = self._begin(
                RequestVerb.START,
                streams,
                words,
                flags,
                requested,
                function=number,
                version=version,
            )
            unlogged = answer.step == Step.STREAMS and answer.error == errno.ENOTCONN
            stale = answer.step == Step.FUNCTION and answer.error in _STALE
            if not (stale or unlogged) or not again:
                break
            if unlogged:
                self._ask(protocol.KeepLogs())
        if answer.verb == AnswerVerb.REFUSED:
            if answer.error == errno.EIO and answer.step in _PARTS:
                self._ask(protocol.Explain(function))
            raise refused(answer, function)
        if function.ports:
            self._ask(protocol.Publish(str(answer.instance)))
        address = str(IPv4Address(answer.address.to_bytes(4, "little"))) if answer.address else None
        warm = bool(answer.flags & wire.WARM)
        return Started(str(answer.instance), answer.pid, address, warm, answer.stamps)

    def execute(
        self, identity: str, command: tuple[str, ...], env: dict[str, str], directory: str = "/",
        streams: tuple[int, int, int] = (0, 1, 2), terminal: bool = False,
    ) -> Started:  # fmt: skip
        """Run a program in a running instance, confined as its own are. Raises Failed.

        Its environment is that of the instance's first process, with ``env`` added. The returned id
        is the session's, which ends with this client.
        """
        from firstlight.agile import environment

        instance = next((each for each in self.running() if each.id == identity), None)
        if instance is None:
            raise Failed(f"no instance {identity!r} is running", "list them: firstlight agile ps")
        words = wire.words(command, environment.of(instance.pid) | env, directory)
        flags = wire.TERMINAL if terminal else 0
        answer = self._begin(RequestVerb.EXEC, streams, words, flags, instance=int(identity))
        if answer.verb == AnswerVerb.REFUSED:
            function = msgspec.structs.replace(
                instance.function, command=command, directory=directory
            )
            raise refused(answer, function)
        return Started(str(answer.instance), answer.pid, None, False, answer.stamps)

    def _begin(
        self, verb: RequestVerb, streams: tuple[int, int, int], words: int, flags: int,
        requested: int = 0, **more: int,
    ) -> Answer:  # fmt: skip
        """Send the node a request; closes ``words``."""
        if self._node is None:
            self._node = connect(self._path)
        self._serial += 1
        given = [*streams, words] if words >= 0 else [*streams]
        flags |= wire.WITH_WORDS if words >= 0 else 0
        message = wire.request(verb, flags=flags, tag=self._serial, requested=requested, **more)
        try:
            self._node.sendmsg([message], rights(given))
            while True:
                answer = self._receive()
                if answer.tag == self._serial and answer.verb != AnswerVerb.ENDED:
                    return answer
        except BlockingIOError:
            raise liveness.hangs(peer(self._node)) from None
        except ConnectionError:
            raise self._lost() from None
        except OSError as error:
            raise Failed(f"cannot ask the node: {error.strerror}", "try again") from error
        finally:
            if words >= 0:
                os.close(words)

    def _receive(self) -> Answer:
        """Receive the node's next answer; an instance's end is kept for later."""
        assert self._node
        wait_readable(self._node, lambda: check_node(self._path))
        try:
            message = self._node.recv(4096)
        except ConnectionError:
            message = b""
        if not message:
            raise self._lost()
        answer = wire.answer(message)
        if answer.verb == AnswerVerb.ENDED:
            self._ended[str(answer.instance)] = Ended.of(
                answer.status, bool(answer.flags & wire.OUT_OF_MEMORY), answer.user,
                answer.system, bool(answer.flags & wire.TIMED_OUT),
            )  # fmt: skip
            self._up.discard(str(answer.instance))
            if len(self._ended) > _ENDED_MOST:
                del self._ended[next(iter(self._ended))]
        elif answer.verb == AnswerVerb.STARTED:
            self._up.add(str(answer.instance))
        return answer

    def _lost(self) -> NodeGone:
        """The error of a node that has left us. If it has ended, so has all that ran on it."""
        assert self._node
        if liveness.is_gone(peer(self._node)):
            self._ended |= dict.fromkeys(self._up, LOST)
        self._up.clear()
        self._node.close()
        self._node = None
        return NodeGone()

    def wait(self, identity: str) -> Ended:
        """Wait for the end of an instance that this client started.

        Raises Failed if the node hangs, and if this end is forgotten because too many followed it.
        """
        while identity in self._up:
            try:
                self._receive()
            except NodeGone:
                if identity not in self._ended:
                    raise
        if identity not in self._ended:
            raise Failed(f"the end of instance {identity} is not known",
                         f"wait only once, and before {_ENDED_MOST} others have ended")  # fmt: skip
        return self._ended.pop(identity)

    def prepare(self, function: Function, sandboxes: int = 0) -> None:
        """Make a function's parts before its first start. Raises Failed."""
        self._ask(protocol.Prepare(function, sandboxes))

    def invoke(self, function: Function, event: object) -> Result:
        """Run a handler on an event. Raises Failed."""
        answer = self._ask(protocol.Invoke(function, protocol.event(event)))
        assert isinstance(answer, protocol.Invoked)
        return answer.result

    def attach(self, function: Function) -> "Attached":
        """A direct connection to a WebAssembly function's worker.

        Raises Failed.
        """
        from firstlight.agile.wasm.client import Attached

        answer, descriptors = self._exchange(protocol.Attach(function))
        assert isinstance(answer, protocol.Done)
        [descriptor] = descriptors
        return Attached(function, socket.socket(fileno=descriptor))

    def functions(
        self, request: protocol.Change | protocol.ListFunctions
    ) -> list[Registration]:  # fmt: skip
        """Send a request about registered functions; returns them, or the changed one. Raises
        Failed.
        """
        answer = self._ask(request)
        assert isinstance(answer, protocol.Functions)
        return answer.functions

    def call(self, request: protocol.CallFunction) -> protocol.Called | None:
        """Call a registered function; returns its answer, None for ``later``. Raises Failed."""
        answer = self._ask(request)
        assert isinstance(answer, protocol.Called | protocol.Done)
        return answer if isinstance(answer, protocol.Called) else None

    def stop(self, identity: str, grace: float = 0.0, signal: int = 15) -> Ended:
        """End an instance by a signal, or by SIGKILL after ``grace`` seconds. Raises Failed."""
        if not 0 <= grace <= protocol.GRACE_MOST:
            raise Failed(f"--grace {grace} s is out of range", "from 0 to a day")
        answer = self._ask(protocol.Stop(identity, grace, signal))
        assert isinstance(answer, protocol.Stopped)
        return answer.ended

    def running(self, ended: bool = False) -> list[Listed]:
        """The running instances, or the last that have ended. Raises Failed."""
        instances: list[Listed] = []
        while True:
            answer = self._ask(protocol.List(int(instances[-1].id) if instances else 0, ended))
            assert isinstance(answer, protocol.Instances)
            if not answer.instances:
                return instances
            instances += answer.instances

    def logs(self, identity: str, follow: bool = False) -> Iterator[logs.Line]:
        """The log lines of a detached instance, until it ends if ``follow``. Raises Failed."""
        position, is_over = (0, 0), False
        while not is_over:
            answer = self._ask(protocol.Logs(identity, position, _WAIT_SECONDS if follow else 0.0))
            assert isinstance(answer, protocol.LogPart)
            position, is_over = answer.position, answer.ended
            yield from logs.lines(answer.text)
            if not answer.text and not follow:
                return

    def wait_ready(self, identity: str, text: str, seconds: float) -> None:
        """Wait for a line of a detached instance's output with this beginning. Raises Failed."""
        position, is_over, seen, until = (0, 0), False, b"", time.monotonic() + seconds
        begun: dict[str, str] = {}  # parts of an unfinished line
        while not is_over and (left := until - time.monotonic()) > 0:
            answer = self._ask(protocol.Logs(identity, position, min(left, _WAIT_SECONDS)))
            assert isinstance(answer, protocol.LogPart)
            position, is_over = answer.position, answer.ended
            seen = (seen + answer.text)[-_SEEN_MOST:]
            for line in logs.lines(answer.text):
                begun[line.stream] = begun.get(line.stream, "") + line.text
                if begun[line.stream].startswith(text):
                    return
                if line.whole:
                    begun[line.stream] = ""
        wrote = "\n".join(line.text for line in logs.lines(seen)[-5:])
        if is_over:
            raise Failed("the instance ended before it was ready", f"it wrote: {wrote}")
        self.stop(identity)
        raise Failed(f"the instance was not ready in {seconds:g} s", f"it wrote: {wrote}")

    def signal(self, identity: str, number: int) -> None:
        """Send an instance that this client started a signal; ``wait`` returns its end."""
        if self._node:
            with suppress(ConnectionError):
                self._node.send(
                    wire.request(
                        RequestVerb.SIGNAL, tag=_NO_START, instance=int(identity), signal=number
                    )
                )

    def events(self, after: int = -1, follow: bool = True) -> Iterator[Happened]:
        """The events of instances after this serial; -1 stands for the newest. Raises Failed."""
        up: dict[tuple[str, int], Happened] = {}
        while True:
            managers = self._managers
            events = self._events(after, _WAIT_SECONDS if follow else 0.0)
            if managers != self._managers:  # the earlier may have kept an end to itself
                running = {(each.id, each.pid) for each in self.running()}
                if after >= 0:
                    events = self._events(after, 0.0)
                for key in up.keys() - running - {(each.id, each.pid) for each in events}:
                    words = "while the manager was replaced"
                    yield msgspec.structs.replace(
                        up.pop(key), kind="ended", time=time.time_ns(), words=words
                    )
            for event in events:
                after = event.serial
                key = event.id, event.pid
                if event.kind != "started":
                    up.pop(key, None)
                elif key in up:
                    continue  # a manager that took over tells of all that run
                else:
                    up[key] = event
                yield event
            if not follow:
                return

    def _events(self, after: int, seconds: float) -> list[Happened]:
        at_once = protocol.Events(after, 0.0)  # of the next manager: an end may be lost
        answer, _ = self._exchange(protocol.Events(after, seconds), at_once)
        assert isinstance(answer, protocol.Happenings)
        return answer.events

    def pools(self) -> list[Counts]:
        """The pools' counts. Raises Failed."""
        answer = self._ask(protocol.Pools())
        assert isinstance(answer, protocol.PoolCounts)
        return answer.pools

    def leave(self) -> None:
        """End the runtime's process, not its instances, and wait for it. Raises Failed."""
        self._end(protocol.Leave())

    def end(self) -> None:
        """End all instances and the runtime, and wait for that. Raises Failed."""
        self._end(protocol.End())

    def _end(self, request: protocol.Leave | protocol.End) -> None:
        answer = self._ask(request)
        assert isinstance(answer, protocol.Leaving)
        with suppress(ProcessLookupError):
            pidfd = os.pidfd_open(answer.pid)
            try:
                if not is_readable(pidfd, _END_SECONDS):
                    raise Failed(f"the runtime, pid {answer.pid}, does not end",
                                 f"see its log, or kill it: kill -9 {answer.pid}")  # fmt: skip
            finally:
                os.close(pidfd)

    def _ask(self, request: protocol.Request) -> protocol.Answer:
        return self._exchange(request)[0]

    def _exchange(
        self, request: protocol.Request, again: protocol.Request | None = None
    ) -> tuple[protocol.Answer, list[int]]:
        """Send a request; returns the answer and its descriptors.

        A manager that has taken over gets it too, or ``again``, unless the one before may have
        carried it out.
        """
        text = protocol.encode(request)
        for pause in _PAUSES:
            try:
                return self._exchange_once(text)
            except Gone as gone:
                if gone.had_it and not isinstance(request, _REPEATED):
                    raise
                time.sleep(pause)
                self._managers += 1
                self._manager.close()
                self._manager = connect(self._path)
                text = protocol.encode(again or request)
        return self._exchange_once(text)

    def _exchange_once(self, text: bytes) -> tuple[protocol.Answer, list[int]]:
        try:
            protocol.send(self._manager, text)
            wait_readable(self._manager, lambda: check_manager(self._path))
            message, descriptors, _, _ = socket.recv_fds(self._manager, protocol.MESSAGE_MAX, 1)
        except BlockingIOError:
            check_manager(self._path)
            raise Failed("the runtime reads no requests", "try again") from None
        except (BrokenPipeError, ConnectionResetError):  # it has not read the request
            raise Gone(had_it=False) from None
        except OSError as error:
            raise Failed(f"the runtime is gone: {error.strerror}") from error
        if not message:
            raise Gone(had_it=True)
        answer = protocol.answer(message)
        if isinstance(answer, protocol.Large) and descriptors:
            with os.fdopen(descriptors[0], "rb") as file:
                file.seek(0)
                answer = protocol.answer(file.read())
            descriptors = []
        if isinstance(answer, protocol.Error):
            raise Failed(answer.message, answer.hint)
        return answer, descriptors
