"""What a start that hangs is doing: read from /proc before it is ended."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from firstlight import phases
from firstlight.tracers.bpf import call_names

_WAITS = frozenset({"wait4", "waitid"})


def describe(root: int) -> str:
    """One sentence: the deepest process of the tree, its phase and system call, and its program."""
    stuck = [(pid, _call(pid)) for pid in _tree(root)]
    pid, call = next(
        ((pid, call) for pid, call in reversed(stuck) if call not in _WAITS), (root, "nothing")
    )
    phase = phases.of_call(call)
    return f"hung in phase {phase}: {_command(pid)} (pid {pid}) is in {call}"


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with suppress(OSError):
        for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))


def _call(pid: int) -> str:
    try:
        number = (Path(f"/proc/{pid}/syscall").read_text().split() or [""])[0]
    except OSError:
        return "nothing"
    if number == "running":
        return "no system call: it is running"
    return call_names().get(int(number), f"system call {number}")


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()[:120]
    return "a process"
