"""WebAssembly functions: what they answer, and what stops them.

Their worker is an instance like any other, whose confinement is tested in test_escape.py; here it
is what WebAssembly adds. A row of a table is a module, a handler, an event and what comes of it.
"""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.agile_host import on_host
from tests.support.wasm_modules import (
    ANSWERS,
    CALLS,
    COMMAND,
    FILES,
    MODULE,
    REACTOR,
    TABLE,
    TALK,
    WORDS,
    data,
    functions,
    large,
)

from firstlight.agile import Config, Function, Runtime
from firstlight.agile.wasm import wire, workers
from firstlight.agile.wasm.wire import WasmOutcome
from firstlight.errors import Failed

wasmtime = pytest.importorskip("wasmtime", reason="the extra 'wasm' is not installed")

Make = Callable[..., Function]
MEBIBYTE = 1 << 20


@pytest.fixture
def made(tmp_path: Path) -> Make:
    """Makes a function of a module's text."""
    tmp_path.chmod(0o755)

    def make(text: str | bytes, handler: str, **more: object) -> Function:
        path = tmp_path / f"{abs(hash(text))}.wasm"
        if not path.exists():
            path.write_bytes(wasmtime.wat2wasm(text) if isinstance(text, str) else text)
        more = {"timeout": 20.0, **more}
        return Function(rootfs=str(path), kind="wasm", handler=handler, **more)  # type: ignore[arg-type]

    return make


def with_runtime(main: Callable[[Runtime], Awaitable[None]]) -> None:
    async def inside() -> None:
        async with Runtime(Config(name="t6")) as runtime:
            await main(runtime)

    on_host(inside)


async def value(runtime: Runtime, function: Function, *arguments: object) -> object:
    return msgspec.json.decode((await runtime.invoke(function, list(arguments))).value)


async def failure(runtime: Runtime, function: Function, event: object) -> Failed:
    with pytest.raises(Failed) as failed:
        await runtime.invoke(function, event)
    return failed.value


def worker(runtime: Runtime) -> int:
    """The pid of the only worker."""
    [instance] = runtime.running()
    return instance.pid


def test_it_answers(made: Make) -> None:
    async def main(runtime: Runtime) -> None:
        answers = [
            await value(runtime, made(text, handler), *event) for text, handler, event, _ in ANSWERS
        ]
        assert answers == [answer for *_, answer in ANSWERS]

    with_runtime(main)


FAILURES: list[tuple[str, str, Any, str]] = [
    (MODULE, "spin", [], "spin did not answer in 0.2 s"),
    (MODULE, "trap", [], "trap trapped: wasm `unreachable` instruction executed"),
    (MODULE, "outside", [], "outside trapped: out of bounds memory access"),
    (MODULE, "deep", [], "deep trapped: call stack exhausted"),
    (MODULE, "nan", [], "nan returned nan"),
    (MODULE, "memory", [], "is not a function"),
    (MODULE, "missing", [], "exports no 'missing'"),
    (MODULE, "vector", [], "vector takes what is not a number"),
    (MODULE, "next", [], "next takes 1 numbers and was given 0"),
    (MODULE, "next", [1, 2], "next takes 1 numbers and was given 2"),
    (MODULE, "next", [1.5], "takes an i32 as number 1, which 1.5 is not"),
    (MODULE, "next", [2**32], "takes an i32 as number 1, which 4294967296 is not"),
    (MODULE, "next", [2**63], "does not fit 64 bits"),
    (MODULE, "next", ["x"], "takes numbers"),
    (MODULE, "next", [True], "takes numbers"),
    (MODULE, "next", {"a": 1}, "takes numbers"),
    (COMMAND, "_start", "three", "_start exited with status 3"),
    (CALLS, "exit", [0], "exit exited with status 0"),
    (CALLS, "exit", [7], "exit exited with status 7"),
    (CALLS, "sleep", [2**62], "sleep did not answer in 0.2 s"),
    (CALLS, "nowhere", [], "nowhere trapped: Pointer out of bounds"),
    ('(module (func $s (loop br 0)) (start $s) (func (export "f")))', "f", [], "did not answer"),
    ('(module (func $s unreachable) (start $s) (func (export "f")))', "f", [], "unreachable"),
    ('(module (func (export "_initialize") (loop br 0)) (func (export "f")))', "f", [],
     "did not answer"),
]  # fmt: skip


