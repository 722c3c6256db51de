"""Drops the capabilities(7) that a long-running process does not need."""

import ctypes
import os
import struct
from collections.abc import Collection, Iterable
from pathlib import Path

from firstlight.errors import Unsupported

NUMBERS = {
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYSLOG": 34,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
"""Those that may be kept, by their numbers in linux/capability.h."""

_VERSION_3 = 0x20080522
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_libc = ctypes.CDLL(None, use_errno=True)


def keep_only(names: Collection[str]) -> None:
    """Drop all other capabilities, for this process and programs that it executes. Does nothing
    without root. Raises Unsupported if the kernel refuses.
    """
    if os.geteuid() != 0:
        return
    kept = {NUMBERS[name] for name in names}
    number = 0
    while (bounded := _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0)) >= 0:
        if bounded and number not in kept:  # in a container, CAP_SETPCAP may be gone too
            _check(
                _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0),
                f"give it CAP_SETPCAP too, or no others than {', '.join(names)}",
            )
        number += 1
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    held = sum(1 << number for number in kept) & _permitted()
    low, high = held & 0xFFFFFFFF, held >> 32
    header = struct.pack("=Ii", _VERSION_3, 0)
    # struct __user_cap_data_struct twice: effective, permitted, inheritable
    _check(_libc.capset(header, struct.pack("=6I", low, low, 0, high, high, 0)))


def lacking(names: Iterable[str]) -> list[str]:
    """Those that this process does not have."""
    held = _permitted()
    return [name for name in names if not held >> NUMBERS[name] & 1]


def _permitted() -> int:
    """The capabilities that this process has."""
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("CapPrm:")).split()[1], 16)


def _check(result: int, hint: str = "run it as root") -> None:
    if result < 0:
        reason = os.strerror(ctypes.get_errno())
        raise Unsupported(f"cannot give up capabilities: {reason}", hint)
