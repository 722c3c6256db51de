"""A client's direct connection to a WebAssembly function's worker."""

import socket
import time

from firstlight.agile.function import Function, Result
from firstlight.agile.sockets import is_readable
from firstlight.agile.wasm import event as wasm_event
from firstlight.agile.wasm import wire
from firstlight.errors import Failed, longer

_GRACE_SECONDS = longer(2.0)
CONNECTIONS_MAX = 256
"""Of one worker: WASM_CONNECTIONS_MAX of native/agile/wasm.h."""


class Attached:
    """A blocking connection to a worker; owns the socket, and outlives the runtime's manager. A
    context manager. Attach again after ``invoke_all`` has raised Failed.
    """

    def __init__(self, function: Function, connection: socket.socket) -> None:
        self.function, self.connection = function, connection
        self._serial = 0
        self._answered = False

    def __enter__(self) -> "Attached":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def invoke(self, event: object) -> Result:
        """Run the handler on an event in a new instance. Raises Failed."""
        [result] = self.invoke_all([event])
        if isinstance(result, Failed):
            raise result
        return result

    def invoke_all(self, events: list[object]) -> list[Result | Failed]:
        """Run the handler on each event in a new instance, with one message for all.

        Raises Failed if the worker ends, or does not answer in time.
        """
        requested = time.monotonic_ns()
        self._serial += 1
        message = wire.request(
            self._serial, [wasm_event.encoded(self.function, event) for event in events]
        )
        until = time.monotonic() + self.function.timeout * max(len(events), 1) + _GRACE_SECONDS
        replies: dict[int, wire.Reply] = {}
        try:
            self.connection.send(message)
            while len(replies) < len(events):
                replies.update(self._receive(until))
        except OSError as error:
            raise self._ended() from error
        return [
            wasm_event.result(self.function, replies[number], requested, True)
            for number in range(len(events))
        ]

    def _receive(self, until: float) -> dict[int, wire.Reply]:
        """Receive some results of the last request, by the numbers of their events."""
        name = self.function.handler
        if not is_readable(self.connection.fileno(), max(0.0, until - time.monotonic())):
            raise Failed(f"the worker of {name} did not answer in time",
                         "it hangs, or is busy with other requests")  # fmt: skip
        message = self.connection.recv(wire.MESSAGE_MAX)
        if not message:
            raise self._ended()
        self._answered = True
        serial, first, replies = wire.answer(message)
        return dict(enumerate(replies, first)) if serial == self._serial else {}

    def _ended(self) -> Failed:
        if not self._answered:
            return Failed(
                f"the worker of {self.function.handler} ended, or takes no more connections",
                f"attach anew; close one first if {CONNECTIONS_MAX} are attached",
            )
        return Failed(f"the worker of {self.function.handler} ended",
                      "attach anew; the runtime's log says how")  # fmt: skip
