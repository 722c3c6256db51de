"""Runs a function in another network namespace, in a thread that enters it."""

import ctypes
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from firstlight.errors import Failed

_CLONE_NEWNET = 0x40000000
Result = TypeVar("Result")


def result(action: Callable[[], Result]) -> Result:
    """Run a function in a new thread; returns its result, or raises its exception."""
    answer: list[Result] = []
    fault: list[BaseException] = []

    def work() -> None:
        try:
            answer.append(action())
        except BaseException as error:
            fault.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if fault:
        raise fault[0]
    return answer[0]


def in_namespace(descriptor: int, action: Callable[[], Result]) -> Result:
    """Run a function in the network namespace of an open file."""

    def work() -> Result:
        _setns(descriptor)
        return action()

    return result(work)


def in_network(pid: int, action: Callable[[], Result]) -> Result:
    """Run a function in a process's network namespace."""
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return in_namespace(descriptor, action)
    finally:
        os.close(descriptor)


def _setns(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        reason = os.strerror(ctypes.get_errno())
        raise Failed(f"cannot enter the network namespace: {reason}", "run firstlight as root")
