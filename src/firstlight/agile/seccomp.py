"""Compiles a seccomp profile to classic BPF.

The program is a binary search over ranges of system-call numbers, so it is quick to load and to
run. The data, ``seccomp.json``, is the usual profile of containers without capabilities. Known
calls that are not listed fail with EPERM, calls newer than the profile with ENOSYS, as on a kernel
without them. Layout: linux/filter.h, linux/seccomp.h.

A long program is slow to load. So the node loads ``base``, which allows what it needs to make
sandboxes, and an instance adds ``rest``, which denies that. Together they are ``program``, because
the kernel takes the stricter of two answers.
"""

import errno
import json
import platform
from dataclasses import dataclass
from importlib.resources import files
from struct import pack
from typing import Any

from firstlight.errors import Unsupported
from firstlight.native import native

_LOAD, _JEQ, _JGE, _JSET, _RETURN, _AND, _JUMP = 0x20, 0x15, 0x35, 0x45, 0x06, 0x54, 0x05
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_MAKING = (
    "chroot", "clone", "clone3", "fsconfig", "fsmount", "fsopen", "mknod", "mknodat", "mount",
    "mount_setattr", "move_mount", "open_tree", "sethostname", "setns", "umount2", "unshare",
)  # fmt: skip
"""What the node calls to make sandboxes, beyond what an instance may."""
_NETLINK = 16
_NUMBERS_MAX = 1024  # those of x86-64's other ABI begin at 2**30

Instruction = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Condition:
    """A call that is allowed only if one half of an argument, the low one unless ``high``, is one
    of some values, or has no bit of a mask.

    For some values another argument is checked too: ``within``. Without values and a mask, all are
    allowed except those ``denied``. A denied call with the error ``none`` succeeds, and does
    nothing.
    """

    argument: int
    values: tuple[int, ...] = ()
    denied: tuple[int, ...] = ()
    without: int = 0
    error: str = "EPERM"
    within: tuple[tuple[int, "_Condition"], ...] = ()
    high: bool = False


def program(extra: tuple[str, ...] = (), netlink: bool = True) -> bytes:
    """The compiled profile, with ``extra`` system calls allowed; with or without netlink sockets.
    Raises Unsupported.
    """
    return _program(_search(_ranges(_leaves(extra, netlink))))


def base() -> bytes:
    """The profile with what the node itself needs allowed. Raises Unsupported."""
    return program(_MAKING)


def rest(extra: tuple[str, ...] = (), netlink: bool = True) -> bytes:
    """The calls that ``base`` allows and ``program(extra, netlink)`` does not. Raises
    Unsupported.

    The kernel compiles it at each start, so it is short: ``base`` alone looks at the architecture,
    and calls that both deny join ranges.
    """
    full, wide = _leaves(extra, netlink), _leaves(_MAKING)
    leaves = dict.fromkeys(full, _returns(_ALLOW))
    last, since = None, list[int]()
    for number, leaf in full.items():
        if leaf != wide[number]:
            leaves[number] = leaf
            if leaf == last:
                leaves.update(dict.fromkeys(since, leaf))
            last, since = leaf, []
        elif leaf == last:
            since.append(number)
        else:
            last = None
    return encode([(_LOAD, 0, 0, _NUMBER), *_search(_ranges(leaves))])


def without(calls: tuple[str, ...]) -> bytes:
    """A short program that denies these calls, for processes that have ``base``."""
    numbers = system_calls()
    denied = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    code = [step for name in calls for step in ((_JEQ, 0, 1, numbers[name]), denied)]
    return _program([*code, *_returns(_ALLOW)])


def _program(code: list[Instruction]) -> bytes:
    machine = platform.machine()
    return encode(
        [
            (_LOAD, 0, 0, _ARCH),
            (_JEQ, 1, 0, _ARCHITECTURES[machine]),
            (_RETURN, 0, 0, _KILL),
            (_LOAD, 0, 0, _NUMBER),
            *code,
        ]
    )


