"""Attacks on the node: what a start may bring along, who an instance is, and what it leaves."""

import asyncio
import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from tests.support.agile_host import limits, on_host

from firstlight.agile import Config, Function, Runtime
from firstlight.agile.config import Identities, Pools, PoolSize
from firstlight.agile.node import definition, wire
from firstlight.agile.node.starter import Starter
from firstlight.agile.node.wire import Flag, Step
from firstlight.errors import Failed

Make = Callable[..., Function]
PYTHON = "/usr/bin/python3"
OWN = set(range(3, 8))
"""Descriptors of a sandbox that waits."""


def uids(pid: int) -> tuple[int, int]:
    status = Path(f"/proc/{pid}").stat()
    return status.st_uid, status.st_gid


def with_runtime(main: Callable[[Runtime], Awaitable[None]], config: Config | None = None) -> None:
    async def on() -> None:
        async with Runtime(config or Config(name="t6")) as runtime:
            await main(runtime)

    on_host(on)


@pytest.mark.parametrize(("uid", "gid"), [(0, 5), (5, 0), (2**32 - 1, 5), (5, 2**32 - 1)])
def test_the_node_itself_starts_nothing_as_root_or_unchanged(
    function: Make, uid: int, gid: int
) -> None:
    """Should Python ever let one pass: what the node was asked for is verified in the child."""

    async def main(runtime: Runtime) -> None:
        hold = function("hold", "60")
        registered = await runtime._instances.registered(hold)
        bad = msgspec.structs.replace(hold, uid=uid or None, gid=gid or None)
        node = runtime._instances._node
        assert node
        registered.function, registered.version = bad, registered.version + 1
        tree = runtime._instances.root(hold)
        words = wire.words(hold.command, {}, "/")
        await node.register(definition.encode(registered, bad, 0, Flag(0), 0), tree, words)
        starter = Starter(runtime.config.socket)
        answer = await starter.start(registered.number, 0, [0, 1, 2], {}, 0)
        assert (answer.step, answer.error) == (Step.USER, errno.EINVAL)
        starter.close()
        os.close(tree)
        os.close(words)

    with_runtime(main)


def test_each_identity_gives_instances_distinct_users(function: Make) -> None:
    async def main(runtime: Runtime) -> None:
        identities = runtime.config.identities
        first, other = function("hold", "60"), function("hold", "61", network="none")
        started = [await runtime.start(f) for f in (first, first, other, other)]
        own = {uids(instance.pid) for instance in started}
        assert len(own) == 4
        for uid, gid in own:  # functions, zygotes and workers have those below
            assert uid == gid >= identities.first_of_instances > identities.first + 2 * 65536 - 1
        group = await runtime.start(function("hold", "60", gid=4321))
        assert uids(group.pid)[1] == 4321
        assert uids((await runtime.start(function("hold", "60", uid=4321))).pid)[0] == 4321

    with_runtime(main, Config(name="t6", identities=Identities(each="instance")))


def test_what_leads_out_of_the_sandbox_is_no_standard_stream(function: Make) -> None:
    async def main(runtime: Runtime) -> None:
        state = runtime.config.directory
        with ExitStack() as opened:
            null = os.open(os.devnull, os.O_RDWR)
            directory = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
            path = os.open("/usr", os.O_PATH | os.O_DIRECTORY)
            link = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            link.connect(str(state / "socket"))
            listener = opened.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(state / "other"))
            listener.listen()
            peer = opened.enter_context(socket.socket(socket.AF_UNIX))
            peer.connect(str(state / "other"))
            accepted = opened.enter_context(listener.accept()[0])
            for place in range(3):
                for bad, expected in ((directory, "is a directory"), (path, "is a directory"),
                                  (link.fileno(), "a connection to the runtime"),
                                  (peer.fileno(), "a connection to the runtime"),
                                  (accepted.fileno(), "a connection to the runtime")):  # fmt: skip
                    streams = [null, null, null]
                    streams[place] = bad
                    with pytest.raises(Failed, match=expected):
                        await runtime.start(
                            function("hold", "0"), (streams[0], streams[1], streams[2])
                        )
            ours, theirs = socket.socketpair()
            opened.enter_context(ours)
            with theirs:  # any other socket may be a stream
                instance = await runtime.start(function("hold", "0"), (null, theirs.fileno(), null))
            assert (await instance.wait()).status == 0
            assert ours.recv(64) == b"holding\n"
            for descriptor in (null, directory, path):
                os.close(descriptor)
        (state / "other").unlink()

    with_runtime(main)


CLOSED = """
import os, sys
report = os.dup(1)
for number in range(3):
    os.close(number)
import asyncio, msgspec
from firstlight.agile import Config, Function, Runtime

async def main():
    function = msgspec.json.decode(sys.argv[1], type=Function)
    async with Runtime(Config(name="t6")) as runtime:
        instance = await runtime.start(function, (0, 1, 2))
        links = [os.readlink(f"/proc/{instance.pid}/fd/{n}") for n in range(3)]
        os.write(report, repr(links).encode())

loop = asyncio.new_event_loop()
loop.run_until_complete(main())
"""


