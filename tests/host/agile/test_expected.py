"""What programs expect of where they run: names, files of /etc, a PATH, arguments of any bytes."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tests.support.agile_host import on_host, with_daemon
from tests.support.busybox import make, shell

from firstlight.agile import Config, Function, Runtime
from firstlight.agile.client import Client
from firstlight.agile.config import NetworkConfig
from firstlight.errors import Failed

Make = Callable[..., Function]
SHOW = "cat /etc/hosts; echo --; cat /etc/hostname; echo --; cat /etc/resolv.conf"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make(tmp_path)


async def output(runtime: Runtime, function: Function) -> str:
    async with await runtime.start(function) as instance:
        assert instance.stdout is not None
        text = (await instance.stdout.all()).decode(errors="surrogateescape")
        ended = await instance.wait()
        assert instance.stderr is not None
        assert ended.status == 0, (text, await instance.stderr.all())
        return text


def printed(*functions: Function, config: Config | None = None) -> list[str]:
    async def main() -> list[str]:
        async with Runtime(config or Config(name="t1")) as runtime:
            return [await output(runtime, function) for function in functions]

    return on_host(main)


def test_etc_files_are_present_and_root_unchanged(root: Path) -> None:
    for name in ("hosts", "resolv.conf"):
        (root / "etc" / name).write_text("the root's own\n")
    config = Config(name="t1", network=NetworkConfig(resolvers=("192.0.2.53",)))
    whole, alone = printed(
        shell(root, SHOW), shell(root, SHOW, network="none"), config=config
    )  # fmt: skip
    hosts, name, resolvers = whole.split("--\n")
    assert "127.0.0.1\tlocalhost\n" in hosts
    assert "\n10.213.0." in hosts
    assert hosts.endswith("\tinstance\n")
    assert name == "instance\n"
    assert resolvers.startswith("nameserver 192.0.2.53\n")
    hosts, _, resolvers = alone.split("--\n")
    assert hosts.endswith("127.0.1.1\tinstance\n")
    assert resolvers == ""
    assert (root / "etc/hosts").read_text() == "the root's own\n"
    assert not (root / "etc/hostname").exists()


def test_each_instance_has_its_own_address_beside_its_name(root: Path) -> None:
    async def main() -> None:
        async with Runtime(Config(name="t1")) as runtime:
            for _ in range(3):
                async with (
                    await runtime.start(shell(root, "cat /etc/hosts")) as first,
                    await runtime.start(shell(root, "cat /etc/hosts")) as other,
                ):
                    for instance in (first, other):
                        assert instance.stdout is not None
                        text = (await instance.stdout.all()).decode()
                        assert text.endswith(f"\n{instance.address}\tinstance\n")

    on_host(main)


def _no_etc(root: Path) -> str:
    (root / "etc").rmdir()
    return "ls /"


def _linked_out(root: Path) -> str:
    (root / "etc/hosts").symlink_to("/../../../../../etc/passwd")
    (root / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    (root / "etc/hostname").symlink_to("/proc/1/root/etc/hostname")
    return SHOW


def _etc_linked_inside(root: Path) -> str:
    (root / "etc").rmdir()
    (root / "usr/etc").mkdir(parents=True)
    (root / "etc").symlink_to("/usr/etc")
    return SHOW


def _etc_linked_out(root: Path) -> str:
    (root / "etc").rmdir()
    (root / "etc").symlink_to("../../../../../../../../etc")
    return "ls /"


def _directory_for_a_file(root: Path) -> str:
    (root / "etc/hosts").mkdir()
    (root / "etc/kept").write_text("kept\n")
    return SHOW + "; cat /etc/kept"


def _read_only(root: Path) -> str:
    for name in ("hosts", "hostname", "resolv.conf"):
        (root / "etc" / name).touch(0o000)
    return SHOW


@pytest.mark.parametrize(
    "odd",
    [_no_etc, _linked_out, _etc_linked_inside, _etc_linked_out, _directory_for_a_file, _read_only],
)
@pytest.mark.parametrize("waiting", [0, 1])
def test_an_odd_etc_gets_its_files_or_none_and_leads_nowhere(
    root: Path, odd: Callable[[Path], str], waiting: int
) -> None:
    text = odd(root)
    before = {path: path.read_bytes() for path in Path("/etc").glob("host*") if path.is_file()}

    async def main() -> str:
        async with Runtime(Config(name="t1")) as runtime:
            function = shell(root, text)
            await runtime.prepare(function, waiting)
            return await output(runtime, function)

    result = on_host(main)
    if "cat /etc/hosts" in text:
        assert "127.0.0.1\tlocalhost\n" in result
        assert "\tinstance\n--\ninstance\n--\n" in result
    if "kept" in text:
        assert result.endswith("kept\n")
    assert before == {path: path.read_bytes() for path in before}


def test_environment_defaults_to_user_of_root(root: Path) -> None:
    (root / "etc/passwd").write_text("bob:x:4242:4242::/home/bob:/bin/sh\nno such line\n")
    plain, bob, own = printed(
        Function(rootfs=str(root), command=("env",)),
        Function(rootfs=str(root), command=("env",), uid=4242, gid=4242),
        Function(rootfs=str(root), command=("env",), env={"PATH": "/bin", "HOME": "/x"}),
    )
    standard = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert sorted(plain.split()) == ["HOME=/tmp", "HOSTNAME=instance", standard]
    assert sorted(bob.split()) == [
        "HOME=/home/bob", "HOSTNAME=instance", "LOGNAME=bob", standard, "USER=bob"
    ]  # fmt: skip
    assert sorted(own.split()) == ["HOME=/x", "HOSTNAME=instance", "PATH=/bin"]


def test_a_relative_command_is_looked_up_as_a_shell_does(root: Path) -> None:
    (root / "srv").mkdir()
    (root / "srv/tool").write_text("#!/bin/sh\necho tool $0\n")
    (root / "srv/tool").chmod(0o755)
    bare, own, relative = printed(
        Function(rootfs=str(root), command=("printf", "%s", "hi")),
        Function(rootfs=str(root), command=("tool",), env={"PATH": "/none:/etc:/srv"}),
        Function(rootfs=str(root), command=("./tool",), directory="/srv"),
    )
    assert (bare, own, relative) == ("hi", "tool /srv/tool\n", "tool ./tool\n")


WORDS = ("", " ", "a\nb", "'\"$`\\", "\udcff\udc80", "é", "=", "-", "x" * (128 * 1024 - 1))


def test_arguments_and_variables_of_any_bytes_arrive(root: Path) -> None:
    text = 'for word; do printf "<%s>" "$word"; done; printf "<%s>" "$ODD"'
    expected = "".join(f"<{word}>" for word in (*WORDS, "\udcfe\n=é"))
    command = ("/bin/sh", "-c", text, "sh", *WORDS)
    function = Function(rootfs=str(root), command=command, env={"ODD": "\udcfe\n=é"})
    assert printed(function) == [expected]

    async def main(path: Path) -> None:  # and by JSON
        def start() -> bytes:
            reading, writing = os.pipe()
            with Client(path) as client, os.fdopen(reading, "rb") as pipe:
                null = os.open(os.devnull, os.O_RDWR)
                started = client.start(function, (null, writing, null))
                os.close(writing)
                os.close(null)
                assert [instance.function.command for instance in client.running()] in (
                    [],
                    [command],
                )
                read = pipe.read()
                assert client.wait(started.id).status == 0
                return read

        assert await asyncio.to_thread(start) == expected.encode(errors="surrogateescape")

    with_daemon(main)


def test_many_small_words_are_as_many_as_linux_allows(root: Path) -> None:
    many = ["x"] * 60_000
    text = "echo $#"
    function = Function(rootfs=str(root), command=("/bin/sh", "-c", text, "sh", *many))
    assert printed(function) == ["60000\n"]


def test_words_arrive_whether_they_are_copied_or_mapped(root: Path) -> None:
    """Up to FEW_WORDS of native/agile/sandbox_words.c they are copied."""
    sizes = [16384 - len("X=\0") + more for more in (-1, 0, 1)] + [16384, 70_000]
    script = shell(root, "echo ${#X}; case $X in *yz) echo whole;; esac")
    functions = [msgspec.structs.replace(script, env={"X": "z".rjust(size, "y")}) for size in sizes]
    assert printed(*functions) == [f"{size}\nwhole\n" for size in sizes]


def test_a_program_for_another_machine_is_named_as_such(root: Path) -> None:
    head = bytearray((root / "bin/busybox").read_bytes())
    head[18:20] = (40).to_bytes(2, "little")
    (root / "bin/other").write_bytes(head)
    (root / "bin/other").chmod(0o755)
    with pytest.raises(Failed, match=r"is a program for arm, and this machine is"):
        printed(Function(rootfs=str(root), command=("/bin/other",)))


def test_devices_that_programs_open_by_path(root: Path) -> None:
    text = """
    echo out >/dev/stdout; echo err >/dev/stderr 2>&1; cat </dev/stdin; ls /dev/fd >/dev/null &&
    ls -l /dev/tty | busybox cut -c1-10; (: </dev/tty) 2>&1 | busybox grep -c 'No such device'
    """
    [result] = printed(shell(root, text))
    assert result == "out\ncrw-rw-rw-\n1\n"


def test_resolvers_are_reachable_from_instances(root: Path, tmp_path: Path) -> None:
    """The host's file is another one in a mount namespace of the test's."""
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.53\nnameserver ::1\nsearch example.org\n")
    upstream = tmp_path / "upstream"
    upstream.write_text("nameserver 10.9.9.9\nnameserver fe80::1\n")
    script = tmp_path / "run.py"
    script.write_text(f"""
