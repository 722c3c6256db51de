"""Killed at any moment: the next start finds and removes what was left, and nothing else."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from tests.support.agile_host import CONFIG, on_host, serve

from firstlight.agile import Config, Function, Runtime, daemon
from firstlight.agile.client import Client
from firstlight.agile.node import instances, liveness, process, registry, wire
from firstlight.agile.node.process import Node
from firstlight.agile.node.process import pid_of as node_pid
from firstlight.agile.python.zygotes import Zygotes
from firstlight.agile.sockets import rights
from firstlight.errors import Failed
from firstlight.native import native

Make = Callable[..., Function]

MARK = "FIRSTLIGHT_TEST", f"crash-{os.getpid()}"
LOADED = """
import asyncio, sys
import msgspec
from firstlight.agile import Config, Function, Runtime
from firstlight.agile.config import Pools, PoolSize

async def main():
    function = msgspec.json.decode(sys.argv[1], type=Function)
    pools = Pools(sandbox=PoolSize(low=4, high=8))
    async with Runtime(Config(name="t3", pools=pools)) as runtime:
        print(runtime.node, flush=True)
        while True:
            instances = await asyncio.gather(*(runtime.start(function) for _ in range(4)))
            print("up", flush=True)
            await asyncio.gather(*(one.stop() for one in instances))

asyncio.run(main())
"""


def left() -> list[str]:
    """What a runtime of this test's name has on the host, in words."""
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
    return [
        *(line for line in links.splitlines() if "flt3" in line),
        *(line for line in tables.splitlines() if "firstlight_t3" in line),
        *(str(path) for path in Path("/sys/fs/cgroup").glob("*/firstlight.agile.t3")),
        *(f"process {pid}" for pid in holders()),
    ]


