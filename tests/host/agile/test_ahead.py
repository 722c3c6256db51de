"""What is done ahead of requests, and what a request does where it was left to it."""

import asyncio
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from tests.support.agile_host import on_host

from firstlight.agile import Config, Function, Runtime
from firstlight.agile.config import Ahead
from firstlight.agile.node.process import pid_of
from firstlight.agile.verify import cgroups, namespaces

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


OWN = ("pid", "mnt", "ipc", "uts", "net", "cgroup")


def test_no_two_starts_share_a_namespace_or_a_cgroup(function: Make) -> None:
    """One by one, when the node has opened the next cgroup ahead, and at once, when it has not."""

    async def main() -> None:
        async with Runtime(Config(name="t8")) as runtime:
            node = pid_of(Config(name="t8"))
            up = [await runtime.start(function("hold", "99"))]
            for _ in range(5):
                while not opened_ahead(node):
                    await asyncio.sleep(0.001)
                up.append(await runtime.start(function("hold", "99")))
            up += await asyncio.gather(*(runtime.start(function("hold", "99")) for _ in range(6)))
            pids = [instance.pid for instance in up]
            spaces = [namespaces(pid) for pid in (*pids, node)]
            for name in OWN:
                assert len({instance[name] for instance in spaces}) == len(spaces), name
            joined = [cgroups(pid) for pid in (*pids, node)]
            for names in joined[0]:
                if any(instance[names] != joined[-1][names] for instance in joined):
                    assert len({instance[names] for instance in joined}) == len(joined), names
            for instance in up:
                shown = Path(f"/proc/{instance.pid}/root/proc").iterdir()
                assert [each.name for each in shown if each.name.isdigit()] == ["1"]
                await instance.stop()

    on_host(main)


def opened_ahead(node: int) -> bool:
    """Whether the node has what the next start needs: on version 2 that is no file of a cgroup."""
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return True
    for held in Path(f"/proc/{node}/fd").iterdir():
        with suppress(OSError):
            if held.readlink().name == "tasks":
                return True
    return False
