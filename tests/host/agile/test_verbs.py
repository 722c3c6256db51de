"""What an operator does with instances: exec, logs, stop, ps, events, a terminal."""

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from tests.support.agile_host import SOCKET, daemon, on_host, serve, with_daemon
from tests.support.busybox import make, shell

from firstlight.agile import Config, Function, Instance, Runtime, verify
from firstlight.agile import client as clients
from firstlight.agile import daemon as daemons
from firstlight.agile.client import Client
from firstlight.agile.config import Logs
from firstlight.agile.function import LOST, Happened
from firstlight.agile.node import liveness
from firstlight.agile.node.process import pid_of
from firstlight.errors import Failed

TRAP = "trap 'echo {name}; exit 5' {name}; echo up; while :; do sleep 0.05; done"
CONFIG = Config(name="t5")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make(tmp_path)


def cli(*words: str, **more: object) -> "subprocess.CompletedProcess[bytes]":
    """A verb on the runtime of ``with_daemon``."""
    more = {"capture_output": True, "stdin": subprocess.DEVNULL, "timeout": 60} | more
    return subprocess.run(command(*words), check=False, **more)  # type: ignore[call-overload, no-any-return]


def command(*words: str) -> list[str]:
    file = SOCKET.with_name("test.toml")
    file.write_text(f'name = "{CONFIG.name}"\n')
    verb, *rest = words
    return [str(Path(sys.executable).with_name("firstlight")), "agile", verb,
            "--config", str(file), *rest]  # fmt: skip


async def up(instance: Instance) -> None:
    assert instance.stdout is not None
    await instance.stdout.until(b"up")


async def lines(runtime: Runtime, identity: str, follow: bool = True) -> list[str]:
    return [line.text async for line in runtime.logs(identity, follow)]


@pytest.mark.parametrize("user_namespace", [False, True])
def test_an_executed_program_is_confined_as_the_instance_is(
    root: Path, user_namespace: bool
) -> None:
    async def main() -> None:
        async with Runtime(Config(name="t1")) as runtime:
            function = shell(root, "echo up; exec sleep 60", env={"OF": "start"},
                             user_namespace=user_namespace)  # fmt: skip
            async with await runtime.start(function) as instance:
                await up(instance)
                session = await runtime.execute(
                    instance.id, ("sh", "-c", "echo $OF $ITS $$; exec sleep 60"),
                    {"ITS": "own"},
                )  # fmt: skip
                await session.stdout.until(b"start own ")
                status = verify.status(instance.pid)
                uid, gid = (int(status[name].split()[0]) for name in ("Uid", "Gid"))
                expected = verify.Expected(
                    uid, gid, verify.filters(instance.pid), verify.namespaces(instance.pid),
                    verify.cgroups(instance.pid),
                )  # fmt: skip
                assert verify.differences(session.pid, expected) == []
                fds = Path(f"/proc/{session.pid}/fd")
                assert sorted(fd.name for fd in fds.iterdir()) == ["0", "1", "2"]
                assert (Path(f"/proc/{session.pid}/root").stat().st_ino
                        == Path(f"/proc/{instance.pid}/root").stat().st_ino)  # fmt: skip
                await instance.stop()
                assert (await session.wait()).signal == signal.SIGKILL
            with pytest.raises(Failed, match="no instance"):
                await runtime.execute(instance.id, ("true",))

    on_host(main)


def test_exec_ends_by_itself_or_with_client(root: Path) -> None:
    async def main(path: Path) -> None:
        null = os.open(os.devnull, os.O_RDWR)
        with Client(path) as client, Client(path) as other:
            started = client.start(shell(root, "exec sleep 60"), (null,) * 3)
            own = client.execute(started.id, ("sh", "-c", "exit 9"), {}, streams=(null,) * 3)
            assert client.wait(own.id).status == 9
            with pytest.raises(Failed, match="no directory of PATH"):
                client.execute(started.id, ("none",), {}, streams=(null,) * 3)
            gone = other.execute(started.id, ("sleep", "60"), {}, streams=(null,) * 3)
            descriptor = os.pidfd_open(gone.pid)
            other.close()
            await _ended(descriptor)
            assert [instance.id for instance in client.running()] == [started.id]
        os.close(null)

    with_daemon(main)


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


