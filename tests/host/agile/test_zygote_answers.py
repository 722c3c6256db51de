"""Handlers that do not answer as they should: each has an error of its own, and none hangs."""

import asyncio
import json
from contextlib import suppress
from pathlib import Path

import pytest
from tests.support.python_functions import Make, python_root, value, with_handlers

from firstlight.agile import Runtime, protocol
from firstlight.agile.function import HandlerFailed
from firstlight.errors import Failed

HANDLERS = r"""
import os, signal, subprocess, sys, time

class Odd(Exception):
    def __str__(self):
        raise SystemExit("odd")

def echo(event): return event
def boom(event): raise ValueError(f"no {event}")
def odd(_): raise Odd
def surrogate(_): return "\ud800"
def long_surrogate(_): return "x" * (1 << 16) + "\ud800"
def surrogate_in_exception(_): raise ValueError("\ud800")
def nan(_): return float("nan")
def infinity(_): return {"a": [float("inf")]}
def octets(_): return b"x"
def a_set(_): return {1, 2}
def endless(_):
    one = []; one.append(one); return one
def deep(_):
    one = []
    for _ in range(100_000): one = [one]
    return one
def keys(_): return {(1, 2): 3}
def hang(_): time.sleep(1000)
def prints_for_ever(_):
    while True: print("x" * 1000)
def leave(_): os._exit(3)
def fault(_): os.kill(os.getpid(), signal.SIGSEGV)
def stop(_): sys.exit(3)
def stop_with_words(_): sys.exit("enough")
def eat(_):
    kept = []
    while True: kept.append(bytearray(1 << 20))
def its_child_eats(_):
    subprocess.run([sys.executable, "-c", "kept = []\nwhile True: kept.append(bytearray(1 << 20))"])
    raise ValueError("it eats")
def large(size): return "x" * size
def garble(said):
    os.write(3, said.encode() + b"\n"); os._exit(0)
def closes_events(_): os.close(3); time.sleep(1000)
def closes_stdout(_):
    print("before", flush=True); sys.stdout.close(); return "answered"
def closes_one(_):
    os.close(1); os.close(2); return "answered"
def no_stdout(_):
    sys.stdout = sys.stderr = None; return "answered"
def talk(_):
    sys.stdout.write("x" * 3_000_000 + "the end"); return "done"
def binary(_):
    sys.stdout.buffer.write(bytes(range(256)) * 1000); return "done"
def leaves_a_child(_):
    subprocess.Popen(["sleep", "1000"]); print("said"); return "done"
def path(_):
    with open("/dev/stdout", "w") as out: out.write("a line by its path\n")
    return "written"
"""
IS_UNIFIED = Path("/sys/fs/cgroup/cgroup.controllers").exists()  # all end with the child there
FAILS = [
    ("boom", "more", "ValueError: no more"),
    ("odd", None, "odd raised:"),
    ("surrogate_in_exception", None, r"ValueError: \\ud800"),
    ("long_surrogate", None, "returned something that is not JSON: UnicodeEncodeError"),
    ("nan", None, "returned something that is not JSON: ValueError"),
    ("infinity", None, "returned something that is not JSON: ValueError"),
    ("octets", None, "returned something that is not JSON: TypeError: Object of type bytes"),
    ("a_set", None, "returned something that is not JSON: TypeError: Object of type set"),
    ("endless", None, "returned something that is not JSON: ValueError: Circular"),
    ("deep", None, "returned something that is not JSON: RecursionError"),
    ("keys", None, "returned something that is not JSON: TypeError: keys"),
    ("hang", None, "did not answer in 3.0 s"),
    ("prints_for_ever", None, "did not answer in 3.0 s"),
    ("leave", None, "ended without an answer"),
    ("fault", None, "ended without an answer"),
    ("stop", None, r"called sys.exit\(3\)"),
    ("stop_with_words", None, r"called sys.exit\('enough'\)"),
    ("eat", None, "exceeded its memory limit"),
    ("its_child_eats", None, "exceeded its memory limit" if IS_UNIFIED else "ValueError: it eats"),
    ("large", 9 << 20, "is longer than 8388608 bytes"),
    ("closes_events", None, "closed its descriptor 3"),
    ("missing", None, "cannot import answers:missing: .*has no attribute 'missing'"),
    ("garble", "nonsense", "wrote something other than an answer"),
    ("garble", "[" * 100_000, "wrote something other than an answer"),
    ("garble", '["began"]', "wrote something other than an answer"),
    ("garble", '{"began": "now"}', "wrote something other than an answer"),
    ("garble", '{"raised": 7}', "wrote something other than an answer"),
    ("garble", '{"began": 1, "result": NaN}', "wrote something other than an answer"),
    ("garble", "{}", "no reason given"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system with these handlers."""
    return python_root(tmp_path_factory.mktemp("answers"), {"answers": HANDLERS})


def test_zygote_failures_are_distinct_and_recoverable(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        for name, event, expected in FAILS:
            slow = name in ("hang", "prints_for_ever")
            bad = function(name, "answers", memory=64 << 20, timeout=3.0 if slow else 30.0)
            with pytest.raises(Failed, match=f"(?s){expected}"):
                await runtime.invoke(bad, event)
        assert value(await runtime.invoke(function("echo", "answers"), 1)) == 1

    with_handlers(root, main)


def test_how_a_handler_ended_its_process_is_reported(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        for name, expected in (("leave", "exit status 3"), ("fault", "SIGSEGV")):
            with pytest.raises(Failed) as caught:
                await runtime.invoke(function(name, "answers"), None)
            if caught.value.message.endswith("without an answer"):
                pytest.skip("before Linux 6.15 a process that is not ours does not tell its status")
            assert expected in caught.value.message

    with_handlers(root, main)


@pytest.mark.parametrize("name", ["closes_stdout", "closes_one", "no_stdout"])
def test_a_handler_without_a_standard_output_answers(root: Path, name: str) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        assert value(await runtime.invoke(function(name, "answers"), None)) == "answered"

    with_handlers(root, main)


def test_the_end_of_output_is_kept_and_costs_no_answer(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        talk = await runtime.invoke(function("talk", "answers"), None)
        assert (value(talk), talk.stdout) == ("done", "x" * 65529 + "the end")
        binary = await runtime.invoke(function("binary", "answers"), None)
        assert value(binary) == "done"
        assert "\N{REPLACEMENT CHARACTER}" in binary.stdout
        assert len(json.dumps(binary.stdout)) > 65536

    with_handlers(root, main)


def test_half_a_surrogate_pair_is_answered_as_an_escape(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        answer = await runtime.invoke(function("surrogate", "answers"), None)
        assert bytes(answer.value) == rb'"\ud800"'
        with pytest.raises(HandlerFailed, match="half a surrogate pair"):
            protocol.invoked(answer)  # clients of the socket cannot read it
        assert protocol.invoked(await runtime.invoke(function("echo", "answers"), "\\ud"))

    with_handlers(root, main)


def test_output_can_be_opened_by_its_path(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        message = await runtime.invoke(function("path", "answers"), None)
        assert (value(message), message.stdout) == ("written", "a line by its path\n")

    with_handlers(root, main)


def test_who_leaves_while_a_fork_is_made_ends_nothing_but_it(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        echo = function("echo", "answers")
        assert value(await runtime.invoke(echo, 1)) == 1
        [zygote] = runtime._zygotes.values()
        before = zygote.pid
        for turns in range(12):
            leaving = asyncio.create_task(runtime.invoke(echo, 2))
            for _ in range(turns):
                await asyncio.sleep(0)
            leaving.cancel()
            with suppress(asyncio.CancelledError):  # unless it has its answer
                await leaving
            assert value(await runtime.invoke(echo, 3)) == 3
        assert zygote.pid == before

    with_handlers(root, main)


def test_an_answer_ends_what_the_handler_started(root: Path) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        left = await runtime.invoke(function("leaves_a_child", "answers"), None)
        assert (value(left), left.stdout) == ("done", "said\n")

    with_handlers(root, main)


@pytest.mark.parametrize("size", [0, 192 << 10, 1 << 20, (8 << 20) - 100])
def test_an_answer_comes_whole_up_to_the_limit(root: Path, size: int) -> None:
    async def main(runtime: Runtime, function: Make) -> None:
        request = function("large", "answers", memory=256 << 20)
        assert value(await runtime.invoke(request, size)) == "x" * size

    with_handlers(root, main)
