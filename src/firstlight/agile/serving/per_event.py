"""Functions whose events each get an instance of their own."""

import asyncio
import os
import time
from contextlib import closing

import msgspec

from firstlight.agile.function import HANDLER_ERROR, Ended, Function, HandlerFailed
from firstlight.agile.functions.version import FunctionVersion
from firstlight.agile.output import Output, pipes
from firstlight.agile.partial_answers import Partial
from firstlight.agile.python.drain import Drain
from firstlight.agile.python.interpreter import ImportFailed
from firstlight.agile.runtime import Runtime
from firstlight.agile.serving.answer import (
    PAYLOAD_MAX,
    Answer,
    ending,
    failure,
    timed_out,
    too_long,
    with_last_line,
)
from firstlight.agile.verify import Unconfined
from firstlight.errors import Failed


def definition(version: FunctionVersion) -> Function:
    """The function that the node starts for a version."""
    return Function(
        rootfs=version.root, name=version.label, owner=version.owner, command=version.command,
        env=version.environment, directory=version.directory, memory=version.memory,
        scratch=version.scratch, cpus=version.cpus, network=version.network,
        netlink=version.netlink, pids=version.pids, timeout=version.timeout,
        volumes=version.volumes, secrets=version.secrets,
    )  # fmt: skip


async def run_command(runtime: Runtime, version: FunctionVersion, event: bytes) -> Answer:
    """Answer by a command: the event is its standard input, the answer its standard output.

    Raises Failed if it cannot be started, NodeFailed if it is killed from outside.
    """
    requested = time.monotonic_ns()
    [output, errors], streams = pipes()
    log = Drain([errors])
    try:
        os.close(streams[0])
        streams[0] = _file(event)
        instance = await runtime.start(
            definition(version), (streams[0], streams[1], streams[2]), requested
        )
    except BaseException:
        output.close()
        log.close()
        raise
    finally:
        for descriptor in streams:
            os.close(descriptor)
    began = time.monotonic_ns()
    ended: Ended | None = None
    payload, in_time = b"", False
    try:
        async with asyncio.timeout(version.timeout):
            payload = await _read(output, version)
            if len(payload) <= PAYLOAD_MAX:
                ended = await instance.wait()
            in_time = True
    except TimeoutError:
        instance.state = "timed out"
    finally:
        await instance.stop()
        output.close()
        tail = (await log.end()).encode()
        log.close()
    answer = Answer(
        payload=payload, log_tail=tail, init_ns=began - requested,
        duration_ns=time.monotonic_ns() - began,
    )  # fmt: skip
    if not in_time:
        return failure(answer, "Sandbox.Timedout", timed_out(version.timeout))
    if ended is None:
        return too_long(answer)
    if ended.status != 0:
        return failure(answer, *ending(ended, version.memory, tail))
    return answer


async def _read(output: Output, version: FunctionVersion) -> bytes:
    """Read an answer, to its end or until it is too long. Raises NodeFailed."""
    with closing(Partial(version.owner, version.name)) as payload:
        while len(payload) <= PAYLOAD_MAX and (part := await output.read()):
            payload.add(part)
        return payload.take()


def has_handler(version: FunctionVersion) -> bool:
    """Whether its handler is called with the event alone."""
    return version.kind == "wasm" or (version.kind == "python" and ":" in version.handler)


def check_name(handler: str) -> None:
    """Raise Failed for what cannot name a handler of Python."""
    module, _, name = handler.partition(":") if ":" in handler else handler.rpartition(".")
    if not module or not name:
        raise Failed(
            f"{handler!r} does not name a handler",
            "write MODULE:NAME, called with an event, or MODULE.NAME, called with (event, context)",
        )


def handler_definition(version: FunctionVersion) -> Function:
    """The handler to call. It differs between revisions, so that each can end alone."""
    names = {
        "AWS_LAMBDA_FUNCTION_NAME": version.name, "AWS_LAMBDA_FUNCTION_VERSION": version.version,
        "FIRSTLIGHT_REVISION": str(version.revision),
    }  # fmt: skip
    return msgspec.structs.replace(
        definition(version), command=(), handler=version.handler,
        kind="wasm" if version.kind == "wasm" else "python", env={**names, **version.environment},
    )  # fmt: skip


async def call_handler(runtime: Runtime, version: FunctionVersion, event: bytes) -> Answer:
    """Answer by a handler with one argument, in a fork of a warm interpreter or in a module.

    Raises Failed for what is not the function's failure.
    """
    function = handler_definition(version)
    requested = time.monotonic_ns()
    try:
        result = await runtime.invoke(function, value(version.kind, event), requested)
    except HandlerFailed as error:
        answer = Answer(
            payload=b"", log_tail=error.output.encode(), duration_ns=time.monotonic_ns() - requested
        )
        text = error.text
        if error.kind == "Sandbox.Timedout":
            text = timed_out(version.timeout)
        elif error.kind in ("Runtime.ExitError", "Runtime.OutOfMemory"):
            text = with_last_line(text, error.output.encode())
        return failure(answer, error.kind, text, error.trace)
    except ImportFailed as error:
        answer = Answer(payload=b"", log_tail=error.output.encode())
        return failure(answer, "Runtime.ImportModuleError", error.message)
    except Unconfined as error:
        return failure(Answer(payload=b""), HANDLER_ERROR, error.message)
    answer = Answer(
        payload=bytes(result.value), log_tail=(result.stdout + result.stderr).encode(),
        cold=not result.warm, init_ns=result.began - requested,
        duration_ns=result.finished - result.began,
    )  # fmt: skip
    return too_long(answer) if len(answer.payload) > PAYLOAD_MAX else answer


def value(kind: str, event: bytes) -> object:
    """An event as a handler is called with it; one of Python parses it itself, as one line. Raises
    HandlerFailed for one that a module cannot be given.
    """
    if kind == "wasm":
        try:
            return msgspec.json.decode(event)
        except (msgspec.DecodeError, RecursionError) as error:
            raise HandlerFailed("Runtime.UnmarshalError", f"the event: {error}") from error
    return msgspec.Raw(event.replace(b"\n", b" "))


def _file(data: bytes) -> int:
    """Make a memory file with this content, to be read from its start."""
    descriptor = os.memfd_create("event")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
