"""Imports that write, fail, die, or leave what forks cannot have: each is told at once, by name."""

import signal
from pathlib import Path

import pytest
from tests.support.python_functions import Make, python_root, value, with_handlers

from firstlight.agile import Runtime
from firstlight.errors import Failed

END = "\ndef main(event): return 'loaded'\n"
TALKS = {
    "out": "print('x' * 200_000)",
    "err": "import sys; sys.stderr.write('x' * 200_000)",
    "both": "import os\nfor _ in range(99): os.write(1, b'x' * 9999); os.write(2, b'y' * 9999)",
}
DIES = {
    "exits": ("import os; os.write(2, b'my last words'); os._exit(3)",
              "exit status 3: my last words"),
    "faults": ("import ctypes, os; os.write(2, b'my last words'); ctypes.string_at(0)",
               "killed by SIGSEGV: my last words"),
    "aborts": ("import os; os.write(2, b'my last words'); os.abort()", "killed by SIG"),
    "stops": ("import sys; print('my last words', flush=True); sys.exit(4)", "SystemExit: 4"),
    "long": ("print('my last words', flush=True); raise ValueError('y' * 500_000)", "yyyy"),
    "eats": ("kept = [bytearray(1 << 20) for _ in range(500)]", "exceeded the memory limit"),
    "garbles": ("import os; os.write(3, b'nonsense'); os._exit(0)", "violates the protocol"),
    "closes": ("import os, time; os.close(3); time.sleep(0.1); os._exit(0)", "exit status 0"),
}  # fmt: skip
LEAVES = {
    "thread": ("import threading, time\n"
               "threading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
               "threads running"),
    "child": ("import subprocess; subprocess.Popen(['sleep', '99'])",
              "processes running: (sleep|python3)"),
    "orphan": ("import os, time\nif os.fork() == 0:\n  if os.fork() == 0: time.sleep(99)\n"
               "  os._exit(0)\nos.wait()", "processes running: python3"),
    "mmap": ("import mmap; M = mmap.mmap(-1, 4096)", "/dev/zero"),
    "value": ("import multiprocessing; V = multiprocessing.Value('i')", "shared memory"),
    "lock": ("import multiprocessing; L = multiprocessing.Lock()", "shared memory.*sem"),
    "block": ("from multiprocessing import shared_memory as s\n"
              "B = s.SharedMemory(create=True, size=64)", "shared memory|processes running"),
    "loop": ("import asyncio; L = asyncio.new_event_loop()", "what a fork.*eventpoll"),
    "file": ("F = open(__file__)", "what a fork.*app_file.py"),
    "socket": ("import socket; S = socket.socket()", "what a fork.*socket:"),
    "memory": ("import os; M = os.memfd_create('secret')", "/memfd:secret"),
    "segment": ("import ctypes; c = ctypes.CDLL(None); c.shmat.restype = ctypes.c_void_p\n"
                "A = c.shmat(c.shmget(0, 4096, 0o1600), None, 0)", "SYSV"),
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system with these modules."""
    # "app_": not the name of a module of Python's own.
    texts = {**TALKS, **{name: text for name, (text, _) in (DIES | LEAVES).items()}, "plain": ""}
    modules = {f"app_{name}": text + END for name, text in texts.items()}
    return python_root(tmp_path_factory.mktemp("import"), modules)


def test_an_import_that_writes_more_than_a_pipe_holds_is_served(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        for module in TALKS:
            request = function("main", f"app_{module}", timeout=20.0)
            assert value(await runtime.invoke(request, 1)) == "loaded"

    with_handlers(root, main)


def test_dead_interpreter_is_reported_with_output(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        for module, (text, expected) in DIES.items():
            with pytest.raises(Failed) as caught:
                await runtime.invoke(function("main", f"app_{module}", memory=64 << 20), 1)
            assert expected in caught.value.message
            if "my last words" in text:
                assert "my last words" in (caught.value.hint or "")
            assert len(caught.value.message) < 1 << 17

    with_handlers(root, main)


def test_import_error_names_unreadable_directory(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        with pytest.raises(Failed, match="may not execute /usr/bin/python3, or not enter /srv"):
            await runtime.invoke(function("main", "app_plain"), 1)

    (root / "srv").chmod(0o700)
    try:
        with_handlers(root, main)
    finally:
        (root / "srv").chmod(0o755)


def test_what_an_import_may_not_leave_is_refused_by_name(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        for module, (_, expected) in LEAVES.items():
            with pytest.raises(Failed, match=f"importing app_{module}:main left .*({expected})"):
                await runtime.invoke(function("main", f"app_{module}"), 1)

    with_handlers(root, main)


def test_a_fork_has_the_signal_handlers_of_the_import(root: Path) -> None:
    (root / "srv/signals.py").write_text(
        "import os, signal, time\nGOT = []\n"
        "for each in (signal.SIGALRM, signal.SIGCHLD):\n"
        "    signal.signal(each, lambda number, _: GOT.append(number))\n"
        "def main(event):\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0.01)\n"
        "    if os.fork() == 0:\n        os._exit(0)\n"
        "    while len(GOT) < 2:\n        time.sleep(0.001)\n"
        "    return sorted(GOT)\n"
    )

    async def main(runtime: Runtime, function: Make) -> None:
        answer = value(await runtime.invoke(function("main", "signals"), 1))
        assert answer == [signal.SIGALRM, signal.SIGCHLD]

    with_handlers(root, main)


def test_an_interpreter_needs_no_ctypes(root: Path) -> None:
    hide = "for f in usr/lib/python3*/lib-dynload/_ctypes*.so; do mount --bind /dev/null $f; done"
    (root / "srv/bare.py").write_text(
        "try:\n    import ctypes\nexcept ImportError as e: said = str(e)\n"
        "def main(event): return said\n"
    )

    async def main(runtime: Runtime, function: Make) -> None:
        assert "_ctypes" in value(await runtime.invoke(function("main", "bare"), 1))

    with_handlers(root, main, host=hide)


def test_a_library_that_the_interpreter_lacks_is_reported(root: Path) -> None:
    """The interpreter of this root lacks a library of its own: the loader says which."""
    hide = "for f in usr/lib/*/libexpat.so.1; do mount --bind /dev/null $f; done"

    async def main(runtime: Runtime, function: Make) -> None:
        with pytest.raises(Failed) as caught:
            await runtime.invoke(function("main", "app_plain"), 1)
        assert "ended the interpreter: exit status 127" in caught.value.message
        assert "libexpat" in (caught.value.hint or "")

    with_handlers(root, main, host=hide)


def test_forbidden_user_namespaces_are_named(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "most").write_text("0\n")
    monkeypatch.setattr("firstlight.agile.python.interpreter.USER_NAMESPACES", tmp_path / "most")

    async def main(runtime: Runtime, function: Make) -> None:
        with pytest.raises(Exception, match=r"user\.max_user_namespaces is 0"):
            await runtime.invoke(function("main", "app_plain"), 1)

    with_handlers(root, main)
