"""The registry of functions: what it keeps, what it refuses, and what is seen while it changes."""

import asyncio
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tests.support.agile_host import on_host, serve
from tests.support.lambda_host import (
    GUARD_SECONDS,
    configuration,
    functions,
    with_functions,
    zipped,
)

from firstlight.agile.functions import errors
from firstlight.agile.functions.catalogue import Functions
from firstlight.agile.functions.records import (
    DirectorySource,
    ModuleSource,
    Settings,
    Source,
    ZipSource,
)
from firstlight.agile.parts import roots
from firstlight.errors import Failed

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
SLOW = Settings(handler="app:main", network="none", timeout=60.0)
WAITS = """
import time
def main(event):
    while event and not __import__("os").path.exists("/tmp/never"):
        time.sleep(event)
        return WORD
    return WORD
"""

_MODULE = bytes.fromhex(
    "0061736d0100000001060160017f017f03020100070801046e65787400000a09010700200041016a0b"
)  # (module (func (export "next") (param i32) (result i32) local.get 0 i32.const 1 i32.add))


async def called(
    functions: Functions, name: str, event: object = None, qualifier: str = ""
) -> object:
    answer, _ = await functions.invoke(name, json.dumps(event).encode(), qualifier, request_id="r")
    assert answer.error is None, answer.payload
    return json.loads(answer.payload)


def says(word: str) -> ZipSource:
    return ZipSource(data=zipped(app=f"WORD = {word!r}\n{WAITS}"))


def made(write: Callable[[zipfile.ZipFile], None]) -> ZipSource:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        write(archive)
    return ZipSource(data=written.getvalue())


def special(mode: int) -> zipfile.ZipInfo:
    result = zipfile.ZipInfo("it")
    result.create_system, result.external_attr = 3, mode << 16
    return result


def bomb(archive: zipfile.ZipFile) -> None:
    with archive.open("x", "w") as file:
        for _ in range(251):
            file.write(bytes(1 << 20))


ZIPS: dict[str, tuple[Callable[[], ZipSource], type[Failed]]] = {
    "not a zip file": (lambda: ZipSource(data=b"PK nonsense"), errors.NotAnArchive),
    "nothing at all": (lambda: ZipSource(path="/dev/null"), errors.NotAnArchive),
    "a path that climbs out": (
        lambda: made(lambda z: z.writestr("../x", "x")), errors.ClimbsOut),
    "Windows' path that climbs": (
        lambda: made(lambda z: z.writestr("a\\..\\..\\x", "")), errors.ClimbsOut),
    "a device node": (
        lambda: made(lambda z: z.writestr(special(stat.S_IFBLK), b"")), errors.DeviceNode),
    "a bomb": (lambda: made(bomb), errors.Bomb),
    "a cut file": (
        lambda: ZipSource(data=zipped(app="x = 1" * 1000)[:-40]), errors.NotAnArchive),
}  # fmt: skip


def test_create_refuses_bad_zip_and_leaves_nothing(tmp_path: Path) -> None:
    async def main(functions: Functions) -> None:
        await functions.add("f", says("old"), SLOW)
        trees = sorted((functions.directory / "trees").iterdir())
        for what, (make, kind) in ZIPS.items():
            with pytest.raises(kind) as error:
                await functions.update("f", make())
            assert isinstance(error.value, kind), what
            assert sorted((functions.directory / "trees").iterdir()) == trees, what
            assert not list((functions.directory / "work").iterdir())
        assert await called(functions, "f") == "old"
        assert functions.get("f").published == 1

    with_functions(tmp_path, main)


