"""Runs the eBPF tracer ``native/trace/trace.c`` and turns its records into spans.

The records are ``struct event`` of ``native/trace/trace.h``.
"""

import gzip
import os
import re
import resource
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from firstlight.errors import WITH_SUDO, Failed, Unsupported, longer
from firstlight.host.facts import PROC, SYS, read_line
from firstlight.host.ownership import scratch
from firstlight.native import native
from firstlight.store import SPAN_SCHEMA, TIMER, UNSEEN
from firstlight.trace import details, kallsyms
from firstlight.trace.kallsyms import Stacks

EVENT = np.dtype(
    [
        ("start", "u8"), ("end", "u8"), ("result", "i8"), ("args", "u8", 4),
        ("root", "u4"), ("pid", "u4"), ("tid", "u4"), ("peer", "u4"),
        ("magic", "u4"), ("stack", "i4"),
        ("kind", "u2"), ("number", "u2"), ("family", "u2"), ("protocol", "u2"),
        ("text", "u4"), ("open", "u4"),
    ]
)  # fmt: skip
_CALL, FORK, EXEC, _EXIT, _OFF, _LOCK, _MARK, _STACK, BEGIN, _GONE = range(1, 11)
_ENDS = {EXEC: "exec", _EXIT: "exit", _GONE: "gone"}
_RING_BYTES = 1 << 26
_UNSEEN = -1000  # native/trace/trace.h
_OPENING = frozenset({"open", "openat", "openat2", "socket"})
HINT = "run firstlight doctor to see what is missing"
UNTRACED = f"{HINT}; run --no-trace measures without a breakdown"
_SYS_ADMIN, _LOADING = 21, {"CAP_BPF": 39, "CAP_PERFMON": 38}
_ALL_USERS = (1 << 32) - 1
_AT_ONCE = 1 << 15
"""Events that are decoded at once: as Python's objects they take 10 times their size."""
_FILES = 64
"""Descriptors of programs, maps and links, with some to spare."""
_DESCRIPTOR = re.compile(r"/proc/(?:self|thread-self)/fd/(\d+)")


