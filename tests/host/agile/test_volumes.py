"""Volumes and secrets: what instances see of the host and may do there, and who sees theirs."""

import json
import os
import stat
import subprocess
from pathlib import Path

import msgspec
import pytest
from tests.support.agile_host import on_host
from tests.support.busybox import make, shell

from firstlight.agile import Config, Function, Instance, Runtime
from firstlight.agile.function import Volume
from firstlight.errors import Failed

OWNER = 12345
WORD = "correct horse battery staple"
OPTIONS = "while read -r _ _ _ _ at options _; do echo $at $options; done < /proc/self/mountinfo"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = make(tmp_path)
    for name in ("data", "run/secrets", "etc/inner"):
        (made / name).mkdir(parents=True)
    (made / "link").symlink_to("data")
    (made / "data-file").touch()
    for name in ("touch", "chmod", "mknod", "stat", "grep"):
        (made / "bin" / name).symlink_to("busybox")
    return made


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    directory = tmp_path / "shared"
    directory.mkdir()
    (directory / "text").write_text("from the host\n")
    (directory / "out").symlink_to("/etc/host-only")
    (directory / "up").symlink_to("../../../../../../../../etc/passwd")
    for path in (directory, directory / "text"):
        os.chown(path, OWNER, OWNER)
    return directory


async def output_of(runtime: Runtime, function: Function) -> str:
    async with await runtime.start(function) as instance:
        assert instance.stdout
        assert instance.stderr
        return (await instance.stdout.all() + await instance.stderr.all()).decode()


def test_volume_is_writable_only_for_owner(root: Path, shared: Path) -> None:
    text = f"""cat /data/text; echo mine > /data/new; chmod 4755 /data/new
        stat -c %u /data/new /data/text; id -u; touch /x /etc/inner/x; mknod /data/null c 1 3
        cat /data/out /data/up; {OPTIONS}"""

    async def main() -> None:
        async with Runtime(Config(name="t1")) as runtime:
            (shared.parent / "relative").symlink_to("../" + shared.parent.name + "/shared")
            volume = Volume(f"{shared.parent}/relative/../relative", "/data")
            words = await output_of(runtime, shell(root, text, volumes=(volume,)))
            lines = words.splitlines()
            assert lines[0] == "from the host"
            assert lines[1] == lines[2] == lines[3] != "0"
            for refused in ("/x: Read-only", "/etc/inner/x: Read-only", "/data/null: Operation not",
                            "'/data/out': No such", "'/data/up': No such"):  # fmt: skip
                assert refused in words, words
            [options] = [line.split()[1] for line in lines if line.startswith("/data ")]
            assert {"rw", "nosuid", "nodev"} <= set(options.split(","))
        status = (shared / "new").stat()
        assert (status.st_uid, status.st_gid) == (OWNER, OWNER)
        assert (shared / "new").read_text() == "mine\n"

    on_host(main)


def test_a_read_only_volume_may_belong_to_root_and_be_a_file(
    root: Path, shared: Path, tmp_path: Path
) -> None:
    file = tmp_path / "a file"
    file.write_text("content\n")
    text = f"cat /data-file; echo more >> /data-file; {OPTIONS}"

    async def main() -> None:
        async with Runtime(Config(name="t1")) as runtime:
            volume = Volume(str(file), "/data-file", read_only=True)
            words = await output_of(runtime, shell(root, text, volumes=(volume,)))
            assert words.startswith("content\n")
            [options] = [line.split()[1] for line in words.splitlines()
                         if line.startswith("/data-file ")]  # fmt: skip
            assert {"ro", "nosuid", "nodev"} <= set(options.split(","))
            (shared / "inner").mkdir()
            (tmp_path / "other").mkdir()
            (tmp_path / "other/text").write_text("inside another\n")
            volumes = (
                Volume(str(tmp_path / "other"), "/data/inner", read_only=True),
                Volume(str(shared), "/data", read_only=True),
            )
            text_inside = shell(root, "cat /data/inner/text", volumes=volumes)
            assert await output_of(runtime, text_inside) == "inside another\n"
        assert file.read_text() == "content\n"
        assert not list(Path("/run/firstlight-agile/t1").glob("volumes/*"))

    on_host(main)


