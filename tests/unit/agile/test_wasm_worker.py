"""The worker of WebAssembly functions under the sanitizers, without a sandbox and without root."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest
from tests.support.laboratory import compiled
from tests.support.wasm_modules import ANSWERS, CALLS, COMMAND, FILES, MODULE

from firstlight.agile.wasm import wire, workers
from firstlight.agile.wasm.wire import Reply, WasmOutcome

wasmtime = pytest.importorskip("wasmtime", reason="the extra 'wasm' is not installed")

NATIVE = Path(__file__).parents[3] / "native/agile"
# wasmtime's traps are signals, which it handles itself.
SANITIZERS = "handle_segv=0:handle_sigill=0:handle_sigfpe=0:handle_sigbus=0:use_sigaltstack=0"


class Worker:
    """A process, and a connection to it."""

    def __init__(self, words: list[str]) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {**os.environ, "ASAN_OPTIONS": f"{SANITIZERS}:detect_leaks=0"}
        with theirs:
            self.process = subprocess.Popen(
                words, stdin=theirs.fileno(), stderr=subprocess.PIPE, env=environment, text=True
            )
        self.connection = self.connect()

    def connect(self) -> socket.socket:
        """Another connection to it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, suppress(BrokenPipeError):  # it may have ended, which is for the test to see
            socket.send_fds(self.control, [b"connection"], [theirs.fileno()])
        ours.settimeout(60)
        return ours

    def ask(self, *events: bytes) -> list[Reply]:
        """The results of one message's events."""
        self.connection.send(wire.request(1, events))
        replies: list[Reply] = []
        while len(replies) < len(events):
            _, first, some = wire.answer(self.connection.recv(wire.MESSAGE_MAX))
            assert first == len(replies)
            replies += some
        return replies

    def end(self) -> tuple[int, str]:
        """Its exit status, once its control socket has ended, and what it wrote."""
        self.connection.close()
        self.control.close()
        _, words = self.process.communicate(timeout=60)
        return self.process.returncode, words


Run = Callable[..., AbstractContextManager[Worker]]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = [str(each) for each in NATIVE.glob("wasm*.c") if each.name != "wasm_worker.c"]
    sources.append(str(NATIVE.parent / "common" / "socket.c"))
    return compiled(
        NATIVE / "wasm_worker.c", tmp_path_factory.mktemp("worker") / "worker", *sources,
        f"-I{NATIVE.parent}", "-pthread", "-ldl",
        "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
    )  # fmt: skip


@pytest.fixture
def run(program: Path, tmp_path: Path) -> Run:
    (tmp_path / "files").mkdir()

    @contextmanager
    def start(text: str | bytes, handler: str, seconds: float = 20.0) -> Iterator[Worker]:
        module = tmp_path / "module"
        module.write_bytes(wasmtime.wat2wasm(text) if isinstance(text, str) else text)
        worker = Worker([
            str(program), str(workers._library()), str(module), str(tmp_path / "files"),
            str(128 << 20), str(workers.ELEMENTS), str(int(seconds * 1e9)), "4", handler, "f",
        ])  # fmt: skip
        try:
            yield worker
        finally:
            worker.process.kill()
            worker.process.communicate()

    return start


@pytest.mark.parametrize(
    ("text", "handler", "event", "answer"),
    ANSWERS,
    ids=[f"{handler} {event}" for _, handler, event, _ in ANSWERS],
)
def test_it_answers_and_ends_in_order(
    run: Run, text: str | bytes, handler: str, event: list[int], answer: object
) -> None:
    with run(text, handler) as worker:
        values = [list(reply.values) for reply in worker.ask(*[wire.event(event)] * 3)]
        assert values == [answer if isinstance(answer, list) else [answer]] * 3
        assert worker.end() == (0, "")


@pytest.mark.parametrize(
    ("text", "handler", "outcome"),
    [
        (MODULE, "spin", WasmOutcome.LATE),
        (MODULE, "trap", WasmOutcome.TRAPPED),
        (MODULE, "deep", WasmOutcome.TRAPPED),
        (MODULE, "outside", WasmOutcome.TRAPPED),
        (MODULE, "next", WasmOutcome.REFUSED),
        (COMMAND, "_start", WasmOutcome.RETURNED),
        (CALLS, "nowhere", WasmOutcome.TRAPPED),
    ],
)
def test_what_fails_does_so_in_order(
    run: Run, text: str, handler: str, outcome: WasmOutcome
) -> None:
    with run(text, handler, 0.1) as worker:
        assert [reply.outcome for reply in worker.ask(*[wire.event()] * 3)] == [outcome] * 3
        assert worker.end() == (0, "")


def test_a_handler_takes_and_returns_at_most_64_values(run: Run) -> None:
    def module(count: int) -> str:
        values = "i64 " * count
        body = " ".join(f"local.get {number}" for number in range(count))
        return f'(module (func (export "f") (param {values}) (result {values}) {body}))'

    with run(module(64), "f") as worker:
        assert worker.ask(wire.event(list(range(64))))[0].values == tuple(range(64))
        assert worker.end() == (0, "")
    with run(module(65), "f") as worker:
        status, output = worker.end()
        assert status == workers._REFUSED
        assert "f takes 65 values\nat most 64 are possible" in output


def test_files_are_removed_however_deep(run: Run, tmp_path: Path) -> None:
    with run(FILES, "deep") as worker:
        assert worker.ask(wire.event([300]))[0].values == (300,)
        assert list((tmp_path / "files").iterdir()) == []
        assert worker.end() == (0, "")


def test_a_file_that_is_no_module_is_reported(run: Run) -> None:
    for text, words in (
        (b"none", "not a WebAssembly module"),
        (b"\0asm\1\0\0\0\xff", "not a valid"),
    ):
        with run(text, "f") as worker:
            status, output = worker.end()
            assert status == workers._REFUSED
            assert words in output


def test_worker_ends_with_its_last_client(run: Run) -> None:
    with run(MODULE, "next") as worker:
        worker.connection.close()
        other = worker.connect()  # it was there for the next
        worker.control.shutdown(socket.SHUT_RDWR)
        other.send(wire.request(1, [wire.event([1])]))
        assert wire.answer(other.recv(wire.MESSAGE_MAX))[2][0].values == (2,)
        assert worker.process.poll() is None
        other.close()
        assert worker.process.wait(30) == 0


def test_an_event_is_answered_to_who_sent_it(run: Run) -> None:
    """Connections come and go meanwhile, in the places of others."""
    with run(MODULE, "next") as worker:
        for number in range(300):
            clients = [worker.connect() for _ in range(3)]
            for place, client in enumerate(clients):
                client.send(wire.request(number, [wire.event([3 * number + place])]))
            for place, client in enumerate(clients):
                if place != number % 3:  # one leaves before it is answered
                    identity, _, [reply] = wire.answer(client.recv(wire.MESSAGE_MAX))
                    assert (identity, reply.values) == (number, (3 * number + place + 1,))
                client.close()
        assert worker.end() == (0, "")