def test_removed_version_finishes_its_requests(tmp_path: Path) -> None:
    async def main(functions: Functions) -> None:
        await functions.add("f", says("old"), SLOW)
        begun = asyncio.ensure_future(called(functions, "f", 1.5))
        while not functions.running("f"):
            await asyncio.sleep(0.01)
        await functions.update("f", says("new"))
        assert await called(functions, "f") == "new"
        await functions.remove("f", "1")
        trees = list((functions.directory / "trees").iterdir())
        assert len(trees) == 2 or begun.done()  # on a slow machine
        assert await begun == "old"
        assert len(list((functions.directory / "trees").iterdir())) == 1
        begun = asyncio.ensure_future(called(functions, "f", 1.5))
        while not functions.running("f"):
            await asyncio.sleep(0.01)
        await functions.remove("f")
        with pytest.raises(errors.NotFound):
            await called(functions, "f")
        assert await begun == "new"
        assert not list((functions.directory / "trees").iterdir())

    with_functions(tmp_path, main)


def test_a_directory_cannot_change_underneath(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "app.py").write_text("def main(event):\n    return 'old'\n")
    (source / "link").symlink_to("/etc/passwd")

    async def main(functions: Functions) -> None:
        await functions.add("f", DirectorySource(str(source)), SLOW)
        (source / "app.py").write_text("def main(event):\n    return 'new'\n")
        assert await called(functions, "f") == "old"
        await functions.update("f", DirectorySource(str(source)))
        assert await called(functions, "f") == "new"
        assert await called(functions, "f", qualifier="1") == "old"

    with_functions(tmp_path / "store", main)


def test_an_update_without_a_change_makes_no_version(tmp_path: Path) -> None:
    source, moved = tmp_path / "source", tmp_path / "moved"
    source.mkdir()
    (source / "app.py").write_text("def main(event):\n    return 'old'\n")
    shutil.copytree(source, moved)

    async def main(functions: Functions) -> None:
        given = msgspec.structs.replace(SLOW, environment={"A": "1", "B": "2"})
        code = DirectorySource(str(source))
        first = await functions.add("f", code, given)
        same = Settings(timeout=60.0, environment={"B": "2", "A": "1"})
        for again in ((None, Settings()), (code, Settings()), (None, same),
                      (DirectorySource(str(moved)), given)):  # fmt: skip
            for publish in (True, False):
                assert await functions.update("f", *again, publish=publish) == first, again
        assert functions.get("f") == first
        assert len(list((functions.directory / "trees").iterdir())) == 1
        await functions.update("f", given=Settings(description="new"))
        assert functions.get("f").published == 2
        changed = await functions.update("f", given=Settings(timeout=59.0), publish=False)
        assert changed.published == 2
        assert (await functions.update("f", code)).published == 3  # it was not published yet
        assert (await functions.update("f", code)).published == 3
        await functions.remove("f", "3")
        assert (await functions.update("f", code)).published == 4
        with pytest.raises(errors.Changed):
            await functions.update("f", expected=77)

    with_functions(tmp_path / "store", main)


def test_the_command_line_says_that_an_update_changed_nothing(tmp_path: Path) -> None:
    file, code = tmp_path / "runtime.toml", tmp_path / "hello.py"
    config = configuration(tmp_path / "store")
    file.write_text(f'name = "{config.name}"\nstore = "{config.store}"\n')
    code.write_text("def main(event):\n    return event\n")

    async def cli(verb: str, *words: str) -> tuple[str, str]:
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("firstlight"), "agile", "function", verb, "hello",
            *words, "--config", file, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        assert process.returncode == 0, err
        return out.decode(), err.decode()

    async def main() -> None:
        process = await serve(msgspec.structs.replace(config, http=None))
        try:
            given = ("--handler", f"{code}:main", "--network", "none")
            assert await cli("add", *given) == ("hello version 1\n", "")
            for words in ((), given):
                out, err = await cli("update", *words)
                assert (out, "no new version" in err) == ("hello version 1\n", True)
            assert await cli("update", "--memory", "64M") == ("hello version 2\n", "")
        finally:
            process.terminate()
            async with asyncio.timeout(60):
                await process.wait()

    on_host(main, GUARD_SECONDS)


