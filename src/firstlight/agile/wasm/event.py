"""Events and results of WebAssembly functions, as callers see them."""

import math

import msgspec

from firstlight.agile.function import HANDLER_ERROR, Function, HandlerFailed, Result
from firstlight.agile.wasm import wire
from firstlight.agile.wasm.wire import Reply, WasmOutcome

WORDS_MOST = 500


def encoded(function: Function, event: object) -> bytes:
    """An event for a function's handler. Raises HandlerFailed, Failed."""
    name = function.handler
    if name == "_start":
        return wire.event(stdin=b"" if event is None else msgspec.json.encode(event))
    event = [] if event is None else event
    if not isinstance(event, list) or not all(type(n) in (int, float) for n in event):
        raise HandlerFailed(HANDLER_ERROR, f"{name} takes numbers", "write the event as [1, 2]")
    return wire.event(event)


def result(function: Function, reply: Reply, requested: int, warm: bool) -> Result | HandlerFailed:
    """The result of an event."""
    name = function.handler
    returned = reply.outcome is WasmOutcome.RETURNED or (
        name == "_start" and reply.outcome is WasmOutcome.EXITED and reply.status == 0
    )
    if not returned:
        return _failure(function, reply)
    values = reply.values
    if not all(math.isfinite(value) for value in values):
        return HandlerFailed(HANDLER_ERROR, f"{name} returned {', '.join(map(str, values))}",
                             "JSON has no such number")  # fmt: skip
    value = None if not values else values[0] if len(values) == 1 else values
    return Result(
        value=msgspec.Raw(msgspec.json.encode(value)), requested=requested, warm=warm,
        began=reply.began, finished=reply.finished, stdout=reply.stdout, stderr=reply.stderr,
    )  # fmt: skip


def _failure(function: Function, reply: Reply) -> HandlerFailed:
    name = function.handler
    hint = f"it wrote: {reply.stderr[-WORDS_MOST:]}" if reply.stderr else None
    match reply.outcome:
        case WasmOutcome.REFUSED:
            kind, what = HANDLER_ERROR, reply.text
            hint = "write the event as its arguments, such as [1, 2]"
        case WasmOutcome.LATE:
            kind, what = "Sandbox.Timedout", f"did not answer in {function.timeout} s"
        case WasmOutcome.EXITED:
            kind, what = "Runtime.ExitError", f"exited with status {reply.status}"
        case WasmOutcome.TRAPPED:
            kind, what = "Runtime.Trap", f"trapped: {reply.text}"
        case _:
            return HandlerFailed(
                HANDLER_ERROR, f"cannot make an instance of {name}: {reply.text}", hint
            )
    return HandlerFailed(kind, f"{name} {what}", hint, output=reply.stdout + reply.stderr)
