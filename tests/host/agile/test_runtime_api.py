"""Functions that fetch their events: unmodified awslambdaric handlers, and shell bootstraps."""

import asyncio
import json
import os
import re
import subprocess
import time
from pathlib import Path

import msgspec
import pytest
from tests.support.agile_host import on_host
from tests.support.lambda_functions import call, function, lambda_root, with_serving

from firstlight.agile import Config, Runtime
from firstlight.agile.functions.version import FunctionVersion
from firstlight.agile.network.networks import Network
from firstlight.agile.serving import Serving

HANDLERS = """
import json, os, sys, time
COUNT = 0

def echo(event, context):
    global COUNT
    COUNT += 1
    print("seen", COUNT)
    return {"event": event, "count": COUNT}

def look(event, context):
    return {
        "id": context.aws_request_id,
        "left": context.get_remaining_time_in_millis(),
        "arn": context.invoked_function_arn,
        "name": context.function_name,
        "version": context.function_version,
        "memory": context.memory_limit_in_mb,
        "custom": context.client_context and context.client_context.custom,
        "trace": os.environ.get("_X_AMZN_TRACE_ID"),
        "handler": os.environ["_HANDLER"],
        "own": os.environ.get("OWN"),
    }

def fails(event, context):
    raise ValueError("no such cow")

def exits(event, context):
    print("last words")
    sys.stdout.flush()
    os._exit(7)

def says(event, context):
    sys.exit("nothing to do")

def escapes(event, context):
    raise KeyboardInterrupt("stop")

def either(event, context):
    if event:
        os._exit(7)
    print("words of another event", flush=True)

def hangs(event, context):
    print("going to sleep", flush=True)
    time.sleep(600)

def not_json(event, context):
    return object()

def large(event, context):
    return "x" * (7 << 20)

def talks(event, context):
    print("y" * 1000000)
    print("the end", flush=True)
    return 1

def pid(event, context):
    time.sleep(event)
    return os.environ["AWS_LAMBDA_LOG_STREAM_NAME"]
"""
TRACE = "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700"
OPENED = """
import asyncio
LOOP, TEXT = asyncio.new_event_loop(), open(__file__)
with open("/tmp/written", "w") as file:
    file.write("kept")

def main(event, context):
    return [LOOP.run_until_complete(asyncio.sleep(0, "ran")), TEXT.read(8),
            open("/tmp/written").read()]
"""
BROKEN = "raise RuntimeError('cannot load the model')\n"
BOOTSTRAP = """#!/bin/bash
set -eu
base=http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime
while :; do
  head=$(mktemp)
  event=$(curl -sS -D $head $base/invocation/next)
  id=$(tr -d '\\r' < $head | sed -n 's/^[Ll]ambda-[Rr]untime-[Aa]ws-[Rr]equest-[Ii]d: //p')
  case $event in
    *fail*) curl -sS -o /dev/null -d '{"errorType":"Own.Error","errorMessage":"as told"}' \\
              $base/invocation/$id/error ;;
    *) curl -sS -o /dev/null -d "{\\"got\\": $event}" $base/invocation/$id/response ;;
  esac
done
"""


