"""Python functions: what a fork inherits and what it does not, and zygotes that come and go."""

import asyncio
import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.support.agile_host import on_host
from tests.support.python_functions import Make, python_root, value, with_handlers

from firstlight.agile import Config, Function, Runtime
from firstlight.agile.config import Pools, PoolSize
from firstlight.agile.function import NodeFailed
from firstlight.agile.python.fork import Fork
from firstlight.agile.python.interpreter import Interpreter
from firstlight.agile.python.place import Place, Placer
from firstlight.agile.python.zygote import Zygote
from firstlight.errors import Failed

HANDLERS = """
import os, random, signal, socket, sys, time

AT_IMPORT = random.random()
signal.signal(signal.SIGUSR1, lambda *_: None)
random.seed(7)
COUNT = [0]

def echo(event):
    return event

def look(event):
    COUNT[0] += 1
    return {
        "count": COUNT[0],
        "at_import": AT_IMPORT,
        "random": random.random(),
        "hash": hash("first light"),
        "pid": os.getpid(),
        "processes": [name for name in os.listdir("/proc") if name.isdigit()],
        "descriptors": sorted(os.listdir("/proc/self/fd"), key=int)[:-1],
        "usr1": repr(signal.getsignal(signal.SIGUSR1)),
        "threads": len(os.listdir("/proc/self/task")),
        "status": dict(line.split(":\\t") for line in open("/proc/self/status") if ":\\t" in line),
        "cgroup": open("/proc/self/cgroup").read(),
        "network": os.readlink("/proc/self/ns/net"),
    }

def ping(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as s:
        s.settimeout(2)
        s.sendto(b"\\x08\\0\\0\\0\\0\\0\\0\\0", (address, 0))
        return len(s.recv(64)) > 0

def escape(_):
    said = {}
    for name, attempt in {
        "mount": lambda: os.system("mount -t tmpfs x /tmp 2>/dev/null") and 1 / 0,
        "chroot": lambda: os.chroot("/tmp"),
        "setuid": lambda: os.setuid(1),
        "write": lambda: open("/srv/x", "w"),
        "sysctl": lambda: open("/proc/sys/net/ipv4/ip_forward", "w"),
        "raw": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
        "host name": lambda: socket.sethostname("x"),
        "mknod": lambda: os.mknod("/tmp/n", 0o60666, os.makedev(254, 0)),
    }.items():
        try:
            attempt()
            said[name] = "ESCAPED"
        except (OSError, ZeroDivisionError):
            said[name] = "held"
    return said
"""


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system with these handlers."""
    return python_root(tmp_path_factory.mktemp("python"), {"handlers": HANDLERS})


def test_what_a_fork_inherits_and_what_not(python: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        look = function("look")
        first, second = [value(await runtime.invoke(look, None)) for _ in range(2)]
        assert first["count"] == second["count"] == 1, "one request saw what another changed"
        assert first["at_import"] == second["at_import"], "the import was not shared"
        assert first["hash"] == second["hash"]
        assert first["random"] != second["random"], "two forks draw the same random numbers"
        assert first["pid"] == second["pid"] == 2, "OpenSSL and others see a fork by its pid"
        assert first["processes"] == ["1", "2"], "1 is the runtime's own"
        assert first["descriptors"] == ["0", "1", "2", "3"], "3 is its event socket"
        assert "lambda" in first["usr1"]
        assert first["threads"] == 1
        status = {name: value.strip() for name, value in first["status"].items()}
        assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        ids = Path("/proc/self/ns/net").readlink()
        assert first["network"] != str(ids)

    with_handlers(python, main)


def test_a_root_without_an_interpreter_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        async with Runtime(Config(name="t6")) as runtime:
            bare = Function(rootfs=str(tmp_path), kind="python", handler="app:main")
            with pytest.raises(Failed, match=r"has no /usr/bin/python3"):
                await runtime.invoke(bare, None)

    on_host(main)


def test_a_fork_reaches_its_gateway_and_gets_no_further(python: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        assert bytes((await runtime.invoke(function("ping"), "10.213.0.1")).value) == b"true"
        message = value(await runtime.invoke(function("escape"), None))
        assert len(message) == 8
        assert set(message.values()) == {"held"}, message

    with_handlers(python, main)


def test_a_waiting_fork_answers_at_once(python: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        echo = function("echo")
        await runtime.prepare(echo, 3)
        result = await runtime.invoke(echo, {"a": [1, "ü"]})
        assert result.warm
        assert value(result) == {"a": [1, "ü"]}
        assert result.requested < result.began < result.finished

    with_handlers(python, main, Pools(fork=PoolSize(low=1, high=3)))


def test_one_fork_waits_ahead_until_its_function_rests(python: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        echo = function("echo")
        assert not (await runtime.invoke(echo, 1)).warm
        [zygote] = runtime._zygotes.values()
        for number in range(3):
            while not len(zygote.forks):
                await asyncio.sleep(0.001)
            result = await runtime.invoke(echo, number)
            assert (result.warm, value(result)) == (True, number)
        while not len(zygote.forks):
            await asyncio.sleep(0.001)
        assert len(zygote.forks) == 1
        zygote.follow()
        assert len(zygote.forks) == 1, "it was used within the window"
        zygote.forks._demand._clock = lambda: time.monotonic() + 601
        zygote.follow()
        assert len(zygote.forks) == 0
        assert not (await runtime.invoke(echo, 2)).warm

    with_handlers(python, main)


def test_prepare_fills_pools_for_forks_of_one_zygote(python: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        echo = function("echo")
        await runtime.prepare(echo)
        [zygote] = runtime._zygotes.values()
        before = zygote.pid
        await runtime.prepare(echo)
        assert zygote.pid == before
        ready = {pool.name: pool.ready for pool in runtime.pools()}
        assert ready.pop("place of handlers:echo") == 3
        assert ready.pop("fork handlers:echo") == 0
        [cgroups] = [name for name in ready if name.startswith("cgroup ")]
        assert ready[cgroups] == 2

    with_handlers(
        python, main, Pools(network=PoolSize(low=0, high=3), cgroup=PoolSize(low=0, high=2))
    )


def test_places_stay_as_many_as_were_needed_at_once(python: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        echo = function("echo")
        await runtime.invoke(echo, 0)
        [zygote] = runtime._zygotes.values()
        places = zygote._places
        assert places.counts().high <= 3, "for the request, and the next two"
        await runtime.prepare(echo)
        await asyncio.gather(*(runtime.invoke(echo, n) for n in range(5)))
        zygote.follow()
        assert places.counts().high == 4, "as many as were wanted at once, up to the mark"
        while not is_at_rest(zygote):
            await asyncio.sleep(0.001)
        assert len(places) == 4
        for pool in zygote.pools:
            pool._demand._clock = lambda: time.monotonic() + 601  # the window is over
        zygote.follow()
        assert (places.counts().high, len(places), len(zygote.forks)) == (4, 4, 0)
        await runtime.invoke(echo, 0)

    with_handlers(python, main, Pools(network=PoolSize(low=2, high=4)))


def is_at_rest(zygote: Zygote) -> bool:
    """Whether it has made all that is wanted ahead: no place is taken any more."""
    forks = zygote.forks
    is_armed = zygote._next is not None and zygote._next.done()
    return is_armed and len(forks) >= forks.counts().high and not zygote._places._demand.out


async def killed_zygote(runtime: Runtime) -> Zygote:
    """The only one, whose process has ended."""
    [zygote] = runtime._zygotes.values()
    assert zygote._up
    os.kill(zygote.pid, signal.SIGKILL)
    await asyncio.shield(zygote._up.instance.ended)
    return zygote


def test_a_killed_zygote_is_replaced(python: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        echo = function("echo")
        await runtime.invoke(echo, 1)
        zygote = await killed_zygote(runtime)
        before = zygote.pid
        assert bytes((await runtime.invoke(echo, 2)).value) == b"2"
        assert zygote.pid != before
        await runtime.prepare(echo, 2)
        await killed_zygote(runtime)
        assert bytes((await runtime.invoke(echo, 3)).value) == b"3"

    with_handlers(python, main, Pools(fork=PoolSize(low=1, high=3)))


def test_a_zygote_is_replaced_with_its_node(python: Path) -> None:
    """What was made before for its forks serves the next."""

    async def main(runtime: Runtime, function: Make) -> None:
        echo = function("echo")
        await runtime.prepare(echo, 1)
        [zygote] = runtime._zygotes.values()
        assert zygote._up
        os.kill(runtime.node, signal.SIGKILL)
        await asyncio.shield(zygote._up.instance.ended)
        assert [value(await runtime.invoke(echo, number)) for number in range(8)] == [*range(8)]

    with_handlers(python, main)


def test_event_at_node_end_is_answered_or_repeatable(python: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        for name in ("echo", "look"):
            await runtime.prepare(function(name), 1)
        for number in range(4):
            node = runtime.node
            os.kill(node, signal.SIGKILL)
            for name in ("echo", "look"):
                with suppress(NodeFailed):  # its fork had the event
                    value(await runtime.invoke(function(name), number))
            while runtime.node in (node, -1):
                await asyncio.sleep(0.001)
            assert value(await runtime.invoke(function("echo"), number)) == number

    with_handlers(python, main)


def test_event_waits_for_restarted_zygote(python: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        echo = function("echo")
        await runtime.invoke(echo, 1)
        await killed_zygote(runtime)
        events = [asyncio.create_task(runtime.invoke(echo, 0))]
        while not events[0].done():
            await asyncio.sleep(0.001)
            events.append(asyncio.create_task(runtime.invoke(echo, len(events))))
        assert [value(await event) for event in events] == list(range(len(events)))

    with_handlers(python, main, Pools(network=PoolSize(low=2, high=4)))


@pytest.mark.parametrize("ends", ["zygote", "fork"])
def test_a_fork_that_ends_as_it_is_verified_refuses_no_event(
    python: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """With its zygote or alone."""
    ready = Fork.ready

    async def main(runtime: Runtime, function: Make) -> None:
        made, answered, killed = 0, asyncio.Event(), asyncio.Event()

        async def second_ends(fork: Fork) -> None:
            nonlocal made
            made += 1
            await ready(fork)
            if made == 2:
                await answered.wait()
                [zygote] = runtime._zygotes.values()
                others = {zygote.pid, fork.place.pid}
                [pid] = runtime._cgroups.processes(fork.place.cgroup) - others
                kill_at_once(zygote.pid if ends == "zygote" else pid)
                killed.set()

        echo = function("echo")
        monkeypatch.setattr(Fork, "ready", second_ends)
        assert value(await runtime.invoke(echo, 1)) == 1
        answered.set()
        await killed.wait()
        assert value(await runtime.invoke(echo, 2)) == 2

    with_handlers(python, main)


def kill_at_once(pid: int) -> None:
    """Kill a process, and let nothing else run here until it and all below it have ended."""
    held = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(held, signal.SIGKILL)
        assert select.select([held], [], [], 60)[0], "it survives SIGKILL"
    finally:
        os.close(held)


def test_ended_zygotes_request_leaves_next_alone(
    python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, send = Placer.make, Interpreter.send

    async def main(runtime: Runtime, function: Make) -> None:
        made, ended = 0, asyncio.Event()

        async def second_late(*given: Any) -> Place:
            nonlocal made
            made += 1
            if made == 2:
                await ended.wait()
            return await make(*given)

        async def after_it(up: Interpreter, message: bytes, descriptors: list[int]) -> None:
            if message == b"fork":
                ended.set()
                await asyncio.wait([begun])
            await send(up, message, descriptors)

        echo = function("echo")
        monkeypatch.setattr(Placer, "make", second_late)
        await runtime.invoke(echo, 1)
        zygote = await killed_zygote(runtime)
        [begun] = filter(None, [zygote._next])
        assert not begun.done()
        monkeypatch.setattr(Interpreter, "send", after_it)
        assert value(await runtime.invoke(echo, 2)) == 2

    none = PoolSize(low=0, high=0)
    with_handlers(python, main, Pools(network=none, cgroup=none, fork=none))


def test_a_fork_that_cannot_be_asked_for_gives_its_parts_back(
    python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*_: object) -> None:
        raise Failed("the zygote is gone")

    async def main(runtime: Runtime, function: Make) -> None:
        def parts() -> tuple[int, ...]:
            held = [
                str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.exists()
            ]
            networks = runtime._networks
            addresses = networks._addresses._rings["outbound"]._used - set(
                networks._addresses._left
            )
            cgroups = [each for each in runtime._cgroups.tops[0].iterdir() if each.is_dir()]
            return len(addresses), len(cgroups), sum(each.startswith("net:") for each in held)

        echo = function("echo")
        await runtime.invoke(echo, 1)
        before = parts()
        with monkeypatch.context() as broken:
            broken.setattr(Interpreter, "send", gone)
            for _ in range(3):
                with pytest.raises(Failed, match="is gone"):
                    await runtime.invoke(echo, 1)
        [zygote] = runtime._zygotes.values()
        await asyncio.gather(*zygote._tasks, return_exceptions=True)
        assert all(now <= then for now, then in zip(parts(), before, strict=True))
        assert value(await runtime.invoke(echo, 2)) == 2

    none = PoolSize(low=0, high=0)
    with_handlers(python, main, Pools(network=none, cgroup=none, fork=none))


def test_a_burst_of_first_events_is_answered_by_one_zygote(
    python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    start = Zygote._start_interpreter

    async def counted(zygote: Zygote) -> Interpreter:
        started.append(zygote)
        return await start(zygote)

    monkeypatch.setattr(Zygote, "_start_interpreter", counted)

    async def main(runtime: Runtime, function: Make) -> None:
        echo = function("echo")
        results = await asyncio.gather(*(runtime.invoke(echo, n) for n in range(30)))
        assert [value(result) for result in results] == list(range(30))
        assert len(started) == 1

    with_handlers(python, main)


def test_a_runtime_stops_in_order_whatever_a_zygote_is_doing(python: Path) -> None:
    async def main() -> None:
        for turns in range(8):
            async with Runtime(Config(name="t4")) as runtime:
                echo = Function(
                    rootfs=str(python), kind="python", handler="handlers:echo", directory="/srv"
                )
                requests = [asyncio.create_task(runtime.invoke(echo, n)) for n in range(turns % 3)]
                assert value(await runtime.invoke(echo, 1)) == 1
                for _ in range(turns):
                    await asyncio.sleep(0)
            await asyncio.gather(*requests, return_exceptions=True)

    async def on() -> None:
        subprocess.run(["mount", "--bind", "/usr", python / "usr"], check=True)
        await main()

    on_host(on)
