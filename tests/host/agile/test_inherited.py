"""What a process inherits from its parent, as an instance reads it of itself, against a list."""

import asyncio
import ctypes
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from tests.support.agile_host import on_host

from firstlight.agile import Config, Function, Runtime

Make = Callable[..., Function]
ODD = """
import ctypes, os, resource, signal, sys
kernel = ctypes.CDLL(None)
os.nice(7)
os.sched_setaffinity(0, {0})
for name in ("SIGPIPE", "SIGHUP", "SIGUSR1"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
os.umask(0o077)
open("/proc/self/oom_score_adj", "w").write("300")
open("/proc/self/coredump_filter", "w").write("0x7f")
for name in ("RSS", "NPROC", "SIGPENDING", "FSIZE", "DATA", "CPU", "AS"):
    number = getattr(resource, f"RLIMIT_{name}")
    most = resource.getrlimit(number)[1]
    resource.setrlimit(number, (1 << 37 if most == -1 else most // 2, most))
for option in (28, 33, 41, 67):  # securebits, the machine check's kill, no huge pages, merged pages
    kernel.prctl(option, 4 if option == 28 else 1, int(option == 33), 0, 0)
kernel.prctl(29, 1, 0, 0, 0)  # timer slack
kernel.syscall(238, 3, ctypes.byref(ctypes.c_ulong(1)), 64)  # pages interleaved on node 0
kernel.syscall(251, 1, 0, 3 << 13)  # idle for disks
kernel.personality(0x40000)  # addresses not at random
os.execv(sys.argv[1], sys.argv[1:])
"""


LIMITS = {
    "Max core file size": "1",  # 0 does not stop a core_pattern that is a pipe
    "Max open files": "1024",
    "Max locked memory": "65536",
    "Max nice priority": "0",
    "Max realtime priority": "0",
    "Max msgqueue size": "819200",
    "Max pending signals": "4096",
    "Max stack size": "8388608",
}
OPEN = ("cpu time", "file size", "data size", "resident set", "processes", "address space",
        "file locks", "realtime timeout")  # fmt: skip
"""Those without a limit, or with that of who started the runtime if it may not be raised."""


IOPRIO_GET = {"x86_64": 252, "aarch64": 31}[platform.machine()]
libc = ctypes.CDLL(None)


def fields(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def check(pid: int, identity: int, session: str = "own") -> None:
    """One instance, by what the host's /proc says of it."""
    proc = Path(f"/proc/{pid}")
    status = fields(proc / "status")
    assert status["Uid"].split() == status["Gid"].split() == [str(identity)] * 4
    assert status["Groups"] == ""
    assert all(int(status[f"Cap{name}"], 16) == 0 for name in ("Inh", "Prm", "Eff", "Bnd", "Amb"))
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert (int(status["SigBlk"], 16), int(status["SigIgn"], 16)) == (0, 0)
    assert status["Umask"] == "0022"
    assert (proc / "oom_score_adj").read_text() == "0\n"
    assert (proc / "personality").read_text() == "00000000\n"
    assert (proc / "timerslack_ns").read_text() == "50000\n"
    assert (proc / "coredump_filter").read_text() == "00000033\n"
    huge = Path("/sys/kernel/mm/transparent_hugepage").exists()
    assert status["THP_enabled"] == str(int(huge))
    with suppress(FileNotFoundError):  # of kernels with CONFIG_NUMA
        assert " default " in (proc / "numa_maps").read_text().splitlines()[0]
    with suppress(FileNotFoundError):  # of kernels from 6.16 on
        assert "ksm_merge_any: no" in (proc / "ksm_stat").read_text()
    assert libc.syscall(IOPRIO_GET, 1, pid) == 0
    assert os.getpriority(os.PRIO_PROCESS, pid) == 0
    assert os.sched_getscheduler(pid) & ~os.SCHED_RESET_ON_FORK == os.SCHED_OTHER
    assert len(os.sched_getaffinity(pid)) == os.cpu_count()
    limits = (proc / "limits").read_text()
    for name, value in LIMITS.items():
        assert re.search(rf"^{name} +{value} +{value} ", limits, re.MULTILINE), limits
    for name in OPEN:
        assert re.search(rf"^Max {name} +(\S+) +\1 ", limits, re.MULTILINE), limits
    assert sorted((proc / "environ").read_text().rstrip("\0").split("\0")) == [
        "A=1", "HOME=/tmp", "HOSTNAME=instance",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ]  # fmt: skip
    assert (proc / "cwd").readlink() == Path("/")
    assert sorted(path.name for path in (proc / "fd").iterdir()) == ["0", "1", "2"]
    assert os.getpgid(pid) == pid
    inside = status["NSpid"].split()[-1]
    assert status["NSsid"].split()[-1] == (inside if session == "own" else "1")


@pytest.mark.parametrize(("waiting", "reuse"), [(0, "network"), (2, "network"), (0, "sandbox")])
def test_instance_inherits_nothing_from_starter(
    function: Make, waiting: int, reuse: str, tmp_path: Path
) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        f"""
import asyncio, sys
import msgspec
from firstlight.agile import Config, Function, Runtime
from firstlight.agile.config import Pools, PoolSize

async def main():
    function = msgspec.json.decode(sys.argv[1], type=Function)
    pools = Pools(sandbox=PoolSize(low=0, high={waiting}))
    async with Runtime(Config(name="t8", pools=pools)) as runtime:
        await runtime.prepare(function, {waiting})
        instance = await runtime.start(function)
        await asyncio.sleep(0.2)
        print(instance.pid, instance.warm, flush=True)
        sys.stdin.read()

asyncio.run(main())
"""
    )

    async def main() -> None:
        made = function("hold", "60", env={"A": "1"}, reuse=reuse)
        text = msgspec.json.encode(made).decode()
        argv = [sys.executable, "-c", ODD, sys.executable, str(script), text]
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as odd:
            assert odd.stdout
            assert odd.stdin
            line = await asyncio.to_thread(odd.stdout.readline)
            pid, warm = line.split()
            assert warm == str(bool(waiting))
            session = "its sandbox's" if reuse == "sandbox" else "own"
            check(int(pid), Config().identities.first + 1, session)
            odd.stdin.close()
            assert odd.wait() == 0

    on_host(main)


def test_identities_differ_by_function_or_instance(function: Make) -> None:
    def uid(pid: int) -> int:
        return Path(f"/proc/{pid}").stat().st_uid

    async def main() -> None:
        async with Runtime(Config(name="t8")) as runtime:
            first, other = function("hold", "60"), function("hold", "61")
            same = [uid((await runtime.start(first)).pid) for _ in range(2)]
            assert same[0] == same[1] != uid((await runtime.start(other)).pid)

    on_host(main)