LOGS = """
import logging, os
assert os.environ["AWS_LAMBDA_LOG_STREAM_NAME"]
logging.basicConfig(format="own %(message)s")
logging.getLogger().setLevel("INFO")
def main(event, context):
    logging.info("said once")
    return [type(each).__name__ for each in logging.getLogger().handlers]
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {
        "logs.py": LOGS,
        "logs_alone.py": f"{LOGS}\nKEPT = open(__file__)\n",
        "app.py": HANDLERS,
        "broken.py": BROKEN,
        "opened.py": OPENED,
        "bootstrap": BOOTSTRAP,
    }
    return lambda_root(tmp_path_factory.mktemp("lambda"), files)


def test_a_handler_answers_cold_and_then_warm(root: Path) -> None:
    async def main(serving: Serving) -> None:
        echo = function(root, "app.echo")
        first = await call(serving, echo, b'{"a": [1, "\xc3\xbc"]}')
        assert (first.error, first.cold) == (None, True)
        assert json.loads(first.payload) == {"event": {"a": [1, "ü"]}, "count": 1}
        assert first.log_tail == b"seen 1\n"
        assert first.init_ns > 0
        second = await call(serving, echo)
        assert json.loads(second.payload)["count"] == 2
        assert (second.cold, second.init_ns, second.log_tail) == (False, 0, b"seen 2\n")

    with_serving(root, main)


@pytest.mark.parametrize("module", ["logs", "logs_alone"])
def test_handler_logs_as_on_lambda_whether_it_is_forked(root: Path, module: str) -> None:
    async def main(serving: Serving) -> None:
        answer = await call(serving, function(root, f"{module}.main"))
        assert json.loads(answer.payload) == ["LambdaLoggerHandler"]
        assert answer.log_tail.startswith(b"[INFO]\t")
        assert answer.log_tail.endswith(b"\t11111111-2222-3333-4444-555555555555\tsaid once\n")
        assert answer.log_tail.count(b"said once") == 1

    with_serving(root, main)


def test_handler_keeps_descriptors_of_import(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main(serving: Serving) -> None:
        for _ in range(2):  # the second is not tried by a fork
            answer = await call(serving, function(root, "opened.main", keep_warm=0.0))
            assert answer.cold
            assert json.loads(answer.payload) == ["ran", "\nimport ", "kept"]
        assert (await call(serving, function(root, "app.echo"))).error is None
        [refusal] = [text for text in caplog.messages if "is not forked" in text]
        assert refusal.startswith("opened.main is not forked")
        assert "/var/task/opened.py, anon_inode:[eventpoll], socket:" in refusal
        assert "'written' in /tmp" in refusal

    caplog.set_level("INFO")
    with_serving(root, main)


def test_a_handler_sees_its_context(root: Path) -> None:
    async def main(serving: Serving) -> None:
        version = function(
            root, "app.look", memory=256 << 20, version="3", arn="arn:aws:lambda:x:1:function:f:3"
        )
        answer = await serving.invoke(
            version, b"{}", request_id="8476a536-e9f4-11e8-9739-2dfe598c3fcd",
            client_context=b'{"custom": {"a":\n"b"}}', trace=TRACE,
        )  # fmt: skip
        seen = json.loads(answer.payload)
        assert 0 < seen.pop("left") <= 30_000
        assert seen == {
            "id": "8476a536-e9f4-11e8-9739-2dfe598c3fcd", "arn": "arn:aws:lambda:x:1:function:f:3",
            "name": "app.look", "version": "3", "memory": "256", "custom": {"a": "b"},
            "trace": TRACE, "handler": "app.look", "own": None,
        }  # fmt: skip
        untraced = json.loads((await call(serving, version, b"{}")).payload)["trace"]
        assert re.fullmatch("Root=1-[0-9a-f]{8}-[0-9a-f]{24};Parent=[0-9a-f]{16};Sampled=0",
                            untraced)  # fmt: skip

    with_serving(root, main)


@pytest.mark.parametrize(
    ("handler", "kind", "words"),
    [
        ("app.fails", "ValueError", "no such cow"),
        ("app.exits", "Runtime.ExitError", "exit status 7: last words"),
        ("app.says", "Runtime.ExitError", "exit status 1: nothing to do"),
        ("app.escapes", "Runtime.ExitError", "exit status 1: KeyboardInterrupt: stop"),
        ("app.hangs", "Sandbox.Timedout", "Task timed out after 2.00 seconds"),
        ("app.not_json", "Runtime.MarshalError", "Unable to marshal response"),
        ("app.large", "Function.ResponseSizeTooLarge", "6291456"),
        ("app.missing", "Runtime.HandlerNotFound", "missing"),
        ("broken.handler", "RuntimeError", "cannot load the model"),
    ],
)
def test_each_failure_is_reported_as_lambda_does(
    root: Path, handler: str, kind: str, words: str
) -> None:
    async def main(serving: Serving) -> None:
        version = function(root, handler, timeout=2.0 if handler == "app.hangs" else 30.0)
        answer = await call(serving, version)
        error = json.loads(answer.payload)
        assert answer.error == "Unhandled"
        assert error["errorType"] == kind
        assert words in error["errorMessage"]
        if handler == "app.hangs":
            assert answer.log_tail == b"going to sleep\n"
        echo = await call(serving, function(root, "app.echo"))
        assert echo.error is None

    with_serving(root, main)


def test_last_output_belongs_to_fatal_event(root: Path) -> None:
    async def main(serving: Serving) -> None:
        version = function(root, "app.either")
        assert (await call(serving, version)).error is None
        ended = json.loads((await call(serving, version, b"1")).payload)
        assert ended["errorMessage"].endswith("exit status 7")

    with_serving(root, main)


def test_a_flood_of_output_does_not_hold_up_the_answer(root: Path) -> None:
    async def main(serving: Serving) -> None:
        answer = await call(serving, function(root, "app.talks"))
        assert answer.payload == b"1"
        assert len(answer.log_tail) == 4096

    with_serving(root, main)


def test_a_bootstrap_in_shell_answers(root: Path) -> None:
    async def main(serving: Serving) -> None:
        version = FunctionVersion(
            name="b", kind="bootstrap", root=str(root), directory="/var/task", timeout=30.0
        )
        answer = await call(serving, version, b'{"k": 1}')
        assert (answer.error, answer.payload) == (None, b'{"got": {"k": 1}}')
        failed = await call(serving, version, b'"fail"')
        assert failed.error == "Unhandled"
        assert json.loads(failed.payload)["errorMessage"] == "as told"
        assert (failed.cold, answer.cold) == (False, True)

    with_serving(root, main)


def test_an_instance_has_one_event_at_a_time_and_is_kept(root: Path) -> None:
    async def main(serving: Serving) -> None:
        version = function(root, "app.pid")
        streams = {
            (await answer).payload
            for answer in [asyncio.ensure_future(call(serving, version, b"1")) for _ in range(2)]
        }
        assert len(streams) == 2
        assert (await call(serving, version, b"0")).payload in streams
        await serving.retire(version)
        changed = msgspec.structs.replace(version, revision=version.revision + 1)
        for _ in range(20):  # the interpreter of the retired revision ends meanwhile
            answer = await call(serving, changed, b"0")
            assert answer.error is None
            assert answer.payload not in streams

    with_serving(root, main)


def test_an_idle_instance_ends_after_a_while(root: Path) -> None:
    async def main(serving: Serving) -> None:
        version = function(root, "app.pid", keep_warm=0.1)
        await call(serving, version, b"0")
        until = time.monotonic() + 30
        while serving._fleets:
            assert time.monotonic() < until
            await asyncio.sleep(0.01)

    with_serving(root, main)


def test_an_instance_ends_when_its_manager_is_replaced(root: Path) -> None:
    async def main() -> None:
        subprocess.run(["mount", "--bind", "/usr", root / "usr"], check=True)
        version = FunctionVersion(
            name="b", kind="bootstrap", root=str(root), directory="/var/task", timeout=30.0
        )
        config = Config(name="t4")
        async with Runtime(config, stay=True) as before:
            serving = Serving(before)
            assert (await call(serving, version)).error is None
            assert len(before.running()) == 1
            before.leave()
            for fleet in serving._fleets.values():
                for kept in fleet._idle:
                    kept._api.end()
        parts = before._instances._stock.parts
        for held in parts._held.values():  # with its process all would be gone
            if isinstance(held.made, Network):
                os.close(held.made.descriptor)
        async with Runtime(config, stay=True) as after:
            until = time.monotonic() + 30
            while after.running():
                assert time.monotonic() < until
                await asyncio.sleep(0.01)
            assert (await call(Serving(after), version)).error is None

    on_host(main)
