"""Imports that prepare their forks: shared memory, hooks, timers, forged messages, PID 1."""

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.support.agile_host import on_host
from tests.support.python_functions import Main, Make, python_root, value, with_handlers

from firstlight.agile import Config, Function, Runtime
from firstlight.agile.config import Functions
from firstlight.agile.python import interpreter
from firstlight.errors import Failed

KEEPS = {
    "upgraded": """
import ctypes, mmap, os
fd = os.open("/tmp/shared", os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 4096)
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
AT = libc.mmap(None, 4096, 1, 1, fd, 0)
os.close(fd)
def main(event):
    before = ctypes.string_at(AT)
    libc.mprotect(ctypes.c_void_p(AT), 4096, 3)
    ctypes.memmove(AT, event.encode() + b"\\0", len(event) + 1)
    return before.decode()
""",
    "hooked": """
import mmap, os
M = []
os.register_at_fork(before=lambda: M or M.append(mmap.mmap(-1, 4096)))
def main(event):
    before = M[0][:64].rstrip(b"\\0").decode()
    M[0][:64] = event.encode().ljust(64, b"\\0")
    return before
""",
    "vforked": """
import __main__, ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
SECRETS = []
STACK = ctypes.create_string_buffer(1 << 20)
TOP = (ctypes.addressof(STACK) + (1 << 20)) & ~15
ORIGINAL, FORK = __main__.Zygote.fork, os.fork
def fork(self, handler, request, descriptors):
    def child(_):
        os.fork = lambda: 0
        ORIGINAL(self, handler, request, descriptors)
    made = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(child)
    libc.clone(made, ctypes.c_void_p(TOP), 0x100 | 0x4000 | 17, None)
__main__.Zygote.fork = fork
def main(event):
    before = repr(SECRETS)
    SECRETS.append(event)
    return before
""",
}

