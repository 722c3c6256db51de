"""Imports that take the forks over: what they gain is a refusal, or nothing."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.support.python_functions import Make, python_root, value, with_handlers

from firstlight.agile import Runtime
from firstlight.errors import Failed

libc = ctypes.CDLL(None)
PR_SET_CHILD_SUBREAPER = 36
END = "\ndef main(event): return 'served'\n"
FORK = """
import __main__, os, time
def fork(self, handler, request, descriptors):
    events, inside = descriptors[0], self._inside
    place = (tuple(descriptors[:3]), tuple(descriptors[4:]), "/srv", 64, self._program)
    {fork}
    os.write(events, b'{{"ready": 1}}\\n')
    os.read(events, 99)
    os.write(events, b'{{"began": 1, "result": "owned"}}\\n')
    os._exit(0)
__main__.Zygote.fork = fork
"""
TAKES_OVER = {
    "serves_itself": ("pass", "did not make exactly one process"),
    "keeps_all": ("if os.fork(): return", "CapPrm is 0000000000240100"),
    "enters_only": ("if os.fork(): return\n"
                    "    import socket\n"
                    "    __import__('ctypes').CDLL(None).setns(descriptors[5], 0)",
                    "is not confined: .*NoNewPrivs|CapPrm"),
    "other_cgroup": ("if os.fork(): return\n    os.setsid()", "its cgroup namespace differs"),
    "keeps_threads": ("if os.fork(): return\n"
                      "    inside.become_instance(*place); events = 3\n"
                      "    import _thread; _thread.start_new_thread(time.sleep, (9,))",
                      "Threads is 2"),
    "two": ("if os.fork(): return\n    if os.fork() == 0: time.sleep(9)",
            "did not make exactly one process"),
    "leaves_a_child": ("came, comes = os.pipe()\n"
                       "    if os.fork() and (os.fork() or os.write(comes, b'.') "
                       "and time.sleep(9) is None): return\n"
                       "    os.read(came, 1)\n"
                       "    inside.become_instance(*place); events = 3",
                       "did not make exactly one process"),
    "loads_no_filter": ("if os.fork(): return\n"
                        "    self._inside.become_instance(*place[:4], b''); events = 3",
                        "ended before it was ready"),
}  # fmt: skip
TRIES = """
import ctypes, json, os
libc = ctypes.CDLL(None, use_errno=True)
NEW = {"mount": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000,
       "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000, "time": 0x80}
CLONE, SETNS, CHROOT = 56, 308, 161
def tried(what):
    return "held" if what() < 0 else "ESCAPED"
def clone(flag):
    pid = libc.syscall(CLONE, ctypes.c_ulong(flag | 17), 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    return pid
def attempts():
    said = {f"unshare {name}": tried(lambda: libc.unshare(flag)) for name, flag in NEW.items()}
    said |= {f"clone {name}": tried(lambda: clone(flag)) for name, flag in NEW.items()
             if name != "time"}
    said["mount"] = tried(lambda: libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None))
    said["umount"] = tried(lambda: libc.umount2(b"/tmp", 2))
    said["chroot"] = tried(lambda: libc.chroot(b"/tmp"))
    said["host name"] = tried(lambda: libc.sethostname(b"x", 1))
    said["ptrace"] = tried(lambda: libc.ptrace(16, 1, 0, 0))
    for name in ("net", "mnt", "pid", "user", "ipc", "uts", "cgroup"):
        for pid in (os.getppid(), 1):
            try:
                fd = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY)
            except OSError:
                continue
            if os.fstat(fd).st_ino != os.stat(f"/proc/self/ns/{name}").st_ino:
                said[f"setns {name} of {pid}"] = tried(lambda: libc.setns(fd, 0))
            os.close(fd)
    return said
AT_IMPORT = attempts()
def main(event):
    return [AT_IMPORT, attempts()]
"""
WATCHES = """
import __main__, json, os
ORIGINAL = __main__.Zygote.fork
GIVEN = []
def fork(self, handler, request, descriptors):
    GIVEN[:] = [os.readlink(f"/proc/self/fd/{n}") for n in range(64)
                if os.path.lexists(f"/proc/self/fd/{n}")]
    return ORIGINAL(self, handler, request, descriptors)
__main__.Zygote.fork = fork
def main(event):
    return GIVEN
