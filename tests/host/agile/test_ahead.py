"""What is done ahead of requests, and what a request does where it was left to it."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.agile_host import on_host

from firstlight.agile import Config, Function, Runtime, seccomp
from firstlight.agile.config import Ahead
from firstlight.errors import Failed

Make = Callable[..., Function]
GATEWAY = "10.213.0.1"


def neighbours(pid: int) -> str:
    return subprocess.run(
        ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "neighbour"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip


@pytest.mark.parametrize("preset", [True, False])
def test_the_gateway_is_known_before_the_first_packet_or_asked_for(
    function: Make, preset: bool
) -> None:
    async def main() -> None:
        config = Config(name="t8", ahead=Ahead(neighbours=preset))
        async with Runtime(config) as runtime:
            async with await runtime.start(function("hold", "99")) as instance:
                assert (GATEWAY in neighbours(instance.pid)) is preset
            async with await runtime.start(function("ping", GATEWAY)) as instance:
                assert instance.stdout
                assert await instance.stdout.all() == b"answered\n"

    on_host(main)


@pytest.mark.parametrize("once", [True, False])
def test_a_root_is_mounted_once_or_for_each_instance(escape: Path, once: bool) -> None:
    """What is mounted on it after the first start, only a root of an instance's own has."""
    root = escape.parent / f"root-{once}"
    shutil.copytree(escape, root)
    function = Function(rootfs=str(root), command=("/bin/escape", "hold", "0"))

    async def main() -> None:
        async with Runtime(Config(name="t8", ahead=Ahead(root=once))) as runtime:
            async with await runtime.start(function):
                pass
            subprocess.run(["mount", "-t", "tmpfs", "none", root / "bin"], check=True)
            if once:
                async with await runtime.start(function):
                    pass
            else:
                with pytest.raises(Failed, match="no /bin/escape"):
                    await runtime.start(function)

    on_host(main)


@pytest.mark.parametrize("once", [True, False])
def test_a_profile_is_compiled_once_or_for_each_instance(
    function: Make, once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    compile_profile = seccomp.program

    def counted(extra: tuple[str, ...] = ()) -> bytes:
        compiled.append(extra)
        return compile_profile(extra)

    monkeypatch.setattr(seccomp, "program", counted)

    async def main() -> None:
        async with Runtime(Config(name="t8", ahead=Ahead(seccomp=once))) as runtime:
            compiled.clear()
            for _ in range(2):
                async with await runtime.start(function("hold", "0")):
                    pass
            assert len(compiled) == (0 if once else 2)

    on_host(main)