def test_what_fails_says_so_and_the_next_is_served(made: Make) -> None:
    async def main(runtime: Runtime) -> None:
        for text, handler, event, words in FAILURES:
            bad = made(text, handler, timeout=0.2)
            with pytest.raises(Failed, match=words):
                await runtime.invoke(bad, event)
            assert await value(runtime, made(MODULE, "next"), 1) == 2

    with_runtime(main)


REFUSED: list[tuple[str | bytes, str]] = [
    ('(module (import "host" "f" (func)) (func (export "run")))', "imports host.f"),
    (f'(module (import "{"x" * 5000}" "f" (func)) (func (export "run")))', "imports x"),
    ('(module (import "wasi_snapshot_preview1" "nope" (func)) (func (export "run")))', "nope"),
    ('(module (memory 1 1 shared) (func (export "run")))', "shared"),
    ('(module (memory i64 1) (func (export "run")))', "64"),
    ("(module " + "(memory 16)" * 150 + ' (func (export "run")))', "multiple memories"),
    ('(module (memory 65536) (func (export "run")))', "memory has a minimum"),
    ('(module (table 100000000 funcref) (func (export "run")))', "exceeds the limit of 65536"),
    ("(module " + "(table 9 funcref)" * 20 + ' (func (export "run")))', "tables count of 20"),
    ('(module (tag $t) (func (export "run") (throw $t)))', "exceptions"),
    ('(module (type (struct (field i32))) (func (export "run")))', "gc|struct"),
    (b"no module", "not a WebAssembly module"),
    (b"", "not a WebAssembly module"),
    (b"\0asm\1\0\0\0\xff\xff", "not a valid WebAssembly module"),
    (b"\0asm\r\0\1\0", "component"),
]


