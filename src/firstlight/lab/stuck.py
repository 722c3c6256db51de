"""Finds out from /proc what a hanging start is doing, before it is killed."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from firstlight.analysis import phases
from firstlight.trace.bpf import Call, calls

_WAITS = frozenset({"wait4", "waitid"})
_POLLS = frozenset(
    {"epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "select", "pselect6"}
)
_PATH_BYTES = 128


@dataclass(frozen=True)
class _Thread:
    """A thread's current system call; ``detail`` is the path or descriptor of the call."""

    pid: int
    call: str
    detail: str = ""

    @property
    def phase(self) -> str | None:
        return phases.classify(self.call, self.detail)


def describe(root: int) -> str:
    """Name the deepest process of the tree that is in a call of a known phase, and the call.

    Polling processes come next, then processes that only wait for their children.
    """
    tree = list(_tree(root))
    parents = {pid for pid in tree if len(list(_tree(pid))) > 1}
    threads = [thread for pid in tree for thread in _threads(pid)]
    deepest = [thread for thread in reversed(threads) if thread.call not in _WAITS]
    known = [thread for thread in deepest if thread.phase in phases.ORDER]
    waiting = [thread for thread in known if thread.pid in parents and thread.phase == "handshake"]
    polling = [thread for thread in deepest if thread.call in _POLLS]
    first = [thread for thread in known if thread not in waiting]
    stuck = next(iter([*first, *polling, *waiting, *deepest]), _Thread(root, "nothing"))
    phase = stuck.phase if stuck in known else phases.UNATTRIBUTED
    where = f"{stuck.call} {stuck.detail}".rstrip()
    return f"hung in phase {phase}: {_command(stuck.pid)} (pid {stuck.pid}) is in {where}"


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with suppress(OSError):
        for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))


def _threads(pid: int) -> Iterator[_Thread]:
    """The threads of a process, the main thread last; callers take the last first."""
    with suppress(OSError):
        for task in sorted(Path(f"/proc/{pid}/task").iterdir(), reverse=True):
            with suppress(OSError):
                yield _thread(pid, (task / "syscall").read_text().split())


def _thread(pid: int, words: list[str]) -> _Thread:
    if words[0] == "running":
        return _Thread(pid, "no system call: it is running")
    number, arguments = int(words[0]), [int(word, 16) for word in words[1:7]]
    call = calls().get(number, Call(f"system call {number}", "none"))
    if call.name in _POLLS:
        return _Thread(pid, call.name, _far_ends(pid))
    if call.subject == "fd":
        return _Thread(pid, call.name, _descriptor(pid, arguments[0]))
    if call.subject.startswith("path"):
        return _Thread(pid, call.name, _text(pid, arguments[int(call.subject[-1])]))
    return _Thread(pid, call.name)


def _descriptor(pid: int, number: int) -> str:
    """Describe a descriptor as ``trace.details`` does."""
    try:
        target = str(Path(f"/proc/{pid}/fd/{number}").readlink())
    except OSError:
        return ""
    kind, _, inode = target.partition(":[")
    if kind == "socket":
        sockets = Path(f"/proc/{pid}/net/unix").read_text()
        return "socket:unix" if f" {inode.rstrip(']')} " in sockets else "socket:"
    return f"{kind}:" if inode else target


def _far_ends(pid: int) -> str:
    """The peers of a process's connected sockets, as far as /proc shows them."""
    owned = set()
    with suppress(OSError):
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                owned.add(str(file.readlink()).removeprefix("socket:[").rstrip("]"))
    ends = []
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
            _, _, remote, _, *rest = line.split()
            if rest[5] in owned and remote != "00000000:0000":
                host, port = remote.split(":")
                address = ".".join(str(part) for part in bytes.fromhex(host)[::-1])
                ends.append(f"socket:inet {address}:{int(port, 16)}")
        unix = Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]
        ends += ["socket:unix" for line in unix if line.split()[6] in owned]
    return ", ".join(dict.fromkeys(ends))


def _text(pid: int, address: int) -> str:
    try:
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(_PATH_BYTES).split(b"\0", 1)[0].decode(errors="replace")
    except (OSError, OverflowError):
        return ""


def _command(pid: int) -> str:
    with suppress(OSError):
        return (
            Path(f"/proc/{pid}/cmdline")
            .read_text(errors="replace")
            .replace("\0", " ")
            .strip()[:120]
        )
    return "a process"
