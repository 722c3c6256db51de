"""The zygote: runs inside the function's root file system, in the function's own interpreter.

It imports the handler, then forks an instance for each request on its control socket. It can enter
namespaces that it receives, but cannot make any; a fork gives up even that before it waits for its
event. The runtime does not trust any of this: it verifies each fork from outside. It imports
little, and only from the standard library, because every handler's interpreter has these modules.

A fork inherits the imported modules and what their import made: module globals, the hash seed, the
memory layout, signal handlers. It does not inherit the state of the generators in ``_reseed``, and
descriptors other than its streams and its event socket.
"""

import _signal  # type: ignore[import-not-found]  # its enumerations cost a fork 0.2 ms
import gc
import importlib
import json
import os
import socket
import sys
import time
from _imp import create_dynamic
from collections.abc import Callable
from contextlib import suppress
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any

Handler = Callable[[Any], Any]

_EVENTS = 3  # of a fork; before that, the control socket
_PART = 1 << 16
_TEXT_MOST = 32 << 10
_SHORT = 1 << 16
_FILES_AT_ONCE = 100
_ASYNCHRONOUS = 0x280  # coroutines and asynchronous generators; see inspect's CO_COROUTINE
_OWN_FILES = {"<string>", importlib.__file__, "<frozen importlib._bootstrap>",
              "<frozen importlib._bootstrap_external>"}  # fmt: skip


def _load(descriptor: int) -> ModuleType:
    """native/agile/inside.c, from a descriptor."""
    path = f"/proc/self/fd/{descriptor}"
    return create_dynamic(ModuleSpec("inside", None, origin=path))


def _described() -> str:
    """The current exception as Python prints it, without our own frames; the end of a long one."""
    import traceback

    kind, error, trace = sys.exc_info()
    while trace and trace.tb_frame.f_code.co_filename in _OWN_FILES:
        trace = trace.tb_next
    try:
        text = "".join(traceback.format_exception(kind, error, trace, limit=20))
    except BaseException:
        text = str(sys.exc_info()[0])
    return _plain(text[-_TEXT_MOST:])


def _named(error: BaseException) -> tuple[str, str]:
    """An exception's type, and what it says itself."""
    kind = type(error).__name__
    try:
        return _plain(kind), _plain(str(error)[:_TEXT_MOST])
    except BaseException:
        return _plain(kind), "<exception str() failed>"


def _plain(text: str) -> str:
    """A text as valid UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def _reseed(inside: ModuleType) -> None:
    """Reseed the known random generators of this fork.

    ``random``, ``tempfile`` and OpenSSL notice the fork themselves.
    """
    loaded = sys.modules
    inside.reseed(os.urandom(16), getattr(loaded.get("_sqlite3"), "__file__", None))
    if "numpy.random" in loaded:
        loaded["numpy.random"].seed()
    if "uuid" in loaded:
        for name in ("_node", "_last_timestamp", "_generate_time_safe"):
            setattr(loaded["uuid"], name, None)
    if "multiprocessing.process" in loaded:
        loaded["multiprocessing.process"].current_process().authkey = os.urandom(32)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(_EVENTS, data) :]


def _event() -> bytes:
    """Read the event's line; empty if none will come."""
    parts = []
    while part := os.read(_EVENTS, _PART):
        parts.append(part)
        if part.endswith(b"\n"):
            break
    return b"".join(parts)


def _answer(handler: Handler, line: bytes) -> bytes:
    answer: dict[str, Any] = {"began": time.monotonic_ns()}
    try:
        result = handler(json.loads(line))
    except SystemExit as stopped:
        answer["exited"] = _plain(repr(stopped.code)[:_TEXT_MOST])
    except BaseException as error:
        answer["raised"], answer["error"] = _described(), _named(error)
    else:
        try:
            text = json.dumps({**answer, "result": result}, allow_nan=False, ensure_ascii=False,
                              separators=(",", ":"))  # fmt: skip
            # Half a surrogate pair is its escape; the manager takes that in short answers alone.
            encoded = text.encode(errors="backslashreplace")
            return (encoded if len(encoded) < _SHORT else text.encode()) + b"\n"
        except BaseException as error:
            answer["unfit"] = _plain(f"{type(error).__name__}: {error}"[:_TEXT_MOST])
    return json.dumps(answer).encode() + b"\n"


def _serve(handler: Handler) -> None:
    """Answer one event; each way is a line of JSON."""
    # A trial answer copies the memory that answers write to, while the runtime verifies.
    _answer(json.loads, b'"null"')
    line = _event()
    if not line:
        return
    answer = _answer(handler, line)
    for stream in (sys.stdout, sys.stderr):
        with suppress(BaseException):  # the handler may close it
            stream.flush()
    _write(answer)


