"""Cgroups of version 1, and of 2 with the one controller that a hybrid host leaves to it."""

import asyncio
import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.agile_host import on_host

from firstlight.agile import Config, Function, Runtime
from firstlight.agile.parts import cgroups
from firstlight.agile.parts.cgroups import Cgroups, Limits
from firstlight.errors import Failed

CONTROLLER = "hugetlb"
FILE = f"{CONTROLLER}.2MB.max"
TOP = "firstlight.agile.t8/lab"
LIMITS = Limits(memory=1 << 20, cpus=1, pids=8)


@pytest.fixture
def unified(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hierarchy of version 2 whose controllers are CONTROLLER alone."""
    root = next(
        (Path(line.split()[1]) for line in Path("/proc/mounts").read_text().splitlines()
         if line.split()[2] == "cgroup2"), None,
    )  # fmt: skip
    if root is None or CONTROLLER not in (root / "cgroup.controllers").read_text().split():
        pytest.skip(f"no cgroup version 2 with the controller {CONTROLLER} is mounted")
    if (root / "cgroup.type").exists() and (root / "cgroup.procs").read_text():
        pytest.skip(f"{root} has processes, so it gives no controllers")
    enabled = (root / "cgroup.subtree_control").read_text().split()
    result = True, dict.fromkeys(cgroups.CONTROLLERS, root)
    monkeypatch.setattr(cgroups, "_hierarchies", lambda: result)
    monkeypatch.setattr(cgroups, "_ENABLED", f"+{CONTROLLER}")
    monkeypatch.setattr(
        Cgroups, "_settings", lambda self, limits: [(self.tops[0] / str(self._serial) / FILE, "0")]
    )
    yield root
    (root / TOP).parent.rmdir()
    if CONTROLLER not in enabled:
        (root / "cgroup.subtree_control").write_text(f"-{CONTROLLER}")


def test_cgroup_lifecycle(unified: Path) -> None:
    async def main() -> None:
        groups = Cgroups(TOP)
        groups.open()
        assert groups.unified
        assert groups.tops == (unified / TOP,)
        group = groups.make(LIMITS)
        path = unified / TOP / "1"
        assert (path / FILE).read_text() == "0\n"
        opened = [Path(f"/proc/self/fd/{descriptor}") for descriptor in group.descriptors]
        assert [each.readlink() for each in opened] == [path]
        with groups.entry_fds(group) as entry_fds:
            sleeper = subprocess.Popen(["sleep", "60"])
            for entry_fd in entry_fds:
                os.write(entry_fd, str(sleeper.pid).encode())
        assert (path / "cgroup.procs").read_text().split() == [str(sleeper.pid)]
        assert not groups.ran_out_of_memory(group)
        killing = asyncio.create_task(groups.kill(group))
        assert await asyncio.to_thread(sleeper.wait) == -9
        await killing
        groups.remove(group)
        assert not path.exists()
        groups.close()
        assert not (unified / TOP).exists()

    on_host(main)


def test_one_whose_limits_cannot_be_set_leaves_nothing(
    unified: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = Cgroups(TOP)
    groups.open()
    monkeypatch.setattr(
        Cgroups, "_settings", lambda self, limits: [(self.tops[0] / "1/memory.max", "0")]
    )
    with pytest.raises(Failed, match=r"memory\.max: No such file"):
        groups.make(LIMITS)
    assert not [each for each in (unified / TOP).iterdir() if each.is_dir()]
    groups.close()


def test_processes_above_it_are_named_and_nothing_is_left(unified: Path) -> None:
    """As in a container, whose processes are in the cgroup that it sees as the top."""
    above = (unified / TOP).parent
    above.mkdir()
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        try:
            (above / "cgroup.procs").write_text(str(sleeper.pid))
            for _ in range(2):
                with pytest.raises(Failed, match="resource busy") as failed:
                    Cgroups(TOP).open()
                assert failed.value.hint
                assert failed.value.hint.startswith(f"move the processes of {above}")
                assert not (unified / TOP).exists()
        finally:
            sleeper.kill()


def test_what_is_in_them_ends_with_the_runtime(unified: Path) -> None:
    groups = Cgroups(TOP)
    groups.open()
    group = groups.make(LIMITS)
    sleeper = subprocess.Popen(["sleep", "60"])
    with groups.entry_fds(group) as [entry_fd]:
        os.write(entry_fd, str(sleeper.pid).encode())
    for descriptor in group.descriptors:
        os.close(descriptor)
    groups.close()
    assert sleeper.wait() == -9
    assert not (unified / TOP).exists()


def test_limits_hold_in_whatever_order_version_1_is_mounted(
    function: Callable[..., Function], monkeypatch: pytest.MonkeyPatch
) -> None:
    unified, mounted = cgroups._hierarchies()
    if unified:
        pytest.skip("needs cgroups of version 1")
    files = {"cpu": "cpu.cfs_quota_us", "memory": "memory.limit_in_bytes", "pids": "pids.max"}
    hold = function("hold", "600", reuse="sandbox", memory=32 << 20, pids=8, cpus=0.5)

    async def main() -> None:
        async with Runtime(Config(name="t1")) as runtime, await runtime.start(hold) as instance:
            paths: dict[str, str] = {}
            for line in Path(f"/proc/{instance.pid}/cgroup").read_text().splitlines():
                _, controllers, path = line.split(":")
                paths |= dict.fromkeys(controllers.split(","), path[1:])
            limits = [(mounted[controller] / paths[controller] / file).read_text().strip()
                      for controller, file in files.items()]  # fmt: skip
        assert limits == ["50000", str(32 << 20), "9"]  # PID 1 of the sandbox is a process too

    for order in itertools.permutations(mounted):
        chosen = False, {controller: mounted[controller] for controller in order}
        monkeypatch.setattr(cgroups, "_hierarchies", lambda chosen=chosen: chosen)
        on_host(main)


def test_node_has_top_for_comounted_controllers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = Path("/cpu"), Path("/memory,pids")
    monkeypatch.setattr(
        cgroups, "_hierarchies", lambda: (False, {"pids": other, "memory": other, "cpu": one})
    )
    groups = Cgroups("top")
    assert groups.tops == (other / "top", one / "top")
    assert groups.tops_by_controller == (one / "top", other / "top", other / "top")
