"""Calls the OCI runtime that makes the containers: runc, or a program with the same arguments."""

import asyncio
import json
import os
import resource
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from firstlight.agile.shim.program import Program
from firstlight.agile.shim.ttrpc import Code, Refused
from firstlight.errors import longer

_SECONDS = longer(60.0)
_NICE = -10
_END_SECONDS = longer(5.0)
_AT_ONCE = 2 * len(os.sched_getaffinity(0))
_PATIENCE_SECONDS = longer(2.0)
_files = 1024
_NULL = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
_DEFAULTS = {signal.Signals(number) for number in signal.valid_signals()
             if number in {each.value for each in signal.Signals}} - {
    signal.SIGKILL, signal.SIGSTOP}  # fmt: skip


async def run(words: Sequence[str], streams: Sequence[int], seconds: float = _SECONDS) -> int:
    """Execute a program with descriptors 0, 1, 2… and wait for it; returns its exit status.

    The number of a signal is negative. Raises OSError, TimeoutError after it was killed.
    """
    pid = _spawn(words, streams)
    ended = asyncio.Event()
    watched = os.pidfd_open(pid)
    try:
        loop = asyncio.get_running_loop()
        loop.add_reader(watched, ended.set)
        try:
            async with asyncio.timeout(seconds):
                await ended.wait()
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            with suppress(TimeoutError):  # the kernel may hold it
                async with asyncio.timeout(_END_SECONDS):
                    await ended.wait()
            raise
        finally:
            loop.remove_reader(watched)
            _, status = os.waitpid(pid, os.WNOHANG)
    finally:
        os.close(watched)
    return os.waitstatus_to_exitcode(status)


def _spawn(words: Sequence[str], streams: Sequence[int]) -> int:
    """Start a process that inherits nothing from the server, so that its children do not either."""
    actions = [(os.POSIX_SPAWN_DUP2, each, number) for number, each in enumerate(streams)]
    # Go's scheduler costs a single-threaded program a fifth of its time, and more in a burst.
    environment = {"PATH": os.environ.get("PATH", os.defpath), "GOMAXPROCS": "1"}
    ours = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_files, ours[1]), ours[1]))
    try:
        return os.posix_spawn(words[0], list(words), environment, file_actions=actions,
                              setpgroup=0, setsigmask=[], setsigdef=_DEFAULTS)  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, ours)


def take_room() -> None:
    """Raise this process's limit of open files and its priority, but not its children's."""
    global _files
    _files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with suppress(PermissionError):  # pods must not wait for other processes' work
        os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)


class OciRuntime:
    """An OCI runtime's program and its state directory."""

    def __init__(self, program: Path, root: Path, scratch: Path) -> None:
        self._program, self._root, self.scratch = Program(program, scratch), root, scratch
        self._turns = asyncio.Semaphore(_AT_ONCE)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold while a container is made: few at once, those that came first.

        If all containers of a burst are made together, each is ready only when almost all are.
        Making one may take long without using a CPU, so after a while it goes ahead anyway.
        """
        has_turn = False
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                has_turn = await self._turns.acquire()
        try:
            yield
        finally:
            if has_turn:
                self._turns.release()

    def state(self, name: str) -> Path:
        """The program's state directory for a container."""
        return self._root / name

    async def call(
        self,
        verb: str,
        *words: str,
        log: str,
        streams: Sequence[int] = (_NULL, _NULL, _NULL),
        systemd: bool = False,
    ) -> None:
        """Run a verb. Raises Refused with the program's own reason."""
        file = self.scratch / f"{log}.log"
        options = ["--root", str(self._root), "--log", str(file), "--log-format", "json"]
        if systemd:
            options.append("--systemd-cgroup")
        try:
            status = await run([self._program.path(), *options, verb, *words], streams)
            why = _reason(file) if status else ""
        except TimeoutError:
            status, why = 1, f"no end after {_SECONDS:.0f} s"
        except OSError as error:
            status, why = 1, f"cannot execute {self._program.name}: {error.strerror}"
        finally:
            file.unlink(missing_ok=True)
        if status:
            raise Refused(Code.UNKNOWN, f"OCI runtime {verb} failed: {why or f'status {status}'}")

    async def start(self, name: str, *, has_hooks: bool, systemd: bool) -> None:
        """Let a created container execute its command. Raises Refused.

        It waits for a reader of ``exec.fifo``. The runtime's ``start`` does the same, but costs
        more than the rest of a start; only hooks and programs without the fifo need it.
        """
        fifo = self.state(name) / "exec.fifo"
        if has_hooks or not fifo.exists():
            await self.call("start", name, log=name, systemd=systemd)
            return
        loop = asyncio.get_running_loop()
        file = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        ready = asyncio.Event()
        try:
            loop.add_reader(file, ready.set)
            async with asyncio.timeout(_SECONDS):
                await ready.wait()
            if not os.read(file, 16):
                raise Refused(Code.UNKNOWN, "cannot start a container that has ended")
        except TimeoutError as error:
            why = f"the container does not start in {_SECONDS:.0f} s"
            raise Refused(Code.UNKNOWN, why) from error
        finally:
            loop.remove_reader(file)
            os.close(file)
        with suppress(FileNotFoundError):
            fifo.unlink()


def _reason(log: Path) -> str:
    with suppress(OSError):
        for line in reversed(log.read_text(errors="replace").splitlines()):
            with suppress(ValueError):
                entry = json.loads(line)
                if entry.get("level", "error") in ("error", "fatal"):
                    return str(entry.get("msg", ""))
    return ""