def test_a_module_that_it_cannot_run_is_refused_by_name(made: Make) -> None:
    async def main(runtime: Runtime) -> None:
        for text, words in REFUSED:
            with pytest.raises(Failed, match=words) as failed:
                await runtime.invoke(made(text, "run"), [])
            assert failed.value.message.startswith("cannot run the module /")
        whole = Path(made(MODULE, "next").rootfs).read_bytes()
        with pytest.raises(Failed, match="not a valid"):
            await runtime.invoke(made(whole[: len(whole) // 2], "next"), [1])

    with_runtime(main)


def test_what_is_no_file_is_refused_and_nobody_waits(made: Make, tmp_path: Path) -> None:
    fifo, big, secret = tmp_path / "fifo", tmp_path / "big", tmp_path / "secret"
    os.mkfifo(fifo)
    with big.open("wb") as file:
        file.truncate(workers.MODULE_MAX + 1)
    secret.write_bytes(Path(made(MODULE, "next").rootfs).read_bytes())
    secret.chmod(0o600)
    rows = [
        (fifo, "is a FIFO"), (tmp_path, "is a directory"), (Path("/dev/zero"), "is a device"),
        (tmp_path / "none", "does not exist"), (big, f"at most {workers.MODULE_MAX}"),
        (secret, "readable for the function's user"),
    ]  # fmt: skip

    async def main(runtime: Runtime) -> None:
        for path, words in rows:
            failed = await failure(
                runtime, Function(rootfs=str(path), kind="wasm", handler="next"), [1]
            )
            assert words in f"{failed.message} {failed.hint}"

    with_runtime(main)


def test_an_instance_starts_anew_each_time(made: Make) -> None:
    async def main(runtime: Runtime) -> None:
        for text, handler, event, answer in (
            (MODULE, "count", [], 1), (MODULE, "mark", [], 1), (REACTOR, "scale", [6], 42),
            (TABLE, "grow", [10], 1), (FILES, "open", [16, 4 | 1], 0),  # exclusively
        ):  # fmt: skip
            function = made(text, handler)
            # At once, too: by neighbours in other threads, and one after another in one message.
            alone = await asyncio.gather(
                *(value(runtime, function, *event) for _ in range(3 * workers.THREADS))
            )
            assert alone == [answer] * len(alone)
            worker = runtime._wasms.values()[-1]
            together = await worker.invoke_all([event] * 50, 0)
            assert [msgspec.json.decode(each.value) for each in together] == [answer] * 50  # type: ignore[union-attr]
        draws = {await value(runtime, made(CALLS, "random")) for _ in range(20)}
        assert len(draws) == 20

    with_runtime(main)


def test_a_command_has_input_words_and_outputs(made: Make) -> None:
    async def main(runtime: Runtime) -> None:
        result = await runtime.invoke(made(COMMAND, "_start"), {"a": 1})
        assert (result.stdout, result.stderr, bytes(result.value)) == ('{"a":1}',) * 2 + (b"null",)
        words = made(
            WORDS, "_start", command=("two", "drei €"), env={"A": "b=c", "LD_PRELOAD": "x"}
        )
        result = await runtime.invoke(words, None)
        assert result.stdout.split("\0")[1:] == ["two", "drei €", "A=b=c", "LD_PRELOAD=x", ""]
        running = [
            Path(f"/proc/{instance.pid}/cmdline").read_bytes() for instance in runtime.running()
        ]
        assert not any(b"b=c" in line for line in running)  # which other users may read
        for more, wrong in (
            ({"command": ("\udcff",)}, "not UTF-8"),
            ({"env": {"A": "\udcff"}}, "not UTF-8"),
            ({"env": {"A\0": "b"}}, "NUL"),
        ):
            failed = await failure(runtime, made(WORDS, "_start", **more), None)
            assert wrong in failed.message
        talk = await runtime.invoke(made(TALK, "talk"), [500])
        assert 0 < len(talk.stdout) <= 48 * 1024

    with_runtime(main)


def test_files_of_an_instance_are_gone_however_deep(made: Make) -> None:
    async def main(runtime: Runtime) -> None:
        deep = made(FILES, "deep", files=4096)
        assert await value(runtime, deep, 700) == 700
        assert list(Path(f"/proc/{worker(runtime)}/root/tmp").iterdir()) == []
        fill = made(FILES, "fill", scratch=MEBIBYTE)
        assert [await value(runtime, fill) for _ in range(3)] == [17] * 3  # 16 pages of 64 KiB

    with_runtime(main)


def test_the_worker_is_confined_as_any_instance(made: Make) -> None:
    async def main(runtime: Runtime) -> None:
        await value(runtime, made(MODULE, "next", uid=4242, gid=4343), 1)
        pid = worker(runtime)
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
        assert status["Uid"] == ["4242"] * 4
        assert status["Gid"] == ["4343"] * 4
        assert all(int(status[f"Cap{kind}"][0], 16) == 0 for kind in ("Eff", "Prm", "Bnd", "Amb"))
        assert status["NoNewPrivs"] == ["1"]
        assert status["Seccomp_filters"] == ["3"]  # the node's, the sandbox's, and its own
        for space in ("mnt", "pid", "net", "ipc", "uts", "cgroup"):
            assert (
                Path(f"/proc/{pid}/ns/{space}").readlink()
                != Path(f"/proc/self/ns/{space}").readlink()
            )
        root = Path(f"/proc/{pid}/root")
        seen = {path.name for top in ("", "lib") for path in (root / top).iterdir()}
        others = {name for name in seen if not name.startswith("lib")}
        assert others == {"worker", "module", "proc", "dev", "tmp"}
        assert "firstlight.agile.t6" in Path(f"/proc/{pid}/cgroup").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        assert command.startswith(b"/worker\0")

    with_runtime(main)


def test_the_daemon_holds_nothing_of_a_module(made: Make) -> None:
    async def main(runtime: Runtime) -> None:
        maps = Path("/proc/self/maps")
        before = maps.read_text().count("libwasmtime")  # by this test, which makes the modules
        assert await value(runtime, made(TABLE, "grow", memory=2 * MEBIBYTE), 20_000_000) == -1
        assert maps.read_text().count("libwasmtime") == before
        [instance] = runtime.running()
        text = Path(f"/proc/{instance.pid}/maps").read_text()
        assert "libwasmtime" in text

    with_runtime(main)


async def turns(until: "asyncio.Future[Any]") -> int:
    """How often this event loop went round meanwhile: a few times if the work held it."""
    count = 0
    while not until.done():
        await asyncio.sleep(0)
        count += 1
    return count


def test_neither_guests_nor_the_compiler_hold_the_loop(made: Make) -> None:
    async def main(runtime: Runtime) -> None:
        module = made(large(600), "run")
        compiled = asyncio.ensure_future(runtime.invoke(module, []))
        assert await turns(compiled) > 500
        await compiled
        spins = [runtime.invoke(made(MODULE, "spin", timeout=0.5), []) for _ in range(16)]
        spinning = asyncio.gather(*spins, return_exceptions=True)
        assert await turns(spinning) > 500

    async def held() -> None:
        for _ in range(16):
            time.sleep(0.01)
            await asyncio.sleep(0)

    async def control() -> None:
        assert await turns(asyncio.ensure_future(held())) < 100

    with_runtime(main)
    asyncio.run(control())


def test_the_clock_ends_what_begins_when_it_goes_to_sleep(made: Make) -> None:
    """It sleeps after 20 ticks of 5 ms without an instance; a guest may begin just then."""

    async def main(runtime: Runtime) -> None:
        function = made(MODULE, "spin", timeout=0.01)
        for number in range(40):
            failed = await failure(runtime, function, [])
            assert "did not answer" in failed.message
            await asyncio.sleep(0.09 + number * 0.0005)

    with_runtime(main)


def test_a_module_that_takes_too_long_to_compile_is_given_up(
    made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "COMPILE_SECONDS", 0.3)

    async def main(runtime: Runtime) -> None:
        with pytest.raises(Failed, match=r"compiling .* took more than 0.3 s"):
            await runtime.invoke(made(large(3000), "run", timeout=0.3), [])
        await asyncio.wait_for(_none_left(runtime), 60)
        assert await value(runtime, made(MODULE, "next"), 1) == 2

    with_runtime(main)


def test_a_module_of_many_functions_is_compiled(made: Make) -> None:
    async def main(runtime: Runtime) -> None:
        assert await value(runtime, made(functions(100_000), "run", timeout=50.0)) == 1

    with_runtime(main)


async def _none_left(runtime: Runtime) -> None:
    while runtime.running():
        await asyncio.sleep(0.01)


def test_killed_worker_fails_requests_and_restarts(made: Make) -> None:
    async def main(runtime: Runtime) -> None:
        spin, good = made(MODULE, "spin"), made(MODULE, "next")
        assert await value(runtime, good, 1) == 2
        for _ in range(2):
            waiting = [asyncio.ensure_future(runtime.invoke(spin, [])) for _ in range(12)]
            while len(runtime.running()) < 2:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0)
            [pid] = [each.pid for each in runtime.running() if "spin" in each.function.command]
            os.kill(pid, signal.SIGKILL)
            for each in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(each, Failed)
                assert "the worker of spin ended: killed by SIGKILL" in each.message
            assert await value(runtime, good, 1) == 2
            assert await value(runtime, made(MODULE, "next"), 1) == 2

    with_runtime(main)


def test_a_worker_out_of_memory_says_so(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WORKER_BYTES", 16 * MEBIBYTE)

    async def main(runtime: Runtime) -> None:
        failed = await failure(runtime, made(data(40 * MEBIBYTE), "run", memory=2 * MEBIBYTE), [])
        assert "exceeded its memory limit" in failed.message
        assert failed.hint
        assert "compiler" in failed.hint

    with_runtime(main)


def test_a_full_queue_is_an_error_with_a_name(made: Make) -> None:
    async def main(runtime: Runtime) -> None:
        function = made(MODULE, "spin", timeout=0.3)
        with pytest.raises(Failed, match="did not answer"):
            await runtime.invoke(function, [])
        serving = runtime._wasms.values()[0]
        waiting = asyncio.ensure_future(serving.invoke_all([[]] * 4096, 0))
        await asyncio.sleep(0)
        while not serving._serving or not serving._serving.channel.waiting:
            await asyncio.sleep(0.001)
        failed = await failure(runtime, function, [])
        assert "4096 events are waiting for the worker of spin" in failed.message
        waiting.cancel()
        assert await value(runtime, made(MODULE, "next"), 1) == 2

    with_runtime(main)


def test_new_code_is_served_and_what_runs_is_not_disturbed(made: Make, tmp_path: Path) -> None:
    path = tmp_path / "code.wasm"

    def deploy(number: int) -> None:
        fresh = tmp_path / "fresh"
        text = f'(module (func (export "run") (result i32) i32.const {number}))'
        fresh.write_bytes(wasmtime.wat2wasm(text))
        fresh.rename(path)

    async def main(runtime: Runtime) -> None:
        function = Function(rootfs=str(path), kind="wasm", handler="run")
        for number in range(3):
            deploy(number)
            if number:
                await asyncio.sleep(
                    workers._STALE_SECONDS
                )  # as long as an old module may be served
            assert await value(runtime, function) == number

    with_runtime(main)


def test_what_nobody_asks_for_ends_and_is_forgotten(
    made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "IDLE_SECONDS", 0.3)

    async def main(runtime: Runtime) -> None:
        for number in range(5):  # each a function of its own
            await value(runtime, made(MODULE, "next", env={"N": str(number)}), 1)
        kept = made(MODULE, "next", env={"N": "kept"})
        with await runtime.attach(kept) as client:
            while len(runtime.running()) > 1 or len(runtime._wasms.values()) > 1:
                await asyncio.sleep(0.05)
            assert await value(runtime, kept, 1) == 2  # by another
            while len(runtime.running()) > 1:
                await asyncio.sleep(0.05)
            client.setblocking(True)
            client.send(wire.request(1, [wire.event([5])]))
            [reply] = wire.answer(client.recv(wire.MESSAGE_MAX))[2]
            assert reply.values == (6,)
        await asyncio.wait_for(_none_left(runtime), 60)
        assert runtime._wasms.values() == []

    with_runtime(main)


def test_a_client_speaks_to_the_worker_itself(made: Make) -> None:
    async def main(runtime: Runtime) -> None:
        count, odd = made(MODULE, "count"), made(MODULE, "next")
        with await runtime.attach(count) as first, await runtime.attach(odd) as second:
            await asyncio.to_thread(speak, first, second)
        with await runtime.attach(count) as hurt:
            await asyncio.to_thread(speak_badly, hurt)
        assert await value(runtime, count) == 1

    with_runtime(main)


def speak(first: socket.socket, second: socket.socket) -> None:
    events = [wire.event()] * 3000
    first.settimeout(60)
    second.settimeout(60)
    first.send(wire.request(7, events))
    replies: list[wire.Reply] = []
    while len(replies) < len(events):
        identity, place, some = wire.answer(first.recv(wire.MESSAGE_MAX))
        assert (identity, place) == (7, len(replies))
        replies += some
    assert {reply.values for reply in replies} == {(1,)}
    numbers = range(2000)
    second.send(wire.request(8, [wire.event([n]) for n in numbers]))
    second.send(wire.request(9, [wire.event([0.5])]))
    answers: dict[int, list[wire.Reply]] = {8: [], 9: []}
    while len(answers[8]) < len(numbers) or not answers[9]:
        identity, _, some = wire.answer(second.recv(wire.MESSAGE_MAX))
        answers[identity] += some
    assert [reply.values for reply in answers[8]] == [(n + 1,) for n in numbers]
    assert answers[9][0].outcome is WasmOutcome.REFUSED


def speak_badly(connection: socket.socket) -> None:
    """What is no request ends the connection, and nobody else's."""
    connection.settimeout(60)
    connection.send(b"\xff" * 100)
    assert connection.recv(100) == b""


def test_a_client_that_does_not_read_holds_nobody(made: Make) -> None:
    async def main(runtime: Runtime) -> None:
        function = made(MODULE, "next")
        message = wire.request(1, [wire.event([1])] * 3000)
        with await runtime.attach(function) as deaf:
            deaf.setblocking(False)
            sent = 0
            while sent < 40:
                try:
                    deaf.send(message)
                    sent += 1
                except BlockingIOError:
                    break
                except BrokenPipeError:
                    break
            answers = await asyncio.wait_for(
                asyncio.gather(*(value(runtime, function, n) for n in range(100))), 15
            )
            assert answers == [n + 1 for n in range(100)]

    with_runtime(main)


def test_a_worker_enters_its_root_whatever_the_umask(made: Make) -> None:
    """Which is the caller's again afterwards."""

    async def main() -> None:
        before = os.umask(0o077)
        try:
            async with Runtime(Config(name="t6")) as runtime:
                assert await value(runtime, made(MODULE, "next"), 41) == 42
            assert os.umask(before) == 0o077
        finally:
            os.umask(before)

    on_host(main)