SLEEPS = """
import time
def main(event):
    time.sleep(event)
    return "served"
"""
SERVED = """
def main(event):
    return "served"
"""
ODD = {
    "timer": """
import signal, time
def late(*_): raise SystemExit("the import's handler ran in a fork")
signal.signal(signal.SIGALRM, late)
signal.setitimer(signal.ITIMER_REAL, 30)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
def main(event):
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN  # dispositions are inherited
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return "served"
""",
    "hooks": """
import atexit, gc, sys, os
RAN = []
def trace(*_): RAN.append("trace"); return trace
sys.settrace(trace); sys.setprofile(lambda *_: None)
gc.callbacks.append(lambda *_: RAN.append("gc"))
atexit.register(lambda: os.write(1, b"atexit"))
def main(event):
    held = [n for n in os.listdir("/proc/self/fd") if n not in "0123"]
    assert len(held) <= 1, held  # of the listing itself
    return "served"
""",
    "rights": """
import ctypes, os
libc = ctypes.CDLL(None)
MADE = []
def child():
    MADE.append([libc.unshare(0x20000), libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None),
                 libc.ptrace(16, 1, 0, 0), libc.chroot(b"/tmp")])
os.register_at_fork(after_in_child=child)
def main(event):
    assert all(one == -1 for one in MADE[-1]), MADE
    assert os.path.exists("/usr")
    return "served"
""",
    "first": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def main(event):
    got = []
    for what, way in (("mem", os.O_RDWR), ("mem", os.O_RDONLY), ("maps", os.O_RDONLY),
                      ("environ", os.O_RDONLY), ("root", os.O_RDONLY), ("cwd", os.O_RDONLY),
                      ("fd/0", os.O_RDWR), ("exe", os.O_RDONLY), ("oom_score_adj", os.O_WRONLY)):
        try:
            os.close(os.open(f"/proc/1/{what}", way))
            got.append(what)
        except OSError:
            pass
    assert not got, got
    assert libc.syscall(434, 1, 0) < 0 or libc.syscall(438, libc.syscall(434, 1, 0), 0, 0) < 0
    assert libc.syscall(310, 1, None, 0, None, 0, 0) < 0
    os.kill(1, 9)
    return "served" if os.getppid() in (0, 1) else os.getppid()
""",
    "passes": """
import array, os, socket
control = socket.socket(fileno=os.dup(3))
socket.send_fds(control, [b'{"imported": ["/"]}'], [0, 1, 2])
control.close()
"""
    + SERVED,
}
FAILS = {
    "forged": (
        'import os, time; os.write(3, b\'{"imported": ["/"]}\'); time.sleep(60)',
        "was not ready in 1.0 s",
    ),
    "floods": (
        "import os\nfor _ in range(10**6): os.write(3, b'{' * 60000)",
        "violates the protocol",
    ),
    "empty": ("import os\nwhile True: os.write(3, b'{\"files\": []}')", "violates the protocol"),
    "nul": (
        'import os, time; os.write(3, b\'{"files": ["a\\\\u0000b"]}\'); time.sleep(60)',
        "violates the protocol",
    ),
    "many": (
        "import os, json\nwhile True: os.write(3, json.dumps({'files': ['a' * 99] * 99}).encode())",
        "imports more than",
    ),
    "climbs": (
        'import os, time\nos.write(3, b\'{"files": ["/../../../etc/shadow"]}\')\n'
        'os.write(3, b\'{"imported": ["/../..", "/proc"]}\'); time.sleep(60)',
        "was not ready in 1.0 s",
    ),
    "closes": (
        "import os, time; os.close(3); time.sleep(60)",
        "closed its control socket|took more than 1.2 s",
    ),
    "sleeps_long": ("import time; time.sleep(60)", "took more than 1.2 s"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system with these modules."""
    texts = (
        KEEPS
        | ODD
        | {"sleeps": SLEEPS}
        | {name: text + SERVED for name, (text, _) in FAILS.items()}
    )
    return python_root(tmp_path_factory.mktemp("attack"), {f"a_{k}": v for k, v in texts.items()})


@pytest.mark.parametrize(
    ("module", "refusal"),
    [("upgraded", "left shared memory"), ("hooked", "left shared memory"),
     ("vforked", "it shares its parent's memory")],
)  # fmt: skip
def test_what_one_request_wrote_no_other_reads(root: Path, module: str, refusal: str) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        output, refused = "", ""
        for number in range(3):
            try:
                request = function("main", f"a_{module}", timeout=10.0)
                output += value(await runtime.invoke(request, f"secret {number}"))
            except Failed as error:
                refused += error.message
        assert "secret" not in output
        assert refusal in refused

    with_handlers(root, main)


def test_what_an_import_arms_does_not_go_off_in_a_fork(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        for module in ODD:
            result = await runtime.invoke(function("main", f"a_{module}"), 1)
            assert (module, value(result), result.stdout) == (module, "served", "")

    with_handlers(root, main)


def test_an_import_that_forges_or_leaves_its_socket_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreter, "IMPORT_SECONDS", 1.2)

    async def main(runtime: Runtime, function: Make) -> None:
        for module, (_, message) in FAILS.items():
            with pytest.raises(Failed, match=message):
                await runtime.invoke(function("main", f"a_{module}", timeout=1.0), 1)

    with_handlers(root, main)


async def on_small_runtime(root: Path, functions: Functions, main: Main, instances: int) -> None:
    subprocess.run(["mount", "--bind", "/usr", root / "usr"], check=True)
    config = Config(name="t4", instances=instances, functions=functions)

    def function(name: str, module: str = "", **more: Any) -> Function:
        return Function(
            rootfs=str(root), kind="python", handler=f"{module}:{name}", directory="/srv", **more
        )

    async with Runtime(config) as runtime:
        await main(runtime, function)


def test_forks_count_as_instances(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        sleeps = function("main", "a_sleeps")
        assert value(await runtime.invoke(sleeps, 0)) == "served"
        requests = [runtime.invoke(sleeps, 1) for _ in range(8)]
        answers = await asyncio.gather(*requests, return_exceptions=True)
        refused = [str(answer) for answer in answers if isinstance(answer, Failed)]
        assert len(refused) == 6, "of three, the zygote is one"
        assert all("number of instances and sandboxes" in answer for answer in refused)
        assert value(await runtime.invoke(sleeps, 0)) == "served"

    on_host(lambda: on_small_runtime(root, Functions(), main, 3))


def test_warm_interpreters_are_as_few_as_functions_may_be(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        for number in range(6):
            odd = function("main", "a_sleeps", env={"N": str(number)}, memory=(64 + number) << 20)
            assert value(await runtime.invoke(odd, 0)) == "served"
            assert len(runtime._zygotes.values()) <= 2
        while len(runtime.running()) > 2 or len(runtime._zygotes._cgroup_pools) > 2:
            await asyncio.sleep(0.05)
        while runtime.running() or runtime._zygotes._cgroup_pools:
            await asyncio.sleep(0.05)
        assert value(await runtime.invoke(function("main", "a_sleeps"), 0)) == "served"

    functions = Functions(most=2, idle_seconds=1.0)
    on_host(lambda: on_small_runtime(root, functions, main, 40))