async def _ended(pidfd: int) -> None:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    loop.add_reader(pidfd, _settle, ended)
    try:
        await asyncio.wait_for(ended, 60)
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def test_clients_of_a_killed_node_are_told_of_sigkill(root: Path) -> None:
    """The next start is the next node's."""

    def verbs() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        up = ("--", "sh", "-c", "echo up; exec sleep 600")
        start = ("start", "--rootfs", str(root))
        attached = subprocess.Popen(
            command(*start, "--json", *up), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert attached.stdout
        assert attached.stderr
        assert attached.stdout.readline() == b"up\n"
        assert attached.stderr.readline() == b"{\n"  # it has the node's answer
        with Client(SOCKET) as client:
            started = client.start(shell(root, "exec sleep 600"), (null,) * 3)
            session = client.execute(started.id, ("sleep", "600"), {}, streams=(null,) * 3)
            os.kill(pid_of(CONFIG), signal.SIGKILL)
            assert [client.wait(each.id) for each in (started, session)] == [LOST, LOST]
            _, words = attached.communicate(timeout=60)
            assert (attached.returncode, b"killed by SIGKILL" in words) == (137, True), words
            again = client.start(shell(root, "exit 3"), (null,) * 3)
            assert client.wait(again.id).status == 3
        os.close(null)

    async def main(_: Path) -> None:
        await asyncio.to_thread(verbs)

    with_daemon(main)


def test_a_detached_instance_writes_on_while_managers_die(root: Path) -> None:
    async def main() -> None:
        first = await serve()
        null = os.open(os.devnull, os.O_RDWR)
        with Client(SOCKET) as client:
            text = "echo up; read go </tmp/go; seq 1 20000; echo err >&2; echo -n end; exit 7"
            function = shell(root, "busybox mkfifo /tmp/go; " + text)
            started = client.start(function, (null,) * 3, detached=True, logged=True)
            client.wait_ready(started.id, "up", 30)
        first.kill()
        await first.wait()
        pidfd = os.pidfd_open(started.pid)
        Path(f"/proc/{started.pid}/root/tmp/go").write_text("go\n")  # with no manager there
        await _ended(pidfd)
        while Path(f"/proc/{started.pid}").exists():
            await asyncio.sleep(0.01)
        now = time.time_ns()
        async with daemon():
            with Client(SOCKET) as client:
                result = list(client.logs(started.id, follow=True))
                [event] = client.events(0, follow=False)
                told = event.ended
                [ended] = client.running(ended=True)
        assert told
        assert told.status == 7
        assert event.time < now + 1e8, "when it ended, not when it is told"
        assert (ended.id, ended.ended) == (started.id, told)
        out = [line.text + "\n" * line.whole for line in result if line.stream == "stdout"]
        assert "".join(out) == "".join(f"{word}\n" for word in ("up", *range(1, 20001))) + "end"
        assert [line.text for line in result if line.stream == "stderr"] == ["err"]
        os.close(null)

    on_host(main)


def test_who_follows_misses_nothing_while_managers_are_replaced(root: Path) -> None:
    """By kill -9, and by an ordered end that leaves the instances up."""
    lines: list[str] = []
    events: list[tuple[str, str]] = []

    def follow(identity: str) -> None:
        with Client(SOCKET) as client:
            for line in client.logs(identity, follow=True):
                lines.append(line.text)

    def watch(identity: str) -> None:
        with Client(SOCKET) as client:
            for event in client.events(0):
                events.append((event.kind, event.id))
                if events[-1] == ("ended", identity):
                    return

    async def main() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        manager = await serve(keep=True)
        text = """busybox mkfifo /tmp/go; echo up
            while :; do read go </tmp/go && seq $go && echo up; done"""
        with Client(SOCKET) as client:
            loops = client.start(shell(root, text), (null,) * 3, detached=True, logged=True)
        following = [asyncio.create_task(asyncio.to_thread(each, loops.id))
                     for each in (follow, watch)]  # fmt: skip
        expected, others = ["up"], list[str]()
        for end in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
            while lines != expected or (others and events[-1] != ("ended", others[-1])):
                await asyncio.sleep(0.01)
            manager.send_signal(end)
            await manager.wait()
            Path(f"/proc/{loops.pid}/root/tmp/go").write_text("100\n")
            expected += [*map(str, range(1, 101)), "up"]
            manager = await serve(keep=True)
            with Client(SOCKET) as client:
                short = client.start(shell(root, "exit 0"), (null,) * 3)
                client.wait(short.id)
                others.append(short.id)
        while lines != expected:
            await asyncio.sleep(0.01)
        with Client(SOCKET) as client:
            client.stop(loops.id)
        await asyncio.gather(*following)
        assert lines == expected
        of_others = [(kind, each) for each in others for kind in ("started", "ended")]
        assert events == [("started", loops.id), *of_others, ("ended", loops.id)]
        daemons.end(CONFIG)
        await manager.wait()
        os.close(null)

    on_host(main)


def test_an_end_that_a_killed_manager_kept_is_told_at_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although nothing else happens."""
    monkeypatch.setattr(clients, "_WAIT_SECONDS", 600.0)
    events: list[Happened] = []

    def watch() -> None:
        with Client(SOCKET) as client:
            for event in client.events(0):
                events.append(event)
                if event.kind == "ended":
                    return

    async def main() -> None:
        first = await serve()
        null = os.open(os.devnull, os.O_RDWR)
        text = "busybox mkfifo /tmp/go; echo up; read go </tmp/go"
        with Client(SOCKET) as client:
            started = client.start(shell(root, text), (null,) * 3, detached=True, logged=True)
            client.wait_ready(started.id, "up", 30)
        watching = asyncio.create_task(asyncio.to_thread(watch))
        while not events:
            await asyncio.sleep(0.01)
        pidfd = os.pidfd_open(started.pid)
        first.send_signal(signal.SIGSTOP)  # the node tells it, and it tells nobody
        Path(f"/proc/{started.pid}/root/tmp/go").write_text("go\n")
        await _ended(pidfd)
        while Path(f"/proc/{started.pid}").exists():
            await asyncio.sleep(0.01)
        for _ in range(2):  # turns of the node's loop
            liveness.check_node(SOCKET)
        first.kill()
        await first.wait()
        async with daemon(), asyncio.timeout(30):
            await watching
        assert [(each.kind, each.id) for each in events[1:]] == [("ended", started.id)]
        os.close(null)

    on_host(main)


def test_starts_that_need_logs_at_once_share_one_process(root: Path) -> None:
    async def main() -> None:
        async with Runtime(Config(name="t1")) as runtime:
            function = shell(root, "echo up; exec sleep 60")
            instances = await asyncio.gather(*(runtime.detach(function) for _ in range(4)))
            of_threads = Path("/proc/self/task").glob("*/children")
            pids = " ".join(file.read_text() for file in of_threads).split()
            names = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids]
            assert names.count("firstlight-log") == 1
            for instance in instances:
                await instance.stop()
                assert await lines(runtime, instance.id) == ["up"]

    on_host(main)


def test_logs_are_bounded_each_and_all_together(root: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    whole = "".join(f"{word}\n" for word in (*range(1, 5001), "last"))
    config = Config(name="t1", logs=Logs(size=8192, total=40960, directory=str(logs)))

    async def main() -> None:
        async with Runtime(config) as runtime:
            for _ in range(6):
                instance = await runtime.detach(shell(root, "seq 1 5000; echo last"))
                await lines(runtime, instance.id)  # until it is complete
                kept = "".join(
                    [log.text + "\n" * log.whole async for log in runtime.logs(instance.id)]
                )
                assert 500 < len(kept) < len(whole)
                assert whole.endswith(kept)
                sizes = [file.stat().st_size for file in logs.iterdir()]
                assert max(sizes) <= 8192
                assert sum(sizes) <= 40960
            with pytest.raises(Failed, match="instance 99 has no log"):
                await lines(runtime, "99")
            quiet = await runtime.detach(shell(root, "exec sleep 60"))
            assert await lines(runtime, quiet.id, follow=False) == []
            await quiet.stop()
        assert logs.is_dir(), "a directory that was asked for stays"

    on_host(main)
    assert sum(file.stat().st_size for file in logs.iterdir()) <= 40960


def test_a_keeper_of_logs_that_was_killed_is_replaced(root: Path) -> None:
    async def main() -> None:
        async with Runtime(Config(name="t1")) as runtime:
            first = await runtime.detach(shell(root, "echo one"))
            assert await lines(runtime, first.id) == ["one"]
            keeper = runtime._instances._logs
            assert keeper
            os.kill(keeper._pid, signal.SIGKILL)
            await _ended(os.pidfd_open(keeper._pid))
            second = await runtime.detach(shell(root, "echo two"))
            assert await lines(runtime, second.id) == ["two"]
            assert await lines(runtime, first.id, follow=False) == ["one"]
        assert not runtime.config.logs_directory.exists()

    on_host(main)


def test_stop_signals_then_kills(root: Path) -> None:
    async def main() -> None:
        async with Runtime(Config(name="t1")) as runtime:
            for name in ("TERM", "USR1"):
                instance = await runtime.start(shell(root, TRAP.format(name=name)))
                await up(instance)
                number = signal.Signals[f"SIG{name}"].value
                assert (await instance.stop(3600, number)).status == 5
            deaf = await runtime.start(shell(root, "echo up; exec sleep 60"))
            await up(deaf)
            assert (await deaf.stop(3600)).signal == signal.SIGKILL

    on_host(main)


def test_a_timeout_is_reported_as_such_also_by_the_next_manager(root: Path) -> None:
    async def main() -> None:
        first = await serve()
        null = os.open(os.devnull, os.O_RDWR)
        with Client(SOCKET) as client:
            function = shell(root, "exec sleep 600", lifetime=2.0)
            started = client.start(function, (null,) * 3, detached=True)
            first.kill()
            await first.wait()
        async with daemon():
            with Client(SOCKET) as client:
                seen = []
                for event in client.events(0):
                    seen.append(event)
                    if event.id == started.id and event.kind != "started":
                        break
                assert seen[-1].words == "timed out after 2 s"
                [ended] = [
                    instance for instance in client.running(ended=True) if instance.id == started.id
                ]
                assert ended.state == "timed out after 2 s"
                own = client.start(msgspec.structs.replace(function, lifetime=0.1), (null,) * 3)
                assert client.wait(own.id).timed_out
        os.close(null)

    on_host(main)


def test_the_command_line_s_verbs(root: Path) -> None:
    def verbs() -> None:
        text = "echo up; echo err >&2; trap 'echo saved; exit 3' TERM; while :; do sleep 0.05; done"
        start = (
            "start",
            "--rootfs",
            str(root),
            "--env",
            "SECRET=word",
            "--detach",
            "--ready",
            "up",
        )
        begun = cli(*start, "--", "sh", "-c", text)
        assert begun.returncode == 0, begun.stderr
        identity = begun.stdout.decode().strip()
        listed = cli("ps").stdout.decode()
        assert listed.splitlines()[1].split()[:2] == [identity, "running"]
        for output in (
            listed,
            cli("ps", "--json").stdout.decode(),
            cli("events", "--no-follow").stdout.decode(),
        ):
            assert "SECRET" not in output
            assert "word" not in output
        done = cli("exec", identity, "--env", "A=1", "--", "sh", "-c", "echo $SECRET $A; exit 4")
        assert (done.stdout, done.returncode) == (b"word 1\n", 4)
        done = cli("logs", identity)
        assert (done.stdout, done.stderr) == (b"up\n", b"err\n")
        stopped = json.loads(cli("stop", identity, "--json").stdout)
        assert stopped[identity]["status"] == 3
        assert cli("logs", "-f", identity).stdout == b"up\nsaved\n"
        assert cli("logs", "--tail", "1", identity).stdout == b"saved\n"
        [first, *_] = cli("logs", "--json", identity).stdout.splitlines()
        assert json.loads(first)["text"] == "up"
        assert "exit status 3" in cli("ps", "--all").stdout.decode()
        done = cli("start", "--rootfs", str(root), "--timeout", "0.2", "--", "sleep", "60")
        assert (done.returncode, b"timed out after 0.2 s" in done.stderr) == (137, True)
        kinds = [json.loads(line)["kind"] for line in
                 cli("events", "--no-follow", "--json").stdout.splitlines()]  # fmt: skip
        assert kinds == ["started", "ended", "started", "timed out"]
        done = cli("start", "--rootfs", str(root), "--detach", "--ready", "x", "--", "printf", "no")
        assert b"ended before it was ready" in done.stderr
        assert b"it wrote: no" in done.stderr

    async def main(_: Path) -> None:
        await asyncio.to_thread(verbs)

    with_daemon(main)


def test_streams_of_root_open_by_path(root: Path, tmp_path: Path) -> None:
    def verbs() -> None:
        file = tmp_path / "out"
        text = "for i in 1 2 3; do echo out $i >/dev/stdout; echo err $i >/dev/stderr; done; cat"
        for mode in ("wb", "ab"):
            with file.open(mode) as out:
                file.chmod(0o600)
                done = cli("start", "--rootfs", str(root), "--", "sh", "-c", text,
                           capture_output=False, stdout=out, stderr=out, input=b"in\n",
                           stdin=None)  # fmt: skip
            assert done.returncode == 0
        expected = "".join(f"out {i}\nerr {i}\n" for i in (1, 2, 3)) + "in\n"
        assert file.read_text() == expected * 2

    async def main(_: Path) -> None:
        await asyncio.to_thread(verbs)

    with_daemon(main)


@contextmanager
def terminal(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """A terminal of that size: master and slave."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (rows, columns))
    try:
        yield master, slave
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize("verb", ["start", "exec"])
def test_terminal_is_private_and_ours_is_restored(root: Path, verb: str) -> None:
    text = "tty; stty size; echo there >/dev/tty; read line; echo got $line; exec 3</dev/ptmx"

    def verbs() -> None:
        with terminal(33, 77) as (master, slave):
            before = termios.tcgetattr(slave)
            words: tuple[str, ...] = ("start", "--rootfs", str(root))
            if verb == "exec":
                held = cli(*words, "--detach", "--", "sleep", "60").stdout.decode().strip()
                words = ("exec", held)
            process = subprocess.Popen(
                command(*words, "-it", "--", "sh", "-c", text), stdin=slave, stdout=slave,
                stderr=slave,
            )  # fmt: skip
            seen = b""
            while b"there" not in seen:
                seen += os.read(master, 4096)
            os.write(master, b"words\r")
            while b"got words" not in seen:
                seen += os.read(master, 4096)
            assert process.wait(60) == 0
            assert seen.startswith(b"/dev/pts/0\r\n33 77\r\nthere\r\n")
            assert termios.tcgetattr(slave) == before

    async def main(_: Path) -> None:
        await asyncio.to_thread(verbs)

    with_daemon(main)


def test_cli_forwards_signals_to_instance(root: Path) -> None:
    def verbs() -> None:
        for text, status in ((TRAP.format(name="TERM"), 5), ("echo up; exec sleep 60", 143)):
            process = subprocess.Popen(
                command("start", "--rootfs", str(root), "--", "sh", "-c", text),
                stdout=subprocess.PIPE, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == status
            process.stdout.close()

    async def main(_: Path) -> None:
        await asyncio.to_thread(verbs)

    with_daemon(main)


def test_a_function_s_environment_is_in_no_list(root: Path) -> None:
    async def main() -> None:
        async with Runtime(Config(name="t1")) as runtime:
            function = Function(
                rootfs=str(root), command=("sleep", "60"), env={"PASSWORD": "hunter2"}
            )
            async with await runtime.start(function):
                text = msgspec.json.encode(runtime.running()) + msgspec.json.encode(
                    await runtime.events(0)
                )
                assert b"PASSWORD" not in text
                assert b"hunter2" not in text
            assert b"hunter2" not in msgspec.json.encode(runtime.ended())

    on_host(main)
