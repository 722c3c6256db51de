"""The zygote: runs inside the function's root file system, in the function's own interpreter.

It imports the handler, then forks an instance for each request on descriptor 0. It is root of a
user namespace of its own and nothing outside; a fork enters its namespaces and cgroup and gives
up even that before it waits for its event. Only the standard library, and little of it: what is
imported here is in every handler's interpreter.

A fork inherits the imported modules and all that their import made: module globals, the hash
seed. It does not inherit signal handlers or the state of ``random``,
descriptors other than its streams and its event socket, or threads: an import that leaves threads
running is refused.
"""

import ctypes
import importlib
import json
import os
import random
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, cast

Handler = Callable[[Any], Any]

_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
_NEWPID, _NEWNET = 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _BIND = 1, 2, 4, 8, 4096
_PDEATHSIG, _CAPBSET_DROP, _SET_SECCOMP, _FILTER = 1, 24, 22, 2
_CAPSET_VERSION = 0x20080522
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CLONE = {"x86_64": 56, "aarch64": 220}
_NO_ARGUMENTS = (ctypes.c_long(0),) * 4

_libc = ctypes.CDLL(None, use_errno=True)
_holding = ctypes.PyDLL(None, use_errno=True)  # the interpreter's lock, over the call


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _check(what: str, result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _mount(
    source: str, target: str, kind: bytes | None, flags: int, data: bytes | None = None
) -> None:
    _check(
        f"mount {target}",
        _libc.mount(source.encode(), target.encode(), kind, ctypes.c_ulong(flags), data),
    )


def _enter(request: dict[str, Any], network: int, cgroups: list[int], program: bytes) -> None:
    """Make this fork a sandbox: the steps of native/spawn_enter.c that are not done yet."""
    for descriptor in cgroups:
        os.write(descriptor, b"0")
    _check("network", _libc.setns(network, _NEWNET))
    _check("namespaces", _libc.unshare(_NEWNS | _NEWCGROUP | _NEWUTS | _NEWIPC))
    _mount("proc", "/proc", b"proc", _RDONLY | _NOSUID | _NODEV | _NOEXEC)
    for path in request["masked"]:
        source = "/dev/.empty" if os.path.isdir(path) else "/dev/null"  # noqa: PTH112
        if os.path.exists(path):  # noqa: PTH110
            _mount(source, path, None, _BIND)
    _mount("tmpfs", "/tmp", b"tmpfs", _NOSUID | _NODEV, request["tmpfs"].encode())  # noqa: S108
    _check("host name", _libc.sethostname(b"instance", 8))
    resource.setrlimit(resource.RLIMIT_NOFILE, (request["files"], request["files"]))
    for capability in range(64):
        _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPSET_VERSION, 0)
    nothing = (ctypes.c_uint32 * 6)()
    _check("capabilities", _libc.syscall(_CAPSET[os.uname().machine], header, nothing))
    _check("parent", _libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    loaded = _Program(len(program) // 8, program)
    _check("seccomp", _libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(loaded), 0, 0))


def _forget() -> None:
    """What a fork must not share with its siblings."""
    random.seed()
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _serve(handler: Handler, events: socket.socket) -> None:
    """Take one event, answer it; a line of JSON each way."""
    with events, events.makefile("rb") as lines:
        events.sendall(b'{"ready": %d}\n' % time.monotonic_ns())
        line = lines.readline()
        if not line:
            return
        try:
            answer = {"began": time.monotonic_ns()}
            answer["result"] = handler(json.loads(line))
            text = json.dumps(answer)
        except BaseException:
            text = json.dumps({"began": answer["began"], "raised": traceback.format_exc(limit=20)})
        sys.stdout.flush()
        sys.stderr.flush()
        events.sendall(text.encode() + b"\n")


def _be_instance(
    handler: Handler, request: dict[str, Any], descriptors: list[int], program: bytes
) -> None:
    events, out, err, network, *cgroups = descriptors
    connection = socket.socket(fileno=os.dup2(events, 3, inheritable=False))
    try:
        _enter(request, network, cgroups, program)
    except OSError as error:
        connection.sendall(json.dumps({"failed": str(error)}).encode() + b"\n")
        return
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.closerange(4, 1 << 20)
    _forget()
    _serve(handler, connection)


def _fork_into_pid_namespace() -> int:
    """As os.fork, into a new PID namespace: unshare(2) would hold for the next fork as well."""
    number = _CLONE[os.uname().machine]
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = _holding.syscall(number, ctypes.c_long(_NEWPID | signal.SIGCHLD), *_NO_ARGUMENTS)
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    _check("clone", pid)
    return int(pid)


def _fork(handler: Handler, message: bytes, descriptors: list[int], program: bytes) -> None:
    if _fork_into_pid_namespace() == 0:
        status = 1
        try:
            _be_instance(handler, json.loads(message), descriptors, program)
            status = 0
        finally:
            os._exit(status)


def _import(name: str) -> Handler:
    module, _, attribute = name.partition(":")
    handler = getattr(importlib.import_module(module), attribute)
    if not callable(handler):
        raise TypeError(f"{name} is not callable")
    if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208
        raise RuntimeError(f"importing {module} left threads running: a fork would not have them")
    return cast(Handler, handler)


def main() -> None:
    """Import the handler, say so, and fork until descriptor 0 ends."""
    control = socket.socket(fileno=os.dup(0))
    program = control.recv(1 << 16)
    sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        handler = _import(sys.argv[1])
    except BaseException:
        control.send(json.dumps({"failed": traceback.format_exc(limit=20)}).encode())
        return
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks are reaped as they end
    control.send(b'{"imported": %d}' % time.monotonic_ns())
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 16)
        if not message:
            return
        try:
            _fork(handler, message, descriptors, program)
        except OSError as error:
            os.write(descriptors[0], json.dumps({"failed": str(error)}).encode() + b"\n")
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


if __name__ == "__main__":
    main()
