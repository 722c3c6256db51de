"""The spawner by itself: what it is asked for beside starts, and cgroups of version 2."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.agile_host import on_host

from firstlight.agile import roots, seccomp, wire
from firstlight.agile.spawner import Spawner
from firstlight.agile.wire import Flag, Step
from firstlight.errors import Failed


def unified() -> Path:
    for line in Path("/proc/thread-self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    pytest.skip("no cgroup version 2 is mounted")


@contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


NONE = Flag(0)


def described(flags: Flag = NONE, profile: int = 0, tmpfs: str = "size=1m") -> bytes:
    return wire.sandbox(flags, profile, 65534, 65534, 64, tmpfs, "instance")


async def template(spawner: Spawner, root: Path, skeleton: Path) -> int:
    tree = roots.open_root(root, skeleton)
    child = spawner.template(tree)
    os.close(tree)
    await child.made
    await child.waits
    descriptor = os.open(f"/proc/{child.pid}/ns/mnt", os.O_RDONLY)
    child.kill()
    return descriptor


def test_a_child_is_born_in_its_cgroup_of_version_2(escape: Path, tmp_path: Path) -> None:
    async def main() -> None:
        group = unified() / "firstlight.agile.t7"
        group.mkdir()
        spawner = Spawner([seccomp.program()], lambda: None)
        try:
            root = await template(spawner, escape, tmp_path / "skeleton")
            with opened(Path("/proc/thread-self/ns/net")) as net, opened(group) as cgroup:
                child = spawner.spawn(described(Flag.CLONE_INTO), [root, net, cgroup])
                await child.waits
                await child.made
                told = Path(f"/proc/{child.pid}/cgroup").read_text().splitlines()
                assert "0::/firstlight.agile.t7" in told
                assert (group / "cgroup.procs").read_text().split() == [str(child.pid)]
            child.kill()
            await child.ended
            os.close(root)
        finally:
            spawner.close()
            group.rmdir()

    on_host(main)


@pytest.mark.parametrize(
    ("parts", "sandbox", "said"),
    [
        ("no network", described(), "network: Invalid argument"),
        ("no root", described(), "root: Invalid argument"),
        ("", described(profile=3), "seccomp: "),
        ("", described(tmpfs="nonsense=1"), "tmpfs: Invalid argument"),
        ("no cgroup", described(), "cgroup: Bad file descriptor"),
    ],
)
def test_the_step_that_fails_is_named(
    escape: Path, tmp_path: Path, parts: str, sandbox: bytes, said: str
) -> None:
    async def main() -> None:
        spawner = Spawner([seccomp.program()], lambda: None)
        try:
            root = await template(spawner, escape, tmp_path / "skeleton")
            with opened(Path("/proc/thread-self/ns/net")) as net, opened(Path("/dev/null")) as null:
                given = [
                    null if parts == "no root" else root,
                    null if parts == "no network" else net,
                    *([null] if parts == "no cgroup" else []),
                ]
                child = spawner.spawn(sandbox, given)
                with pytest.raises(Failed) as caught:
                    await child.waits
                assert said in caught.value.message
                await child.ended
            os.close(root)
        finally:
            spawner.close()

    on_host(main)


def test_a_request_that_is_none_is_refused_and_the_next_is_served(
    escape: Path, tmp_path: Path
) -> None:
    async def main() -> None:
        spawner = Spawner([seccomp.program()], lambda: None)
        try:
            for message in (b"", b"x", b"\xff" * 700, b"\xff" * 40_000):
                if message:
                    spawner._helper.send(message)
            with opened(Path("/dev/null")) as null:
                child = spawner.spawn(described(), [null])
                with pytest.raises(Failed, match="cannot clone an instance: Protocol error"):
                    await child.waits
            os.close(await template(spawner, escape, tmp_path / "skeleton"))
        finally:
            spawner.close()

    on_host(main)


def test_a_child_that_waits_ends_when_it_is_not_needed(escape: Path, tmp_path: Path) -> None:
    async def main() -> None:
        spawner = Spawner([seccomp.program()], lambda: None)
        try:
            root = await template(spawner, escape, tmp_path / "skeleton")
            with opened(Path("/proc/thread-self/ns/net")) as net:
                child = spawner.spawn(described(), [root, net])
                await child.waits
                assert max(child.stamps) is Step.WAIT
                child._end_control()
                assert os.WEXITSTATUS((await asyncio.shield(child.ended)).status) == 0
            os.close(root)
        finally:
            spawner.close()

    on_host(main)