def test_a_volume_that_cannot_be_is_refused_by_name(root: Path, shared: Path) -> None:
    of_root = shared.parent / "of root"
    of_root.mkdir()
    (shared / "led").symlink_to(shared.parent)
    os.lchown(shared / "led", OWNER, OWNER)
    (shared.parent / "by root").symlink_to("shared/led")
    refused = {
        (str(shared / "led"), "/data"): f"{shared}/led is a link of user {OWNER}, who can",
        (str(shared / "led/shared"), "/data"): f"{shared}/led is a link of user",
        (str(shared.parent / "by root"), "/data"): f"{shared}/led is a link of user",
        (f"/proc/{os.getpid()}/root{shared}", "/data"): "leads to a process's files",
        (str(of_root), "/data"): "belongs to root",
        (str(shared), "/none"): "no /none to mount at",
        (str(shared), "/link"): "or a link leads there",
        (str(shared), "/link/deeper"): "or a link leads there",
        (str(shared), "/data-file"): "a directory for a directory",
        (str(shared / "none"), "/data"): "cannot be opened: No such file",
        (str(shared), "/tmp/x"): "no volume can be mounted at /tmp/x",
        (str(shared), "/"): "no volume can be mounted at /",
        (str(shared), "/proc"): "no volume can be mounted at /proc",
        (str(shared / "none"), "/etc/hosts"): "no volume can be mounted at /etc/hosts",
        (str(shared), "/data/../etc"): "by two plain paths",
        ("relative", "/data"): "by two plain paths",
        (str(shared), "data"): "by two plain paths",
    }

    async def main() -> None:
        async with Runtime(Config(name="t1")) as runtime:
            for (source, target), words in refused.items():
                function = shell(root, "true", volumes=(Volume(source, target),))
                with pytest.raises(Failed) as error:
                    await runtime.start(function)
                assert words in error.value.message + (error.value.hint or ""), (source, target)
            for more in ({"reuse": "sandbox"}, {"user_namespace": True}):
                with pytest.raises(Failed, match="volumes"):
                    await runtime.start(
                        shell(root, "true", volumes=(Volume(str(shared), "/data"),), **more)
                    )
            assert not runtime.running()

    on_host(main)


def test_only_its_instances_can_read_a_secret(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "word"
    file.write_text(WORD)
    file.chmod(0o600)
    text = """cat /run/secrets/key; echo; stat -c '%a %u' /run/secrets/key; id -u; env
        chmod 777 /run/secrets/key; touch /run/secrets/more; echo up; exec sleep 60"""

    async def main() -> None:
        async with Runtime(Config(name="t1")) as runtime:
            function = shell(root, text, secrets={"key": str(file)})
            async with await runtime.start(function) as instance:
                await _up(instance)
                words = (await output_of(runtime, msgspec.structs.replace(
                    function, command=("/bin/sh", "-c", text.replace("exec sleep 60", "")))
                )).splitlines()  # fmt: skip
                assert words[0] == WORD
                assert words[1] == f"400 {words[2]}"
                assert sum("Read-only file system" in line for line in words) == 2
                assert WORD not in "\n".join(words[1:])
                other = shell(root, "ls -l /run/secrets; cat /run/secrets/key")
                assert WORD not in await output_of(runtime, other)
                message = [*map(repr, runtime.running()), *map(repr, await runtime.events())]
                message += [Path(f"/proc/{instance.pid}/{name}").read_bytes().decode()
                         for name in ("cmdline", "environ")]  # fmt: skip
                message.append(json.dumps(msgspec.to_builtins(runtime.ended())))
                assert not [each for each in message if WORD in each]
                held = Path(f"/proc/{instance.pid}/root/run/secrets/key").stat()
                assert stat.S_IMODE(held.st_mode) == 0o400
            file.write_text("changed")
            changed = shell(root, "cat /run/secrets/key", secrets={"key": str(file)})
            assert await output_of(runtime, changed) == "changed"
        for line in Path("/proc/mounts").read_text().splitlines():
            assert "/run/secrets" not in line

    on_host(main)


def test_refused_secret_does_not_show_its_content(root: Path, tmp_path: Path) -> None:
    long = tmp_path / "long"
    long.write_text("x" * (1 << 17))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    link = tmp_path / "link"
    link.symlink_to("/etc/shadow")
    os.lchown(link, OWNER, OWNER)

    async def main() -> None:
        async with Runtime(Config(name="t1")) as runtime:
            for secrets, words in (
                ({"key": str(tmp_path / "none")}, "cannot be read from"),
                ({"key": str(long)}, "longer than 65536 bytes"),
                ({"key": str(fifo)}, "it is not a file"),
                ({"key": str(link)}, f"{link} is a link of user {OWNER}"),
                ({"key": "/dev/zero"}, "it is not a file"),
                ({"key": str(tmp_path)}, "cannot be read from"),
                ({"../key": str(long)}, "cannot be a secret's name"),
                ({"": str(long)}, "cannot be a secret's name"),
            ):
                with pytest.raises(Failed, match=words):
                    await runtime.start(shell(root, "true", secrets=secrets))

    on_host(main)


async def _up(instance: Instance) -> None:
    assert instance.stdout
    await instance.stdout.until(b"up")


def test_memory_volume_is_not_charged_to_later_instances(root: Path) -> None:
    """It stays charged to the cgroup of who wrote it, and cgroups serve again."""

    async def main() -> None:
        kept = Path("/run/kept")
        kept.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", kept], check=True)
        os.chown(kept, OWNER, OWNER)
        volume = Volume(str(kept), "/data")
        writes = shell(
            root, "busybox head -c 32000000 /dev/zero > /data/$$.$NAME",
            memory=64 << 20, volumes=(volume,),
        )  # fmt: skip
        small = shell(root, "echo fits", memory=16 << 20)
        async with Runtime(Config(name="t1")) as runtime:
            for name in "abc":
                named = msgspec.structs.replace(writes, env={**writes.env, "NAME": name})
                assert await output_of(runtime, named) == ""
            assert sum(each.stat().st_size for each in kept.iterdir()) == 96_000_000
            for _ in range(24):
                assert await output_of(runtime, small) == "fits\n"
        subprocess.run(["umount", kept], check=True)
        kept.rmdir()

    on_host(main)