def test_restart_keeps_functions_and_drops_partial_ones(tmp_path: Path) -> None:
    async def main() -> None:
        config = configuration(tmp_path)
        async with functions(config) as before:
            await before.add("f", says("one"), SLOW)
            await before.update("f", says("two"))
            await before.set_alias("f", "live", "1")
            await before.reserve("f", 7)
        (before.directory / "trees/99/deep").mkdir(parents=True)
        (before.directory / "work/half").mkdir()
        async with functions(config) as after:
            assert after.get("f") == before.get("f")
            assert await called(after, "f", qualifier="live") == "one"
            assert await called(after, "f") == "two"
            assert not (after.directory / "trees/99").exists()
            assert not list((after.directory / "work").iterdir())
            with pytest.raises(Failed, match="another runtime uses the store"):
                await Functions(after._runtime, after._serving).__aenter__()
            await after.update("f", says("three"))
            assert after.get("f").published == 3
        assert not [
            line for line in Path("/proc/mounts").read_text().splitlines() if "/roots" in line
        ]

    on_host(main, GUARD_SECONDS)


FAILS = """
import os, sys, time
print("imported", end="")
def main(event):
    print("asked for", event, end="")
    if event == "raise":
        raise LookupError("no such cow")
    if event == "silent":
        raise ValueError
    if event == "stop":
        sys.exit(3)
    if event == "leave":
        os._exit(7)
    if event == "eat":
        return len(b"x" * (1 << 30))
    if event == "hang":
        time.sleep(600)
    if event == "write":
        return "x" * (7 << 20)
    return {1} if event == "set" else [os.environ[name] for name in ("PATH", "HOME", "HOSTNAME")]
async def later(event):
    return event
"""


def test_fork_failure_has_error_and_log(tmp_path: Path) -> None:
    async def main(functions: Functions) -> None:
        await functions.add("f", ZipSource(data=zipped(app=FAILS)), SLOW)
        assert await called(functions, "f") == [roots.PATH, "/tmp", "instance"]
        assert [each.function.name for each in functions._runtime.running()] == ["f"]
        for event, kind, words, cause in (
            ("raise", "LookupError", "no such cow", "handler"),
            ("stop", "Runtime.ExitError", "sys.exit(3)", "exit"),
            ("silent", "ValueError", "", "handler"),
            ("leave", "Runtime.ExitError", "ended without an answer", "exit"),
            ("eat", "Runtime.OutOfMemory", "limit of 128 MiB: asked for eat", "memory"),
            ("set", "Runtime.MarshalError", "not JSON serializable", "handler"),
            ("write", "Function.ResponseSizeTooLarge", "6291456 bytes", "size"),
            ("hang", "Sandbox.Timedout", "Task timed out after 3.00 seconds", "timeout"),
        ):
            if event == "hang":
                await functions.update("f", given=Settings(timeout=3.0))
            answer, _ = await functions.invoke("f", json.dumps(event).encode(), request_id="r")
            error = json.loads(answer.payload)
            assert (error["errorType"], answer.cause) == (kind, cause)
            assert words in error["errorMessage"]
            assert ("stackTrace" in error) == (event in ("raise", "silent"))
            assert error["errorMessage"].endswith(": asked for leave") == (event == "leave")
            assert answer.log_tail == f"asked for {event}".encode()
        answer, _ = await functions.invoke("f", b'["\\ud83d",\n1e400]', request_id="r")
        assert answer.log_tail == rb"asked for ['\ud83d', inf]"
        dies = zipped(app="import os\nprint('my last words')\nos._exit(5)\n")
        await functions.add("dies", ZipSource(data=dies), SLOW)
        answer, _ = await functions.invoke("dies", b"{}", request_id="r")
        assert b"ended the interpreter: exit status 5: my last words" in answer.payload
        assert answer.log_tail == b"my last words"
        given = msgspec.structs.replace(SLOW, handler="app:later")
        with pytest.raises(Failed, match="later is asynchronous"):
            await functions.add("g", ZipSource(data=zipped(app=FAILS)), given, tries=True)

    with_functions(tmp_path, main)


