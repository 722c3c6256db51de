"""A client of the resident runtime, for the verbs of ``firstlight agile``."""

import socket
import time
from pathlib import Path

import msgspec

from firstlight.agile import protocol, wire
from firstlight.agile.function import Counts, Ended, Function, Listed, Result
from firstlight.agile.protocol import Started
from firstlight.errors import Failed


class Client:
    """A connection to the runtime that listens at ``path``; blocking. Raises Failed."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise Failed(f"no runtime answers at {path}: {error.strerror}",
                         "start one: firstlight agile up") from error  # fmt: skip
        self._ended: dict[str, Ended] = {}

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; instances that were not started detached end."""
        self._socket.close()

    def start(
        self, function: Function, streams: tuple[int, int, int] = (0, 1, 2), detached: bool = False
    ) -> Started:
        """Start an instance with these descriptors as its standard streams. Raises Failed."""
        request = protocol.Start(function, detached, time.monotonic_ns())
        answer = self._ask(request, list(streams))
        assert isinstance(answer, Started)
        return answer

    def wait(self, identity: str) -> Ended:
        """Wait for the end of an instance that this client started. Raises Failed."""
        while identity not in self._ended:
            self._receive()
        return self._ended.pop(identity)

    def prepare(self, function: Function, sandboxes: int = 0) -> None:
        """Make a function's parts before its first start. Raises Failed."""
        self._ask(protocol.Prepare(function, sandboxes))

    def invoke(self, function: Function, event: object) -> Result:
        """Run a handler on an event. Raises Failed."""
        raw = msgspec.Raw(msgspec.json.encode(event))
        answer = self._ask(protocol.Invoke(function, raw))
        assert isinstance(answer, protocol.Answered)
        return answer.result

    def stop(self, identity: str) -> Ended:
        """End an instance. Raises Failed."""
        answer = self._ask(protocol.Stop(identity))
        assert isinstance(answer, protocol.Stopped)
        return answer.ended

    def running(self) -> list[Listed]:
        """The running instances. Raises Failed."""
        found: list[Listed] = []
        while True:
            answer = self._ask(protocol.List(int(found[-1].id) if found else 0))
            assert isinstance(answer, protocol.Instances)
            if not answer.instances:
                return found
            found += answer.instances

    def pools(self) -> list[Counts]:
        """The pools' counts. Raises Failed."""
        answer = self._ask(protocol.Pools())
        assert isinstance(answer, protocol.PoolCounts)
        return answer.pools

    def _ask(
        self, request: protocol.Request, descriptors: list[int] | None = None
    ) -> protocol.Answer:
        try:
            self._socket.sendmsg([protocol.encode(request)], wire.rights(descriptors or []))
        except OSError as error:
            raise Failed(f"the runtime is gone: {error.strerror}") from error
        while (answer := self._receive()) is None:
            pass
        return answer

    def _receive(self) -> protocol.Answer | None:
        """The next answer; None for the end of an instance, which is kept for ``wait``."""
        try:
            message = self._socket.recv(protocol.MESSAGE_MAX)
        except OSError as error:
            raise Failed(f"the runtime is gone: {error.strerror}") from error
        if not message:
            raise Failed("the runtime is gone", "see its log")
        answer = protocol.answer(message)
        if isinstance(answer, protocol.Error):
            raise Failed(answer.message, answer.hint)
        if isinstance(answer, protocol.HasEnded):
            self._ended[answer.id] = answer.ended
            return None
        return answer