import asyncio, subprocess
from pathlib import Path
from firstlight.agile import Config, Function, Runtime
from firstlight.host import workspace
async def main():
    async with Runtime(Config(name="t1")) as runtime:
        function = Function(rootfs={str(root)!r}, command=("cat", "/etc/resolv.conf"))
        for _ in range(2):
            async with await runtime.start(function) as instance:
                print((await instance.stdout.all()).decode(), end="--", flush=True)
            rules = subprocess.run(["nft", "list", "set", "inet", "firstlight_t1", "resolvers"],
                                   capture_output=True, text=True, check=True).stdout
            print(rules.count("10.9.9.9"), rules.count("192.0.2.1"), end="--")
            Path({str(resolv)!r}).write_text("nameserver 192.0.2.1\\n")
            while runtime._instances._registry.number(1).version == 1:
                await asyncio.sleep(0)
with workspace.sandbox("test-resolvers"):
    for source, target in (({str(resolv)!r}, "/etc/resolv.conf"),
                           ({str(upstream)!r}, "/run/systemd/resolve/resolv.conf")):
        place = Path(target)
        if str(place).startswith("/run"):
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
            place.parent.mkdir(parents=True)
            place.touch()
        subprocess.run(["mount", "--bind", source, str(place.resolve())], check=True)
    asyncio.run(main())
""")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, reach, second, other, _ = done.stdout.split("--")
    assert first == "nameserver 10.9.9.9\nsearch example.org\n"
    assert (reach, second, other) == ("1 0", "nameserver 192.0.2.1\n", "0 1")


def test_terminals_of_its_own_are_there_for_who_asks(root: Path) -> None:
    text = "(exec 3<>/dev/ptmx) 2>/dev/null && ls /dev/pts || echo none"
    result = printed(shell(root, text, terminals=True), shell(root, text))
    assert result == ["ptmx\n", "none\n"]