def test_impossible_aliases_versions_limits_are_refused(tmp_path: Path) -> None:
    async def main(functions: Functions) -> None:
        await functions.add("f", says("one"), SLOW)
        await functions.set_alias("f", "live", "1")
        for refused, kind in (
            (functions.add("f", says("x"), SLOW), errors.Conflict),
            (functions.add("no name", says("x"), SLOW), errors.Invalid),
            (functions.add("g", says("x"), Settings()), errors.Invalid),
            (functions.add("g", says("x"), Settings(kind="command", command=("/none",))), Failed),
            (functions.add("g", says("x"), Settings(handler="a:b", memory=1)), Failed),
            (functions.add("g", says("x"), Settings(handler="a:b", timeout=-1.0)), errors.Invalid),
            (functions.update("none", says("x")), errors.NotFound),
            (functions.update("f", says("x"), expected=77), errors.Changed),
            (functions.set_alias("f", "live", "2"), errors.NotFound),
            (functions.set_alias("f", "12", "1"), errors.Invalid),
            (functions.set_alias("f", "live", "1", new=True), errors.Conflict),
            (functions.remove("f", "1"), errors.Conflict),
            (functions.remove("f", "$LATEST"), errors.Invalid),
            (functions.reserve("f", -1), errors.Invalid),
        ):
            with pytest.raises(kind):
                await refused
        assert functions.names() == ["f"]
        assert list(functions.get("f").revisions) == ["$LATEST", "1"]
        assert len(list((functions.directory / "trees").iterdir())) == 1

    with_functions(tmp_path, main)


TRIED: dict[str, tuple[str, str]] = {
    "app:nope": ("def main(event): ...", "has no attribute 'nope'"),
    "app.nope": ("def main(event, context): ...", "has no attribute 'nope'"),
    "app:main": ("def main(event): return 1 +", "SyntaxError"),
    "app:lambda_handler": (
        "def lambda_handler(event, context): ...", "Handler app.lambda_handler is called with"),
    "none:main": ("def main(event): ...", "No module named 'none'"),
    "app:WORD": ("WORD = 'main'", "is not callable"),
    "app.main": ("import none_such", "No module named 'none_such'"),
    "app:exits": ("raise SystemExit(3)", "SystemExit"),
}  # fmt: skip


def test_create_refuses_uncallable_handler(
    tmp_path: Path,
) -> None:
    async def main(functions: Functions) -> None:
        await functions.add("f", says("old"), SLOW, tries=True)
        for handler, (text, words) in TRIED.items():
            source: Source = ZipSource(data=zipped(app=text))
            given = msgspec.structs.replace(SLOW, handler=handler)
            with pytest.raises(Failed) as error:
                await functions.update("f", source, given, tries=True)
            assert f"cannot import {handler}" in error.value.message
            assert words in error.value.message
        nested = ZipSource(data=zipped(**{"project/app": "def main(event): return 1"}))
        with pytest.raises(Failed) as error:
            await functions.add("g", nested, Settings(handler="app:main"), tries=True)
        missing = "ModuleNotFoundError: No module named 'app'"
        assert error.value.message == f"cannot import app:main: {missing}"
        assert error.value.hint == "/var/task has 'project'"
        with pytest.raises(Failed, match="cannot import"):
            await functions.add("g", source, given, tries=True)
        module = tmp_path / "sum.wasm"
        module.write_bytes(_MODULE)
        source, given = ModuleSource(str(module)), Settings(handler="nope")
        with pytest.raises(Failed, match="exports no 'nope'"):
            await functions.add("g", source, given, tries=True)
        assert functions.names() == ["f"]
        assert functions.get("f").published == 1
        assert await called(functions, "f") == "old"
        await functions.add("w", source, Settings(handler="next"), tries=True)
        assert await called(functions, "w", [41]) == 42
        running = [instance.function.handler for instance in functions._runtime.running()]
        assert running == ["app:main", "next"]

    with_functions(tmp_path / "store", main)