def holders() -> list[str]:
    """Processes that have the mark: of a runtime, its helpers and its instances."""
    result = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if "=".join(MARK).encode() in variables:
            result.append(path.parent.name)
    return result


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_runtime_leaves_nothing_after_the_next_start(
    function: Make, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    monkeypatch.setenv(*MARK)

    async def main() -> None:
        text = msgspec.json.encode(function("hold", "60", env=dict([MARK]))).decode()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", LOADED, text, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        node = int(await process.stdout.readline())
        for _ in range(chance.randrange(1, 6)):
            await process.stdout.readline()
        assert len(holders()) >= 3, "a runtime and its two helpers are seen"
        victims = [process.pid] if seed % 2 else [node, process.pid]
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        await process.wait()
        other = Path("/sys/fs/cgroup/pids/firstlight.agile.not-ours")
        if other.parent.is_dir():
            other.mkdir()
        try:
            async with (
                Runtime(Config(name="t3")) as runtime,
                await runtime.start(function("hold", "0")) as instance,
            ):
                assert (await instance.wait()).status == 0
            assert left() == []
            assert not other.parent.is_dir() or other.is_dir()
        finally:
            if other.is_dir():
                other.rmdir()

    on_host(main)


def test_instances_outlive_manager_and_are_taken_over(function: Make) -> None:
    """None ends, none is missing from ps, and every exit status arrives."""

    async def main() -> None:
        config = Config(name="t3")
        first = await serve(config)
        ours, theirs = os.pipe()
        null = os.open(os.devnull, os.O_RDWR)
        with Client(config.socket) as client:
            forks = function("hold", "60")
            client.prepare(forks)
            up = [client.start(forks, (null, null, null)).id for _ in range(20)]
            detached = client.start(forks, (null, null, null), detached=True).id
            number, version = client.register(forks)
            client.prepare(forks)
            ended = [client.start(function("hold", "1"), (null, null, null)).id for _ in range(5)]
            node = node_pid(config)
            first.kill()
            await first.wait()
            assert node_pid(config) == node
            assert all(client.wait(instance).status == 0 for instance in ended), (
                "they end meanwhile"
            )
            meanwhile = wire.request(wire.RequestVerb.START, number, tag=7, version=version)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as fast:
                fast.connect(str(config.socket))
                fast.sendmsg([meanwhile], rights([null, null, null]))
                assert wire.answer(fast.recv(4096)).verb == wire.AnswerVerb.STARTED
            second = await serve(config)
            try:
                with Client(config.socket) as other:
                    assert node_pid(config) == node
                    assert {instance.id for instance in other.running()} >= {*up, detached}
                    assert other.stop(detached).signal == signal.SIGKILL
                    assert other.register(forks)[0] == number
                    assert other.wait(other.start(function("hold", "0")).id).status == 0
                    for instance in up[:10]:
                        other.stop(instance)
                    assert all(
                        client.wait(instance).signal == signal.SIGKILL for instance in up[:10]
                    )
                client.close()
                while True:
                    with Client(config.socket) as other:
                        if not other.running():
                            break
                    await asyncio.sleep(0.01)
            finally:
                second.terminate()
                assert await second.wait() == 0
        for descriptor in (ours, theirs, null):
            os.close(descriptor)
        assert left() == []

    on_host(main)


FIRSTLIGHT = str(Path(sys.executable).parent / "firstlight")


async def up(file: Path, *words: str) -> asyncio.subprocess.Process:
    """``firstlight agile up``, serving."""
    reading, writing = os.pipe()  # the node keeps it open
    process = await asyncio.create_subprocess_exec(
        FIRSTLIGHT, "agile", "up", "--config", str(file), *words, stderr=writing
    )
    os.close(writing)
    with os.fdopen(reading) as lines:
        assert (await asyncio.to_thread(lines.readline)).startswith("ready")
    return process


async def down(file: Path) -> int:
    process = await asyncio.create_subprocess_exec(
        FIRSTLIGHT, "agile", "down", "--config", str(file)
    )
    return await process.wait()


def test_failed_take_over_ends_no_instance(function: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        config = Config(name="t5")
        first = await serve(config)
        null = os.open(os.devnull, os.O_RDWR)
        with Client(config.socket) as client:
            kept = client.start(function("hold", "99"), (null, null, null), detached=True).id
        os.close(null)
        first.kill()
        await first.wait()
        for stay in (True, False):
            with monkeypatch.context() as patched:
                patched.setattr(wire, "VERSION", wire.VERSION + 1)
                with pytest.raises(Failed, match="another version"):
                    await Runtime(config, stay).__aenter__()
            with monkeypatch.context() as patched:
                patched.setattr(registry, "_noted", msgspec.json.Decoder(tuple[Function, int]))
                with pytest.raises(Failed, match="another version of firstlight registered"):
                    await Runtime(config, stay).__aenter__()
            with monkeypatch.context() as patched:
                patched.setattr(Zygotes, "take_over", lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    await Runtime(config, stay).__aenter__()
            with monkeypatch.context() as patched:
                patched.setattr(liveness, "HANG_SECONDS", 0.1)
                patched.setattr(Node, "_done", lambda *_: None)  # of its HELLO, for one
                with pytest.raises(Failed, match="another process is the manager"):
                    await Runtime(config, stay).__aenter__()
        with pytest.raises(OSError, match="in use"):  # its HTTP interface, for one
            async with Runtime(config, stay=True):
                raise OSError("the port is in use")
        second = await serve(config)
        with Client(config.socket) as client:
            assert [each.id for each in client.running()] == [kept]
            client.stop(kept)
        second.terminate()
        assert await second.wait() == 0

    on_host(main)


def test_restarting_and_replacing_the_manager_end_no_instance(
    function: Make, tmp_path: Path
) -> None:
    """None ends, none is missing from ps, statuses arrive, and starts go on all the while."""
    config = Config(name="t3")
    file = tmp_path / "firstlight.toml"
    file.write_text(f'name = "{config.name}"\n')
    stopped = threading.Event()

    async def main() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        nothing = (null, null, null)
        first = await up(file, "--keep")
        try:
            with Client(config.socket) as client:
                hold, short = function("hold", "60"), function("hold", "1", reuse="sandbox")
                ids = {client.start(hold, nothing).id for _ in range(10)}
                ids.add(client.start(hold, nothing, detached=True).id)
                client.prepare(short)
                number, version = client.register(short)
                node = node_pid(config)
                starts = asyncio.create_task(
                    asyncio.to_thread(keep_starting, config, number, version, nothing, stopped)
                )
                first.terminate()  # as systemctl restart does
                assert await first.wait() == 0
                second = await up(file, "--keep")
                assert {instance.id for instance in client.running()} >= ids
                third = await up(file, "--keep", "--replace")
                assert await second.wait() == 0
                assert {instance.id for instance in client.running()} >= ids, (
                    "the same client goes on"
                )
                stopped.set()
                ends = await starts
                assert len(ends) >= 3
                assert set(ends) == {0}
                assert node_pid(config) == node
                client.stop(ids.pop())
                ended = client.start(short, nothing).id
                assert client.wait(ended).status == 0
        finally:
            stopped.set()
            assert await down(file) == 0
            os.close(null)
        assert await third.wait() == 0
        assert left() == []
        assert await down(file) == 2, "there is nothing to end"

    on_host(main)


def test_who_takes_over_a_node_of_another_build_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By an upgrade, its fixes are not in force yet."""
    other = tmp_path / "firstlight-node"
    other.write_bytes(native(other.name).read_bytes() + b"\0")
    other.chmod(0o755)

    async def main() -> None:
        for program, said in ((other, 0), (other, 0), (native(other.name), 1)):
            monkeypatch.setattr(process, "native", lambda _, program=program: program)
            async with Runtime(CONFIG, stay=True) as runtime:
                runtime.leave()
            assert sum("another build" in line for line in caplog.messages) == said
        daemon.end(CONFIG)

    on_host(main)


def keep_starting(
    config: Config,
    number: int,
    version: int,
    streams: tuple[int, int, int],
    stop: threading.Event,
) -> list[int]:
    """Start one after another by the fast path alone; the statuses of their ends."""
    ends: list[int] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as fast:
        fast.connect(str(config.socket))
        while not stop.is_set() or len(ends) < 3:
            request = wire.request(wire.RequestVerb.START, number, version=version)
            fast.sendmsg([request], rights(list(streams)))
            assert wire.answer(fast.recv(4096)).verb == wire.AnswerVerb.STARTED
            ended = wire.answer(fast.recv(4096))
            assert ended.verb == wire.AnswerVerb.ENDED
            ends.append(ended.status)
    return ends


def test_down_ends_what_a_killed_manager_left(function: Make, tmp_path: Path) -> None:
    file = tmp_path / "firstlight.toml"
    config = Config(name="t3")
    file.write_text(f'name = "{config.name}"\n')

    async def main() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        first = await up(file)
        with Client(config.socket) as client:
            pid = client.start(function("hold", "60"), (null, null, null), detached=True).pid
        first.kill()
        await first.wait()
        assert is_alive(pid)
        assert await down(file) == 0
        assert not is_alive(pid)
        assert left() == []
        os.close(null)

    on_host(main)


def test_nothing_outlives_the_node(function: Make) -> None:
    """Whatever an instance does: what holds it is no signal that it can clear."""

    async def main() -> None:
        config = Config(name="t3")
        async with Runtime(config) as runtime:
            pids = [(await runtime.start(function("hold", "60"))).pid for _ in range(10)]
            os.kill(runtime.node, signal.SIGKILL)
            until = asyncio.get_running_loop().time() + 1.0
            while any(is_alive(pid) for pid in pids):
                assert asyncio.get_running_loop().time() < until, "gone within a second"
                await asyncio.sleep(0.01)
            async with await runtime.start(function("hold", "0")) as instance:
                assert (await instance.wait()).status == 0
        assert left() == []

    on_host(main)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_killed_node_is_replaced_and_its_instances_end(function: Make) -> None:
    async def main() -> None:
        hold = function("hold", "60", ready="holding")
        async with Runtime(Config(name="t3")) as runtime:
            first = await runtime.start(hold)
            os.kill(runtime.node, signal.SIGKILL)
            assert (await first.wait()).signal == signal.SIGKILL
            with suppress(FileNotFoundError):  # its reaper may not have come by
                state = Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[0]
                assert state in "ZX"
            async with await runtime.start(hold) as second:
                assert second.pid != first.pid
                assert int(second.id) > int(first.id), "logs, stop and ps name it by its id"

    on_host(main)


def test_no_id_means_two_instances_though_all_were_killed(function: Make) -> None:
    config, ids = Config(name="t3"), []

    async def main() -> None:
        for _ in range(2):
            manager = await serve(config)
            with Client(config.socket) as client:
                for _ in range(2):
                    started = client.start(function("hold", "0"), (0, 1, 2))
                    ids.append(int(started.id))
                    client.wait(started.id)
            node = node_pid(config)
            manager.kill()
            await manager.wait()
            os.kill(node, signal.SIGKILL)
        assert ids == sorted(set(ids))
        async with Runtime(config):
            pass
        assert not config.directory.exists()

    on_host(main)


@pytest.mark.parametrize("ends", ["connection", "node"])
def test_node_end_is_reported_and_recovered_by_manager(
    function: Callable[..., Function], ends: str
) -> None:
    """Its connection for starts, as the node does with who does not read, or the node itself."""

    async def main() -> None:
        hold = function("hold", "60", ready="holding")
        async with Runtime(Config(name="t3")) as runtime:
            instance = await runtime.start(hold)
            session = await runtime.execute(instance.id, hold.command)
            if ends == "node":
                os.kill(runtime.node, signal.SIGKILL)
            else:
                starter = runtime._instances._starter
                assert starter
                starter._socket.shutdown(socket.SHUT_RDWR)
            assert (await session.wait()).signal == signal.SIGKILL
            assert (await instance.wait()).signal == signal.SIGKILL
            async with await runtime.start(hold) as other:
                assert other.pid != instance.pid

    on_host(main)


def test_killed_node_is_gone_before_its_successor(function: Make) -> None:
    async def main() -> None:
        async with Runtime(Config(name="t3")) as runtime:
            hold = function("hold", "60", ready="holding")
            await runtime.prepare(hold)
            before = runtime.node
            async with await runtime.start(hold) as instance:
                os.kill(before, signal.SIGKILL)
                await instance.wait()
            async with await runtime.start(hold):
                assert runtime.node != before
                with suppress(FileNotFoundError):  # its reaper may not have come by
                    state = Path(f"/proc/{before}/stat").read_text().rpartition(")")[2].split()[0]
                    assert state in "ZX"

    on_host(main)


def test_an_ordered_stop_ends_although_the_network_helper_hangs(
    function: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "_END_SECONDS", 0.2)

    async def main() -> None:
        async with (
            Runtime(Config(name="t3")) as runtime,
            await runtime.start(function("hold", "0")) as instance,
        ):
            os.kill(runtime._networks._parts.pid, signal.SIGSTOP)
            await instance.wait()
        assert left() == []

    on_host(main)


def test_a_killed_network_helper_is_replaced(function: Make) -> None:
    async def main() -> None:
        async with Runtime(Config(name="t3")) as runtime:
            await (await runtime.start(function("hold", "0"))).stop()
            before = runtime._networks._parts.pid
            os.kill(before, signal.SIGKILL)
            while runtime._networks._parts.pid == before:
                with suppress(Failed):  # those that were being served
                    await (await runtime.start(function("hold", "0"))).stop()
            async with await runtime.start(function("hold", "0")) as instance:
                assert (await instance.wait()).status == 0
            assert runtime._networks._parts.pid != before

    on_host(main)


def test_unwritable_journal_stops_start_first() -> None:
    async def main() -> None:
        state = Path(f"/run/firstlight-test-{os.getpid()}")
        state.mkdir()
        try:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", state], check=True)
            (state / "t3").mkdir()
            filler = os.open(state / "t3/filler", os.O_CREAT | os.O_WRONLY)
            os.write(filler, b"x" * 4096)
            os.close(filler)
            with pytest.raises(Failed, match=r"cannot (write|open) the journal"):
                async with Runtime(Config(name="t3", state=str(state))):
                    pass
            assert [each for each in left() if "process" not in each] == []
        finally:
            subprocess.run(["umount", state], check=True)
            state.rmdir()

    on_host(main)


def test_a_torn_journal_line_is_passed_over(function: Make) -> None:
    async def main() -> None:
        config = Config(name="t3")
        config.directory.mkdir(parents=True, exist_ok=True)
        (config.directory / "journal").write_text('["network", "firstlight_t3", "flt3"]\n["cgr')
        async with (
            Runtime(config) as runtime,
            await runtime.start(function("hold", "0")) as instance,
        ):
            assert (await instance.wait()).status == 0

    on_host(main)