def _leaves(extra: tuple[str, ...], netlink: bool = True) -> dict[int, tuple[Instruction, ...]]:
    """The action for each system-call number."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise Unsupported(f"there is no seccomp profile for {machine}", "use x86_64 or aarch64")
    profile = json.loads(files("firstlight.agile").joinpath("seccomp.json").read_text())
    numbers = system_calls()
    leaves = dict.fromkeys(range(_NUMBERS_MAX), _returns(_ERRNO | errno.ENOSYS))
    leaves.update(dict.fromkeys(numbers.values(), _returns(_ERRNO | errno.EPERM)))
    for name in (*profile["allow"], *extra):
        if name in numbers:
            leaves[numbers[name]] = _returns(_ALLOW)
    for name in profile["missing"]:
        if name in numbers and name not in extra:
            leaves[numbers[name]] = _returns(_ERRNO | errno.ENOSYS)
    if not netlink:
        _refuse_netlink(profile["conditions"]["socket"])
    for name, rule in profile["conditions"].items():
        if name in numbers and name not in extra:
            leaves[numbers[name]] = _check(_condition(rule))
    return leaves


def _refuse_netlink(rule: dict[str, Any]) -> None:
    rule["values"].remove(_NETLINK)
    del rule["within"][str(_NETLINK)]
    rule["error"] = "EAFNOSUPPORT"


def system_calls() -> dict[str, int]:
    """The system-call numbers of this architecture, from the kernel's headers.

    In the generic headers, some are defined by another name: asm-generic/unistd.h has
    ``__NR_fcntl`` as ``__NR3264_fcntl``.
    """
    words = [line.split() for line in native("system-calls.txt").read_text().splitlines()]
    values = {each[1]: each[2] for each in words if len(each) == 3}
    numbers = {
        name.removeprefix("__NR_"): values.get(value, value)
        for name, value in values.items()
        if name.startswith("__NR_")
    }
    return {name: int(value) for name, value in numbers.items() if value.isdigit()}


def encode(instructions: list[Instruction]) -> bytes:
    """An array of struct sock_filter."""
    return b"".join(pack("=HBBI", *instruction) for instruction in instructions)


def _returns(action: int) -> tuple[Instruction, ...]:
    return ((_RETURN, 0, 0, action),)


def _condition(rule: dict[str, Any]) -> _Condition:
    within = tuple((int(v), _condition(more)) for v, more in rule.get("within", {}).items())
    return _Condition(
        rule["argument"], tuple(rule.get("values", ())), tuple(rule.get("denied", ())),
        rule.get("without", 0), rule.get("error", "EPERM"), within, rule.get("high", False),
    )  # fmt: skip


def _check(condition: _Condition) -> tuple[Instruction, ...]:
    load = (_LOAD, 0, 0, _ARGUMENTS + 8 * condition.argument + 4 * condition.high)
    error = 0 if condition.error == "none" else getattr(errno, condition.error)
    denied = (_RETURN, 0, 0, _ERRNO | error)
    allowed = (_RETURN, 0, 0, _ALLOW)
    if condition.without:
        return load, (_JSET, 0, 1, condition.without), denied, allowed
    code: list[Instruction] = [load]
    for value, more in condition.within:
        inner = _check(more)
        code += [(_JEQ, 0, len(inner), value), *inner]
    listed = condition.values or condition.denied
    tests = [(_JEQ, len(listed) - place, 0, value) for place, value in enumerate(listed)]
    return (*code, *tests, *((denied, allowed) if condition.values else (allowed, denied)))


def _ranges(
    leaves: dict[int, tuple[Instruction, ...]],
) -> list[tuple[int, tuple[Instruction, ...]]]:
    """(first number, code) of each run of equal leaves; the last run has no end."""
    ranges: list[tuple[int, tuple[Instruction, ...]]] = []
    for number in range(_NUMBERS_MAX):
        if not ranges or ranges[-1][1] != leaves[number]:
            ranges.append((number, leaves[number]))
    return ranges


def _search(ranges: list[tuple[int, tuple[Instruction, ...]]]) -> list[Instruction]:
    if len(ranges) == 1:
        return list(ranges[0][1])
    middle = len(ranges) // 2
    below, above = _search(ranges[:middle]), _search(ranges[middle:])
    if len(below) < 256:
        return [(_JGE, len(below), 0, ranges[middle][0]), *below, *above]
    return [(_JGE, 0, 1, ranges[middle][0]), (_JUMP, 0, 0, len(below)), *below, *above]
