"""Translates kernel addresses to function names, by ``/proc/kallsyms``.

The kernel may hide the addresses there; ``HIDDEN`` is the text of a stack then.
"""

import re
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np

_DEPTH = 32  # STACK_DEPTH of native/trace/trace.h
_RECORD = np.dtype([("id", "u4"), ("addresses", "u8", _DEPTH)])
_SUFFIX = re.compile(r"\.(?:constprop|isra|part|cold|llvm)\..*|\.cold$")
# Frames that only show how the stack was taken (innermost) and how the kernel was entered.
_OURS = re.compile(
    r"bpf_|__bpf_|trace_|__traceiter_|__schedule$|schedule$|__cond_resched|preempt_schedule|\[|0x"
)
_ENTRY = re.compile(
    r"entry_|do_syscall_|(x64|ia32)_sys_call|syscall_|ret_from_fork|asm_|do_int80_|_*do_fast_syscall_"
)
HIDDEN = "kernel symbols are hidden"


@cache
def are_hidden() -> bool:
    """Whether the kernel keeps its addresses from this process, or has no table of them."""
    try:
        with Path("/proc/kallsyms").open() as table:
            return all(int(line.split(None, 1)[0], 16) == 0 for line in islice(table, 100))
    except OSError:
        return True


@cache
def _symbols() -> tuple[np.ndarray, list[str], dict[int, str]]:
    addresses, names, data = [], [], {}
    with Path("/proc/kallsyms").open() as table:
        for line in table:
            address, kind, name = line.split(None, 3)[:3]
            if kind in "tTwW":
                addresses.append(int(address, 16))
                names.append(_SUFFIX.sub("", name))
            elif kind in "bBdD":
                data[int(address, 16)] = name
    order = np.argsort(np.array(addresses, dtype=np.uint64), kind="stable")
    return (
        np.array(addresses, dtype=np.uint64)[order],
        [names[index] for index in order],
        data,
    )


def load() -> None:
    """Read the kernel's table of names before it is first needed."""
    if not are_hidden():
        _symbols()


def variable(address: int) -> str:
    """The kernel variable at an address, or "" (many kernels list functions only)."""
    return "" if are_hidden() else _symbols()[2].get(address, "")


def function(address: int) -> str:
    """The function that contains an address."""
    if are_hidden():
        return hex(address)
    addresses, names, _ = _symbols()
    place = int(np.searchsorted(addresses, np.uint64(address), side="right")) - 1
    return names[place] if place >= 0 else hex(address)


def words(addresses: list[int]) -> str:
    """The functions of one stack, innermost first, joined by ``;``; or HIDDEN."""
    if are_hidden():
        return HIDDEN
    frames = [function(address) for address in addresses if address]
    while frames and _OURS.match(frames[0]):
        frames.pop(0)
    return ";".join(frame for frame in frames if not _ENTRY.match(frame))


# STACKS of native/trace/trace.h, ASLEEP and PARKED of calls.h: waits named without a stack.
_KNOWN = {65536 + 100: "do_nanosleep;hrtimer_nanosleep", 65536 + 101: "futex_wait;do_futex"}


class Stacks:
    """The stacks of one trace: number to functions, innermost first, joined by ``;``."""

    def __init__(self, raw: bytes) -> None:
        self._addresses = {
            int(record["id"]): record["addresses"] for record in np.frombuffer(raw, dtype=_RECORD)
        }
        self._words = dict(_KNOWN)

    def __getitem__(self, number: int) -> str:
        if number not in self._words:
            self._words[number] = words(self._addresses.get(number, np.empty(0)).tolist())
        return self._words[number]
