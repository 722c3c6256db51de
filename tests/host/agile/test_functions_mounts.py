"""Volumes and secrets of registered functions: each start has them, of a version as it was made."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.support.busybox import make
from tests.support.lambda_host import boto, with_functions, zipped

from firstlight.agile.function import Volume
from firstlight.agile.functions import base
from firstlight.agile.functions.catalogue import Functions
from firstlight.agile.functions.errors import Invalid
from firstlight.agile.functions.mounts import Mounts
from firstlight.agile.functions.records import Code, DirectorySource, Settings, ZipSource
from firstlight.agile.functions.settings import merged
from firstlight.errors import Failed

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
OWNER = 12345
WORD = "correct horse battery staple"
LAMBDA = """
import os
def main(event, context):
    with open("/mnt/data/new", "a") as file:
        file.write("line\\n")
    options = [line.split()[5] for line in open("/proc/self/mountinfo")
               if line.split()[4] in ("/mnt/data", "/etc/settings")]
    return {"key": open("/run/secrets/key").read(), "file": open("/etc/settings").read(),
            "mode": oct(os.stat("/run/secrets/key").st_mode & 0o777), "options": options,
            "shown": [name for name, value in os.environ.items() if "horse" in value]}
"""


def shared(directory: Path) -> tuple[Path, Path, Path]:
    data, settings, key = directory / "data", directory / "settings", directory / "key"
    data.mkdir()
    os.chown(data, OWNER, OWNER)
    settings.write_text("colour = blue\n")
    key.write_text(WORD)
    key.chmod(0o600)
    return data, settings, key


async def answered(functions: Functions, name: str, qualifier: str = "") -> Any:
    answer, _ = await functions.invoke(name, b"{}", qualifier, request_id="r")
    assert answer.error is None, answer.payload
    return json.loads(answer.payload)


def test_each_start_of_a_version_has_its_volumes_and_secrets(tmp_path: Path) -> None:
    data, settings, key = shared(tmp_path)
    given = Settings(
        handler="app.main", timeout=30.0, secrets={"key": str(key)},
        volumes=(Volume(str(data), "/mnt/data"), Volume(str(settings), "/etc/settings", True)),
    )  # fmt: skip

    async def main(functions: Functions) -> None:
        source = ZipSource(data=zipped(app=LAMBDA))
        await functions.add("f", source, given)
        result = await answered(functions, "f")
        assert (result["key"], result["file"], result["mode"], result["shown"]) == (
            WORD, "colour = blue\n", "0o400", [])  # fmt: skip
        assert all("nosuid" in each and "nodev" in each for each in result["options"])
        assert sorted(each[:2] for each in result["options"]) == ["ro", "rw"]
        status = (data / "new").stat()
        assert (status.st_uid, status.st_gid) == (OWNER, OWNER)
        other = key.with_name("other")
        other.write_text("another")
        await functions.update("f", given=Settings(secrets={"key": str(other)}))
        assert (await answered(functions, "f"))["key"] == "another"
        assert (await answered(functions, "f", "1"))["key"] == WORD
        async with boto() as call:  # what is not set over HTTP stays as it is
            await call("update_function_configuration", FunctionName="f", Timeout=20)
            answer = await call("invoke", FunctionName="f")
            assert json.loads(answer["Payload"])["key"] == "another"
            shown = json.dumps(await call("get_function", FunctionName="f"), default=str)
            assert str(other) not in shown
        await functions.remove("f")
        roots = functions.config.directory / "roots"
        assert not [path for path in roots.iterdir() if path.name not in ("base", "skeleton")]

    with_functions(tmp_path / "store", main)


def test_mounts_reach_command_without_mount_points(tmp_path: Path) -> None:
    data, _, key = shared(tmp_path)
    root = make(tmp_path / "made")
    words = ("/bin/sh", "-c", "cat /run/secrets/key; echo > /deep/in/it/new")

    async def main(functions: Functions) -> None:
        given = Settings(command=words, secrets={"key": str(key)}, network="none",
                         volumes=(Volume(str(data), "/deep/in/it"),))  # fmt: skip
        await functions.add("f", DirectorySource(str(root), root=True), given)
        answer, _ = await functions.invoke("f", b"{}", request_id="r")
        assert (answer.error, answer.payload) == (None, WORD.encode())
        assert (data / "new").exists()

    with_functions(tmp_path / "store", main)


def test_what_cannot_be_mounted_is_refused_when_it_is_added(tmp_path: Path) -> None:
    data, settings, key = shared(tmp_path)
    of_root = tmp_path / "of root"
    of_root.mkdir()
    code = ZipSource(data=zipped(app=LAMBDA))

    async def main(functions: Functions) -> None:
        for wrong, words in (
            (Settings(volumes=(Volume(str(of_root), "/mnt/data"),)), "belongs to root"),
            (Settings(volumes=(Volume(str(data / "none"), "/mnt/data"),)), "No such file"),
            (
                Settings(volumes=(Volume(str(data), "/proc/x"),)),
                "no volume can be mounted at /proc/x",
            ),
            (Settings(volumes=(Volume(str(data), "/bin/x"),)), "or a link leads there"),
            (Settings(secrets={"../key": str(key)}), "cannot be a secret's name"),
            (Settings(secrets={"key": str(settings) + "x"}), "cannot be read"),
            (Settings(secrets={"key": str(key)}, handler="app:main"), "its handler runs in"),
        ):
            with pytest.raises((Invalid, Failed)) as error:
                await functions.add("f", code, merged(Settings(handler="app.main"), wrong))
            assert words in error.value.message, words
            assert functions.names() == []

    with_functions(tmp_path / "store", main)


def killed_in(owner: Any, name: str, work: Callable[[], object]) -> None:
    process = os.fork()
    if not process:
        try:
            setattr(owner, name, lambda *_: os._exit(9))
            work()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9


@pytest.mark.parametrize("name", ["_copy", "make_skeleton", "_open", "bound"])
def test_what_a_killed_manager_left_half_mounted_is_made_anew(tmp_path: Path, name: str) -> None:
    tree = tmp_path / "trees/1"
    tree.mkdir(parents=True)
    mounts = Mounts(
        tmp_path / "roots",
        cast("Any", SimpleNamespace(path=lambda number: tree.parent / str(number))),
    )
    code = Code(source="x", digest="", size=1, trees=(1,), base=True)

    def use() -> Path:
        mounts.open()
        return mounts.root(code)

    try:
        killed_in(base, name, use)
        root = use()
        assert (root / "var/runtime/awslambdaric").is_dir()
        assert (root / "usr/bin").is_dir()
        assert (root / "etc/hosts").exists()
        assert use() == root
        killed_in(base, "bound", lambda: mounts.root(code, ("/mnt/data/",)))
        assert (mounts.root(code, ("/mnt/data/",)) / "usr/bin").is_dir()
        mounts.keep([])
        assert sorted(path.name for path in (tmp_path / "roots").iterdir()) == ["base", "skeleton"]
    finally:
        mounts.close()
