"""Functions whose instances are killed from outside, with their node or alone: not their failure.

Each kind answers its event with an error of the runtime, which a caller may repeat. What a function
does to itself stays its own error.
"""

import asyncio
import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from tests.support.lambda_functions import call, function, lambda_root, with_serving
from tests.support.wasm_modules import MODULE
from wasmtime import wat2wasm

from firstlight.agile.function import NodeFailed
from firstlight.agile.functions.version import FunctionVersion
from firstlight.agile.serving import Answer, Serving

HANDLERS = """
import os, signal, time

def holds(event, context=None):
    open("/tmp/began", "w").close()
    time.sleep(600)

def hold(event):
    holds(event)

def kills_itself(event, context=None):
    os.kill(os.getpid(), signal.SIGKILL)

def kill_itself(event):
    kills_itself(event)
"""
HOLD = "echo > /tmp/began; exec sleep 600"
BOOTSTRAP = f"""#!/bin/bash
curl -sS -o /dev/null http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation/next
{HOLD}
"""
STARTING = f"#!/bin/bash\n{HOLD}\n"
Kinds = dict[str, FunctionVersion]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {"app.py": HANDLERS, "bootstrap": BOOTSTRAP, "starting": STARTING}
    root = lambda_root(tmp_path_factory.mktemp("lambda"), files)
    (root / "module.wasm").write_bytes(wat2wasm(MODULE))
    return root


def kinds(root: Path) -> Kinds:
    """A function of each kind, that does not end."""
    own = partial(FunctionVersion, root=str(root), directory="/var/task", timeout=60.0)
    return {
        "command": own(name="command", kind="command", command=("/bin/bash", "-c", HOLD)),
        "fetches": own(name="fetches", kind="bootstrap"),
        "starts": own(name="starts", kind="bootstrap", command=("/var/task/starting",)),
        "fork": function(root, "app.holds", timeout=60.0),
        "handler": function(root, "app:hold", timeout=60.0),
        "module": FunctionVersion(
            name="module",
            kind="wasm",
            root=str(root / "module.wasm"),
            handler="spin",
            timeout=60.0,
        ),
    }


def first(pid: int) -> bool:
    """Whether it is the first process of its PID namespace."""
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("NSpid:")]
    return line.split()[-1] == "1"


def began() -> list[int]:
    """The first processes of the sandboxes in which a function has begun."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if first(int(path.name)) and (path / "root/tmp/began").exists():
                found.append(int(path.name))
        except OSError:
            continue
    return found


async def at_work(serving: Serving, versions: Kinds) -> list[asyncio.Task[Answer]]:
    """Call each, and wait until it runs."""
    calls = [asyncio.ensure_future(call(serving, each, b"[]")) for each in versions.values()]
    others = len(versions) - ("module" in versions)
    while len(began()) < others:
        done = [each.result() for each in calls if each.done()]
        assert not done, done
        await asyncio.sleep(0.01)
    if "module" in versions:
        while not (workers := serving.runtime._wasms.values()) or not workers[0]._serving:
            await asyncio.sleep(0.01)
        while not workers[0]._serving.channel.waiting:
            await asyncio.sleep(0.01)
    return calls


def test_a_killed_node_is_no_failure_of_its_functions(root: Path) -> None:
    async def main(serving: Serving) -> None:
        versions = kinds(root)
        calls = await at_work(serving, versions)
        os.kill(serving.runtime.node, signal.SIGKILL)
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(end) for end in ends] == [NodeFailed] * len(versions), ends

    with_serving(root, main)


def test_outside_kill_is_no_function_failure(root: Path) -> None:
    async def main(serving: Serving) -> None:
        async def all_lost(versions: Kinds, victims: Callable[[], list[int]]) -> None:
            calls = await at_work(serving, versions)
            for pid in victims():
                os.kill(pid, signal.SIGKILL)
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(end) for end in ends] == [NodeFailed] * len(versions), ends

        runtime, versions = serving.runtime, kinds(root)

        def workers() -> list[int]:
            return [each.pid for each in runtime.running() if "spin" in each.function.command]

        await all_lost(versions, lambda: [*began(), *workers()])
        forks = {name: versions[name] for name in ("fork", "handler")}
        await all_lost(forks, lambda: [each.pid for each in runtime._zygotes.values()])

    with_serving(root, main)


def test_what_a_function_does_to_itself_is_its_own_failure(root: Path) -> None:
    async def main(serving: Serving) -> None:
        for version in (function(root, "app.kills_itself"), function(root, "app:kill_itself")):
            answer = await call(serving, version)
            assert json.loads(answer.payload)["errorType"] == "Runtime.ExitError"
        module = kinds(root)["module"]
        for handler, kind in (("trap", "Runtime.Trap"), ("next", "Runtime.HandlerError")):
            other = FunctionVersion(name="m", kind="wasm", root=module.root, handler=handler)
            answer = await call(serving, other, b'"no numbers"' if handler == "next" else b"[]")
            assert json.loads(answer.payload)["errorType"] == kind

    with_serving(root, main)
