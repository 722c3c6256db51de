"""A host for a runtime: the namespaces of a thread, so that the test process stays put."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from firstlight.agile import Config
from firstlight.host import workspace as workspaces

Outcome = TypeVar("Outcome")
HERE = Path(__file__).parent
FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
SECONDS = 240.0  # less than the deadline of a test
CONFIG = Config(name="t5")
SOCKET = CONFIG.socket
SERVE = """
import sys
import msgspec
from firstlight.agile import Config, daemon
config = msgspec.json.decode(sys.argv[1], type=Config)
daemon.serve(config, lambda: print("ready", flush=True), keep=sys.argv[2] == "keep")
"""


def on_host(main: Callable[[], Awaitable[Outcome]], seconds: float = SECONDS) -> Outcome:
    """Run a coroutine in a thread that has network and mount namespaces of its own."""
    outcome: list[Outcome] = []
    errors: list[BaseException] = []

    async def limited() -> Outcome:
        return await asyncio.wait_for(main(), seconds)

    def run() -> None:
        try:
            with workspaces.sandbox(f"test-agile-{os.getpid()}"):
                FORWARD.write_text("0\n")  # a new network namespace has the machine's
                outcome.append(asyncio.run(limited()))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)  # it may hang
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return outcome[0]


async def serve(config: Config = CONFIG, *, keep: bool = False) -> asyncio.subprocess.Process:
    """A resident runtime that serves, and may be killed. ``keep``: its end leaves the node up."""
    text = msgspec.json.encode(config).decode()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVE, text, "keep" if keep else "",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    return process


@asynccontextmanager
async def daemon() -> AsyncIterator[int]:
    """A resident runtime at SOCKET, which must end in order; yields its pid."""
    process = await serve()
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    assert not SOCKET.exists()


def with_daemon(main: Callable[[Path], Awaitable[None]]) -> None:
    """Run a coroutine beside a resident runtime."""

    async def on() -> None:
        async with daemon():
            await main(SOCKET)

    on_host(on)


def streams() -> tuple[int, int, tuple[int, int, int]]:
    """(to write, to read, what the instance gets)."""
    stdin, to_write = os.pipe()
    to_read, stdout = os.pipe()
    return to_write, to_read, (stdin, stdout, stdout)


def pids_hierarchy() -> Path:
    """Where the controller for pids is mounted."""
    for line in Path("/proc/thread-self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup" and "pids" in options.split(","):
            return Path(where)
        if kind == "cgroup2" and "pids" in (Path(where) / "cgroup.controllers").read_text().split():
            return Path(where)
    pytest.skip("cgroup controllers are missing: pids")


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does not run for a while."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # it was replaced
            os.kill(pid, signal.SIGCONT)


def limits(pid: int) -> tuple[str, dict[str, str]]:
    """The name of an instance's cgroup, and its limits."""
    name, values = "", {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for file in ("pids.max", "memory.limit_in_bytes", "memory.max", "cpu.cfs_quota_us"):
            where = Path(f"/sys/fs/cgroup/{controllers}{path}") / file
            if "firstlight.agile" in path and where.exists():
                name, values[file] = where.parent.name, where.read_text().strip()
    return name, values