"""
SIGNALS = """
import os, signal, time
def main(event):
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    os.kill(0, signal.SIGUSR1)
    return "signalled"
"""

LOOKS = """
import os
def main(event):
    paths = [f"/proc/{name}" for name in ("keys", "timer_list", "interrupts", "acpi", "scsi")]
    there = [path for path in paths if os.path.exists(path)]
    return {path: os.listdir(path) if os.path.isdir(path) else open(path).read() for path in there}
"""
OPENS = """
import socket
def opened():
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
    except OSError as error:
        return error.strerror
    return "opened"
AT_IMPORT = opened()
def main(event):
    return [AT_IMPORT, opened()]
"""
BREEDS = """
import os, signal
def main(event):
    born = 0
    while True:
        try:
            if os.fork() == 0:
                signal.pause()
        except OSError:
            return born
        born += 1
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system with these modules."""
    modules = {name: FORK.format(fork=text) + END for name, (text, _) in TAKES_OVER.items()}
    modules |= {
        "tries": TRIES,
        "watches": WATCHES,
        "signals": SIGNALS,
        "looks": LOOKS,
        "opens": OPENS,
        "breeds": BREEDS,
        "plain": END,
    }
    return python_root(tmp_path_factory.mktemp("confined"), modules)


@pytest.mark.parametrize("module", TAKES_OVER)
def test_an_import_that_takes_the_forks_over_gets_no_event(root: Path, module: str) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        for _ in range(2):
            with pytest.raises(Failed, match=TAKES_OVER[module][1]):
                await runtime.invoke(function("main", module, timeout=10.0), 1)

    with_handlers(root, main)


@contextmanager
def unreaped_orphans() -> Iterator[None]:
    """A host whose PID 1 reaps nothing meanwhile, as that of some containers."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass


def test_a_zygote_ends_where_nobody_reaps_orphans(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        for _ in range(2):  # the second waits until the zygote of the first has ended
            with pytest.raises(Failed, match=TAKES_OVER["two"][1]):
                await runtime.invoke(function("main", "two"), 1)

    with unreaped_orphans():
        with_handlers(root, main)


def test_import_can_neither_make_nor_enter_namespaces(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        at_import, in_fork = value(await runtime.invoke(function("main", "tries"), 1))
        for report in (at_import, in_fork):
            assert len(report) >= 19
            assert {name for name, became in report.items() if became != "held"} == set()

    with_handlers(root, main)


def test_a_zygote_and_its_forks_may_do_without_netlink(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        for netlink, words in ((False, "Address family not supported by protocol"),
                               (True, "opened")):  # fmt: skip
            opens = function("main", "opens", netlink=netlink)
            assert value(await runtime.invoke(opens, 1)) == [words, words]

    with_handlers(root, main)


def test_a_zygote_holds_no_cgroup_and_nothing_of_the_host(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        given = value(await runtime.invoke(function("main", "watches"), 1))
        kinds = sorted({each.split(":")[0] for each in given})
        assert kinds == ["/dev/null", "cgroup", "ipc", "mnt", "net", "pid", "pipe", "socket", "uts"]

    with_handlers(root, main)


def test_what_an_ordinary_container_masks_is_masked_in_a_fork(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        seen = value(await runtime.invoke(function("main", "looks"), 1))
        assert "/proc/interrupts" in seen
        assert not any(seen.values())

    with_handlers(root, main)


@pytest.mark.parametrize("most", [1, 2, 8])
def test_a_handler_has_the_processes_that_its_limit_says(root: Path, most: int) -> None:
    """For a moment the zygote counts with it; of the least limits, our PID 1 with none."""

    async def main(runtime: Runtime, function: Make) -> None:
        for _ in range(3):
            born = value(await runtime.invoke(function("main", "breeds", pids=most), 1))
            assert most - 2 <= born <= max(most, 2) - 1

    with_handlers(root, main)


def test_a_fork_cannot_signal_its_zygote_or_siblings(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        assert value(await runtime.invoke(function("main", "signals"), 1)) == "signalled"
        [zygote] = runtime._zygotes.values()
        before = zygote.pid
        for _ in range(3):
            assert value(await runtime.invoke(function("main", "signals"), 1)) == "signalled"
        assert zygote.pid == before

    with_handlers(root, main)