class Zygote:
    """Makes forks."""

    def __init__(self, inside: ModuleType, program: bytes) -> None:
        self._inside, self._program = inside, program
        self._on_child = _signal.getsignal(_signal.SIGCHLD)

    def fork(self, handler: Handler, request: dict[str, Any], descriptors: list[int]) -> None:
        """Make an instance from these descriptors: three streams and five namespaces."""
        directory, files = request["directory"], request["files"]
        place = (tuple(descriptors[:3]), tuple(descriptors[4:]), directory, files, self._program)
        try:
            if os.fork():
                return
        except OSError as error:  # the sandbox has ended, or memory is short
            os.write(descriptors[0], json.dumps({"failed": str(error)}).encode() + b"\n")
            return
        try:
            try:
                self._inside.become_instance(*place)
            except OSError as error:
                os.write(descriptors[0], json.dumps({"failed": str(error)}).encode() + b"\n")
                return
            _write(b'{"ready": 1}\n')  # the runtime verifies it, while it does the rest
            if self._on_child:  # none of Python's: SIG_DFL
                _signal.signal(_signal.SIGCHLD, self._on_child)
            with suppress(Exception):  # the import may have replaced it
                _reseed(self._inside)
            _serve(handler)
        finally:
            os._exit(0)

    def serve(self, handler: Handler, control: socket.socket) -> None:
        """Prepare a fork for each message with descriptors; fork for each ``fork``."""
        gc.collect()
        gc.freeze()  # else a collection in a fork writes to all imported objects
        request: dict[str, Any] = {}
        descriptors: list[int] = []
        while True:
            message, given, _, _ = socket.recv_fds(control, _PART, 16)
            if not message:
                return
            if message == b"sync":
                control.send(message)
            if message == b"fork":
                self.fork(handler, request, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            descriptors = given
            if given:
                request = json.loads(message)
                self._inside.bear_in(given[3])


def _import(name: str) -> Handler:
    module, _, attribute = name.partition(":")
    handler: Handler = getattr(importlib.import_module(module), attribute)
    if not callable(handler):
        raise TypeError(f"{name} is not callable")
    if isinstance(handler, FunctionType):
        if handler.__code__.co_flags & _ASYNCHRONOUS:
            raise TypeError(f"{attribute} is asynchronous, and {name} is called without an event "
                            "loop: call asyncio.run(…) in a plain function")  # fmt: skip
        needed = handler.__code__.co_argcount - len(handler.__defaults__ or ())
        if needed > 1:
            raise TypeError(
                f"{attribute} needs {needed} arguments, and {name} is called with an event alone. "
                f"Handler {module}.{attribute} is called with (event, context), as by Lambda: give "
                "its directory or a .zip file as the source"
            )
    return handler


def _import_for_events(name: str) -> Handler:
    """Run AWS's client of the Lambda Runtime API with the imported handler; does not return."""
    client = importlib.import_module("awslambdaric.__main__")
    _set_up_logging(importlib.import_module("awslambdaric.bootstrap"))
    module, _, attribute = name.rpartition(".")
    getattr(importlib.import_module(module.replace("/", ".")), attribute)

    def run(environment: dict[str, str]) -> None:
        os.environ.update(environment)
        try:
            client.main(["", name])
        except BaseException as error:
            _last_words(error)
            raise

    return run


def _set_up_logging(client: ModuleType) -> None:
    """Have the client add its handler of logs before the import, as on Lambda, and not again.

    There logging.basicConfig has no effect, and what an import does to the handler holds.
    """
    names = ("_AWS_LAMBDA_LOG_FORMAT", "_AWS_LAMBDA_LOG_LEVEL")
    with suppress(AttributeError, TypeError):  # of a version that has not these: it does it later
        form, level = (getattr(client, name) for name in names)
        client._setup_logging(form, level, client.StandardLogSink())
        setattr(client, "_setup_logging", lambda *_: None)  # noqa: B010 - no name that mypy knows


def _last_words(error: BaseException) -> None:
    """Write to standard error what an interpreter writes that ends by this exception."""
    with suppress(BaseException):  # the handler may have closed the stream
        if not isinstance(error, SystemExit):
            sys.stderr.write(_described())
        elif error.code is not None and not isinstance(error.code, int):
            sys.stderr.write(_plain(str(error.code)) + "\n")


def _files() -> list[str]:
    """The files of imported modules: sources, and compiled code that exists or can appear."""
    names = set()
    for module in list(sys.modules.values()):
        for attribute in ("__file__", "__cached__"):
            name = getattr(module, attribute, None)
            if isinstance(name, str):
                names.add(os.path.abspath(name))  # noqa: PTH100 (it is not to follow links)
    return sorted(names)


def main() -> None:
    """Import the handler, report it, and fork until the control socket ends."""
    control = socket.socket(fileno=os.dup2(0, _EVENTS, inheritable=False))
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    program, [descriptor], _, _ = socket.recv_fds(control, _PART, 1)
    inside = _load(descriptor)
    os.close(descriptor)
    sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        handler = (_import_for_events if sys.argv[2:] else _import)(sys.argv[1])
    except BaseException:
        control.send(json.dumps({"failed": _described()}).encode())
        return
    zygote = Zygote(inside, program)
    inside.forget_children()
    files = _files()
    for at in range(0, len(files), _FILES_AT_ONCE):
        control.send(json.dumps({"files": files[at : at + _FILES_AT_ONCE]}).encode())
    control.send(json.dumps({"imported": sys.path}).encode())
    zygote.serve(handler, control)


if __name__ == "__main__":
    main()