class Tracer:
    """The loaded eBPF programs, which follow the children of one load generator.

    Events wait in a ring buffer of ``ring`` bytes, a power of two, and then in files below
    ``directory``. Raises Failed.
    """

    def __init__(
        self, generator: int, directory: Path | None = None, ring: int = _RING_BYTES
    ) -> None:
        self._generator, self._parent, self._ring = generator, directory, ring
        self.losses = ""
        """How the last batch lost events: by the tracer's part, and how many."""

    def __enter__(self) -> "Tracer":
        with ExitStack() as stack:
            self._prefix = stack.enter_context(scratch(self._parent)) / "batch"
            self._process = subprocess.Popen(
                [*program(), native("trace.bpf.o"), str(self._generator), str(self._ring)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            self._scratch = stack.pop_all()
        try:
            self._expect("loaded")
        except Failed:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._scratch.close()

    def start(self, daemons: Iterable[int] = ()) -> None:
        """Attach the programs, and follow ``daemons`` as well as the generator's children."""
        self._say(" ".join(map(str, ["start", self._prefix, *daemons])), "started")

    def stop(self) -> int:
        """Detach the programs; returns the number of events lost since ``start``."""
        _, _, lost, *words = self._say("stop", "stopped").rstrip().split(" ", 3)
        self.losses = words[0] if words else ""
        return int(lost)

    def collect(self, samples: Mapping[int, int]) -> pl.DataFrame:
        """The spans of the last batch.

        ``samples`` maps the pid of an instance, or of a daemon that served it, to ``Sample.index``.
        """
        events = np.fromfile(self._prefix.with_suffix(".events"), dtype=EVENT)
        text = self._prefix.with_suffix(".text").read_bytes()
        stacks = Stacks(self._prefix.with_suffix(".stacks").read_bytes())
        return decode(events, text, stacks, samples)

    def _say(self, line: str, expected: str) -> str:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        return self._expect(expected)

    def _expect(self, expected: str) -> str:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        answer = self._process.stdout.readline()
        if not answer.startswith(expected):
            reason = self._process.stderr.read().strip() or ending(self._process.wait(longer(60)))
            raise Failed(f"the tracer failed: {reason}", HINT)
        return answer


def ending(status: int) -> str:
    """How a program without a message ended."""
    if status < 0:
        return f"it was ended by {signal.Signals(-status).name} ({signal.strsignal(-status)})"
    return f"it exited with status {status} and no message"


def program() -> tuple[str | Path, ...]:
    """The native tracer, and how it is to load its programs on this kernel."""
    return (native("trace"), *(("--preemptible",) if is_preemptible() else ()))


@cache
def is_preemptible() -> bool:
    """Whether the kernel may preempt the tracer's programs of system calls, and so miss events.

    It may from Linux 6.13 on, where these programs may fault, unless it never preempts itself.
    Where the mode is not known, it may.
    """
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if release and (int(release[1]), int(release[2])) < (6, 13):
        return False
    words = [word for word in read_line(PROC / "cmdline").split() if word.startswith("preempt=")]
    mode = re.search(r"\((\w+)\)", read_line(SYS / "kernel/debug/sched/preempt"))
    built = re.search(r"^CONFIG_PREEMPT_(NONE|VOLUNTARY)=y$", _config(), re.MULTILINE)
    name = mode[1] if mode else words[-1][8:] if words else built[1].lower() if built else ""
    return name not in ("none", "voluntary")


def _config() -> str:
    """The kernel's build configuration, if it is available."""
    try:
        return gzip.decompress((PROC / "config.gz").read_bytes()).decode()
    except OSError:
        return read_line(Path(f"/boot/config-{os.uname().release}"))


def probe(hint: str = UNTRACED) -> None:
    """Raise Unsupported, with this hint, if the eBPF programs do not load and attach here."""
    if os.geteuid() != 0:
        raise Unsupported("tracing needs root", WITH_SUDO)
    done = subprocess.run(
        [*program(), "--probe", native("trace.bpf.o")], capture_output=True, text=True
    )
    if done.returncode:
        complaint = done.stderr.strip()
        raise Unsupported(f"cannot trace: {obstacle() or denial(complaint) or complaint}", hint)


def obstacle() -> str:
    """What of this host keeps every program from loading; "" if that is not known."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if 0 <= most < _FILES:
        return f"at most {most} files may be open, and it takes {_FILES}: raise ulimit -Hn"
    if "[confidentiality]" in read_line(SYS / "kernel/security/lockdown"):
        return "the kernel is locked down for confidentiality, so no program may read its memory"
    if not (SYS / "kernel").exists():
        return f"{SYS} is not mounted, where the kernel says what its structures keep"
    if not (SYS / "kernel/btf/vmlinux").is_file():  # a container may have /dev/null there
        return "the kernel has no BTF, which says where its structures keep what"
    return ""


def denial(complaint: str) -> str:
    """Why the kernel does not let this process load programs, if it said that; "" if that is not
    known.
    """
    status = dict(re.findall(r"^(\w+):\s*(\S+)$", (PROC / "self/status").read_text(), re.MULTILINE))
    if read_line(PROC / "self/uid_map").split() != ["0", "0", str(_ALL_USERS)]:
        return "this is root of a user namespace, and only the host's root may load programs"
    held = int(status.get("CapEff", "0"), 16)
    missing = [name for name, bit in _LOADING.items() if not held >> bit & 1]
    if missing and not held >> _SYS_ADMIN & 1:
        return f"this process lacks {' and '.join(missing)}, or CAP_SYS_ADMIN"
    if status.get("Seccomp") == "2" and "Operation not permitted" in complaint:
        return "a seccomp filter refuses bpf(2), as that of a container without --privileged does"
    return ""


class Call(NamedTuple):
    """A system call's name and its subject: ``path0``, ``path1``, ``fd``, ``none``, ``ignored``."""

    name: str
    subject: str


@cache
def calls() -> dict[int, Call]:
    """The system calls whose names the tracer knows, by number."""
    listing = subprocess.run([native("trace"), "--calls"], capture_output=True, text=True).stdout
    words = (line.split() for line in listing.splitlines())
    return {int(number): Call(name, subject) for number, name, subject in words}


Row = tuple[object, ...]


def decode(
    events: np.ndarray, text: bytes, stacks: Stacks, samples: Mapping[int, int]
) -> pl.DataFrame:
    """The spans of the instances whose root is in ``samples``, ordered by start."""
    texts = np.cumsum(events["text"], dtype=np.int64)
    decoder = _Decoder(text, stacks, samples)
    frames = [pl.DataFrame(schema=SPAN_SCHEMA)]
    for at in range(0, len(events), _AT_ONCE):
        part = slice(at, at + _AT_ONCE)
        rows = [
            row
            for event, end in zip(events[part].tolist(), texts[part].tolist(), strict=True)
            for row in decoder.rows(event, end)
        ]
        frames.append(pl.DataFrame(rows, schema=SPAN_SCHEMA, orient="row"))
    return pl.concat(frames).sort("start", maintain_order=True)


class _Decoder:
    """Turns events into rows, in the order of the kernel's records."""

    def __init__(self, text: bytes, stacks: Stacks, samples: Mapping[int, int]) -> None:
        self._text, self._stacks, self._samples = text, stacks, samples
        self._files: dict[tuple[int, int], str] = {}
        self._whole: dict[tuple[int, int], str] = {}

    def rows(self, event: tuple[Any, ...], text_end: int) -> Iterator[Row]:
        """The spans of one event, whose text ends at ``text_end``."""
        (start, end, result, args, root, pid, tid, peer, magic, stack, kind, number,
         family, protocol, length, unfinished) = event  # fmt: skip
        sample = self._samples.get(root)
        if sample is None or kind == BEGIN:
            return
        text = self._text[text_end - length : text_end]
        where = (start, end, pid, tid)
        if kind == _CALL:
            name = calls()[number].name
            about = _detail(name, magic, family, protocol, tuple(args), text)
            about = self._file(name, about, pid, args[0], result)
            result = None if unfinished else result
            yield sample, "call", name, about, "", *where, result, peer or None
        elif kind == FORK:
            name = "process" if args[0] == peer else "thread"
            yield sample, "fork", name, "", "", *where, None, peer
        elif kind in _ENDS:
            name = _ENDS[kind]
            about = text.split(b"\0", 1)[0].decode(errors="replace")
            yield sample, name, name, about, "", *where, None, None
        elif kind == _MARK:
            yield sample, "mark", kallsyms.function(args[0]), "", "", *where, None, None
        elif kind == _STACK:
            self._whole[tid, start] = kallsyms.words(np.frombuffer(text, np.uint64).tolist())
        elif kind == _LOCK:
            lock = kallsyms.variable(args[0]) or hex(args[0])
            frames = self._frames(stack, tid, start)
            yield sample, "lock", _lock(args[1]), lock, frames, *where, None, peer
        else:
            frames = self._frames(stack, tid, start)
            wakeup = min(max(args[0], start), end) if args[0] else end
            ready = start if result == 0 else wakeup
            if ready > start:
                by = TIMER if number else ""
                yield sample, "blocked", by, "", frames, start, ready, pid, tid, result, peer
            if end > ready:
                yield sample, "queued", "", "", "", ready, end, pid, tid, None, peer

    def _frames(self, stack: int, tid: int, start: int) -> str:
        if stack == _UNSEEN:
            return UNSEEN
        return self._whole.pop((tid, start), "") if stack < -1 else self._stacks[stack]

    def _file(self, name: str, about: str, pid: int, descriptor: int, result: int) -> str:
        """The object of a call. Files are remembered: after ``close`` a descriptor names nothing.

        A runtime may name a mount's target by a descriptor below /proc.
        """
        if name == "close":
            return self._files.pop((pid, descriptor), "")
        if name == "mount" and (at := _DESCRIPTOR.match(about)):
            return self._files.get((pid, int(at[1])), at[0]) + about[at.end() :]
        if name in _OPENING and result >= 0:
            self._files[pid, result] = about
        if name == "connect" and result == 0:
            self._files[pid, descriptor] = about
        if about == "socket:unix":  # the peer of a connection
            return self._files.get((pid, descriptor), about)
        return about


@lru_cache(maxsize=65536)
def _detail(
    name: str, magic: int, family: int, protocol: int, args: tuple[int, ...], text: bytes
) -> str:
    return details.detail(name, magic, family, protocol, args, text)


def _lock(flags: int) -> str:
    """The kind of lock, from the LCB_F flags of include/trace/events/lock.h."""
    if flags & 32:
        return "mutex"
    if flags & 16:
        return "percpu-rwsem"
    if flags & 8:
        return "rt-mutex"
    if flags & 1:
        return "rwlock" if flags & 6 else "spinlock"
    return "rwsem-read" if flags & 2 else "rwsem-write"