def test_runtime_with_closed_streams_leaks_no_descriptor(
    function: Make,
) -> None:
    async def main() -> None:
        text = msgspec.json.encode(function("hold", "60")).decode()
        argv = [sys.executable, "-c", CLOSED, text]
        done = await asyncio.to_thread(subprocess.run, argv, stdout=subprocess.PIPE)
        links = eval(done.stdout)
        assert len(links) == 3
        for link in links:  # the event loop's own are made before a runtime is
            assert link == "/dev/null" or "eventpoll" in link or "socket" in link
        assert not any("firstlight" in link for link in links)

    on_host(main)


def test_reused_cgroup_has_limits_of_new_function(function: Make) -> None:
    async def main(runtime: Runtime) -> None:
        seen: dict[str, list[dict[str, str]]] = {}
        for pids, memory in ((5, 16 << 20), (64, 256 << 20), (7, 8 << 20), (9, 512 << 20)):
            async with await runtime.start(
                function("hold", "60", pids=pids, memory=memory, network="none")
            ) as instance:
                name, values = limits(instance.pid)
                assert values["pids.max"] == str(pids)
                assert str(memory) in (
                    values.get("memory.max"),
                    values.get("memory.limit_in_bytes"),
                )
                seen.setdefault(name, []).append(values)
        assert max(map(len, seen.values())) > 1, "one was used again"

    with_runtime(main, Config(name="t6", pools=Pools(cgroup=PoolSize(low=1, high=1))))


def test_a_sandbox_that_waits_serves_any_function_and_once(function: Make) -> None:
    async def main(runtime: Runtime) -> None:
        first, other = function("hold", "60", files=100), function("hold", "61", files=200, pids=9)
        await runtime.prepare(first, 4)
        started = []
        for turn in (first, other, first, other):
            instance = await runtime.start(turn)
            started.append(instance)
            if instance.warm:
                text = Path(f"/proc/{instance.pid}/limits").read_text()
                assert f"Max open files            {turn.files} " in text
                assert limits(instance.pid)[1]["pids.max"] == str(turn.pids)
        assert {i.function.files for i in started if i.warm} == {100, 200}
        assert len({i.pid for i in started}) == 4
        assert len({Path(f"/proc/{i.pid}/ns/mnt").readlink() for i in started}) == 4

    pools = Pools(sandbox=PoolSize(low=2, high=4))
    with_runtime(main, Config(name="t6", pools=pools))


@pytest.mark.parametrize(
    ("more", "waiting"),
    [({}, 0), ({"user_namespace": True}, 1), ({"reuse": "sandbox", "terminals": True}, 1),
     ({"reuse": "sandbox"}, 0)],
    ids=["cloned", "waiting", "kept with terminals", "kept"],
)  # fmt: skip
def test_no_descriptor_of_node_leads_a_start_to_the_host(
    function: Make, escape: Path, tmp_path: Path, more: dict[str, object], waiting: int
) -> None:
    """Named as working directory or program: until the exec, those of cgroups are on the host."""
    root = shutil.copytree(escape, tmp_path / "root")
    root.chmod(0o755)
    shutil.copy(root / "bin/escape", root / "bin/true")

    async def main(runtime: Runtime) -> None:
        held = Path(f"/proc/{runtime.node}/fd")
        numbers = {int(path.name) for path in held.iterdir() if path.is_dir()}
        assert len(numbers) > 3
        for number in (numbers | OWN) - {0, 1, 2}:
            path = f"/proc/self/fd/{number}"
            (root / path[1:]).mkdir(parents=True)
            for start in (
                function("hold", "0", rootfs=str(root), directory=path, **more),
                function(rootfs=str(root), command=(path + "/.." * 9 + "/bin/true",), **more),
            ):
                with pytest.raises(Failed, match=f"{path}.* is not in the root file system"):
                    await runtime.start(start)

    pools = Pools(sandbox=PoolSize(low=waiting, high=waiting))
    with_runtime(main, Config(name="t6", pools=pools))


def test_node_mounts_hold_only_function_roots(function: Make) -> None:
    async def main(runtime: Runtime) -> None:
        async with await runtime.start(function("hold", "60", ready="holding")):
            inside = Path(f"/proc/{runtime.node}/root")
            assert {path.name for path in inside.iterdir()} == {"hosts", "proc", "roots"}
            mounts = Path(f"/proc/{runtime.node}/mountinfo").read_text().splitlines()
            where = [line.split()[4] for line in mounts]
            assert all(
                p in ("/", "/proc", "/hosts") or p.startswith(("/roots/", "/hosts/")) for p in where
            ), where

    with_runtime(main)
