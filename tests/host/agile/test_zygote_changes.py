"""Files that change under a Python function: the next event is answered by the new ones."""

import asyncio
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.agile_host import on_host
from tests.support.python_functions import Make, python_root, value, with_handlers

from firstlight.agile import Config, Function, Runtime
from firstlight.agile.python import interpreter
from firstlight.errors import Failed

HANDLERS = """
import beside, package.inner
try:
    import optional
except ImportError:
    optional = None
MINE = 1
def main(event):
    return [MINE, beside.VALUE, package.inner.VALUE, optional and optional.VALUE]
def slow(event):
    import time
    time.sleep(event)
    return MINE
"""
MODULES = {"handlers": HANDLERS, "beside": "VALUE = 1\n"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root file system with a handler, and modules of each kind."""
    root = python_root(tmp_path, MODULES)
    (root / "srv/package").mkdir()
    (root / "srv/package/__init__.py").touch()
    (root / "srv/package/inner.py").write_text("VALUE = 1\n")
    return root


def rewrite(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def by_rename(path: Path) -> None:
    other = path.with_name("new")
    other.write_text("VALUE = 2\n")
    other.rename(path)


def swap_directory(srv: Path) -> None:
    shutil.copytree(srv / "package", srv / "other")
    rewrite(srv / "other/inner.py", "1", "2")
    (srv / "package").rename(srv / "old")
    (srv / "other").rename(srv / "package")


def switch_link(srv: Path) -> None:
    """beside.py becomes a link, and is then switched."""
    (srv / "releases").mkdir()
    (srv / "releases/2.py").write_text("VALUE = 2\n")
    (srv / "beside.py").unlink()
    (srv / "beside.py").symlink_to("releases/2.py")


CHANGES: dict[str, tuple[Callable[[Path], object], list[object]]] = {
    "its own file": (lambda srv: rewrite(srv / "handlers.py", "= 1", "= 2"), [2, 1, 1, None]),
    "a module beside it": (lambda srv: rewrite(srv / "beside.py", "1", "2"), [1, 2, 1, None]),
    "a module by rename": (lambda srv: by_rename(srv / "beside.py"), [1, 2, 1, None]),
    "a module in a package": (
        lambda srv: rewrite(srv / "package/inner.py", "1", "2"), [1, 1, 2, None]
    ),
    "a package by rename": (swap_directory, [1, 1, 2, None]),
    "a link": (switch_link, [1, 2, 1, None]),
    "a module that was not there": (
        lambda srv: (srv / "optional.py").write_text("VALUE = 2\n"), [1, 1, 1, 2]
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_served_by_the_next_event(root: Path, what: str) -> None:
    change, expected = CHANGES[what]

    async def main(runtime: Runtime, function: Make) -> None:
        handler = function("main")
        assert value(await runtime.invoke(handler, 0)) == [1, 1, 1, None]
        change(root / "srv")
        assert value(await runtime.invoke(handler, 0)) == expected

    with_handlers(root, main)


def test_compiled_code_without_its_source_is_noticed(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        subprocess.run(
            ["/usr/bin/python3", "-m", "compileall", "-qfb", root / "srv/beside.py"], check=True
        )
        (root / "srv/beside.py").rename(root / "srv/beside.txt")
        handler = function("main")
        assert value(await runtime.invoke(handler, 0)) == [1, 1, 1, None]
        rewrite(root / "srv/beside.txt", "1", "2")
        (root / "srv/beside.txt").rename(root / "srv/beside.py")
        subprocess.run(
            ["/usr/bin/python3", "-m", "compileall", "-qfb", root / "srv/beside.py"], check=True
        )
        (root / "srv/beside.py").unlink()
        assert value(await runtime.invoke(handler, 0)) == [1, 2, 1, None]

    with_handlers(root, main)


def test_another_interpreter_and_another_root_are_noticed(root: Path, tmp_path: Path) -> None:
    """The root file system is a link that is switched; then its Python is replaced."""
    other = tmp_path / "other"
    shutil.copytree(root, other, symlinks=True)
    rewrite(other / "srv/handlers.py", "MINE = 1", "MINE = 2")
    link = tmp_path / "current"
    link.symlink_to(root)

    async def main() -> None:
        for tree in (root, other):
            subprocess.run(["mount", "--bind", "/usr", tree / "usr"], check=True)
        handler = Function(
            rootfs=str(link), kind="python", handler="handlers:main", directory="/srv"
        )
        async with Runtime(Config(name="t4")) as runtime:
            assert value(await runtime.invoke(handler, 0))[0] == 1
            link.unlink()
            link.symlink_to(other)
            assert value(await runtime.invoke(handler, 0))[0] == 2
            [before] = [zygote.pid for zygote in runtime._zygotes.values()]
            python = other / "usr/bin/python3"
            copied = tmp_path / "python3"
            shutil.copy(python.resolve(), copied)
            subprocess.run(["mount", "--bind", copied, python.resolve()], check=True)
            while [zygote.pid for zygote in runtime._zygotes.values()] == [before]:
                assert value(await runtime.invoke(handler, 0))[0] == 2

    on_host(main)


def test_a_handler_at_work_ends_in_the_version_that_it_began_in(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        slow, handler = function("slow"), function("main")
        working = asyncio.ensure_future(runtime.invoke(slow, 2))
        assert value(await runtime.invoke(slow, 0)) == 1
        rewrite(root / "srv/handlers.py", "= 1", "= 2")
        assert value(await runtime.invoke(slow, 0)) == 2
        assert value(await working) == 1
        assert value(await runtime.invoke(handler, 0))[0] == 2

    with_handlers(root, main)


def test_what_is_no_module_makes_no_new_version(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        handler = function("main")
        await runtime.invoke(handler, 0)
        [before] = [zygote.pid for zygote in runtime._zygotes.values()]
        (root / "srv/data.txt").write_text("data")
        (root / "data-1").mkdir()
        os.utime(root / "srv")
        await runtime.invoke(handler, 0)
        assert [zygote.pid for zygote in runtime._zygotes.values()] == [before]

    with_handlers(root, main)


def test_files_that_change_while_they_are_imported_are_refused(root: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            os.utime(root / "srv/beside.py")
            time.sleep(0.001)

    async def main(runtime: Runtime, function: Make) -> None:
        writer = threading.Thread(target=write)
        writer.start()
        try:
            with pytest.raises(Failed, match=r"change while it is imported: .*beside\.py"):
                await runtime.invoke(function("main"), 0)
        finally:
            stop.set()
            writer.join()
        assert value(await runtime.invoke(function("main"), 0))[0] == 1

    with_handlers(root, main)


def test_files_of_a_clock_that_was_ahead_are_imported(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's clock has been set back since they were written."""
    monkeypatch.setattr(interpreter, "clock", lambda: 0)

    async def main(runtime: Runtime, function: Make) -> None:
        assert value(await runtime.invoke(function("main"), 0))[0] == 1

    with_handlers(root, main)


def test_what_nobody_calls_is_forgotten(root: Path) -> None:
    async def main() -> None:
        subprocess.run(["mount", "--bind", "/usr", root / "usr"], check=True)
        config = Config(name="t4")
        config = Config(name="t4", functions=type(config.functions)(idle_seconds=0.2))
        handler = Function(
            rootfs=str(root), kind="python", handler="handlers:main", directory="/srv"
        )
        async with Runtime(config) as runtime:
            await runtime.invoke(handler, 0)
            while runtime._zygotes.values() or runtime.running():
                await asyncio.sleep(0.01)
            assert value(await runtime.invoke(handler, 0))[0] == 1

    on_host(main)
