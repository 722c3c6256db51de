"""The examples that start something."""

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.laboratory import compiled
from tests.support.lambda_host import AWS, ENDPOINT, with_functions

from firstlight.agile.functions.catalogue import Functions

EXAMPLES = Path(__file__).parents[2] / "examples"
HELLO = '#include <stdio.h>\nint main(void) { return puts("hello") < 0; }'
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def run(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **more,
    }
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment)


def test_gate_passes_same_runtime_and_stops_slower(tmp_path: Path) -> None:
    runtime = tmp_path / "runc"
    quick = f'#!/bin/sh\nexec {shutil.which("runc")} "$@"\n'
    runtime.write_text(quick)
    runtime.chmod(0o755)
    few = {"INSTANCES": "1", "REPETITIONS": "5"}
    gate = (EXAMPLES / "gate.sh", runtime, tmp_path / "baseline")
    first = run(*gate, **few)
    assert first.returncode == 0, first.stderr
    runtime.write_text(quick.replace("exec", "sleep 0.2\nexec"))
    slower = run(*gate, **few)
    assert slower.returncode == 1, slower.stdout + slower.stderr


def test_trace_causes() -> None:
    done = run(EXAMPLES / "trace_causes.sh", "/bin/sleep", "0.05")
    assert done.returncode == 0, done.stderr
    assert "sleep" in done.stdout.splitlines()[0]


def test_agile_hello(tmp_path: Path) -> None:
    (tmp_path / "hello.c").write_text(HELLO)
    (tmp_path / "root").mkdir()
    compiled(tmp_path / "hello.c", tmp_path / "root/hello", "-static")
    tmp_path.chmod(0o755)
    done = run(
        "unshare", "--net", "--mount", "--propagation", "private", sys.executable,
        EXAMPLES / "agile_hello.py", tmp_path / "root", "/hello",
    )  # fmt: skip
    assert done.stdout == "hello\n", done.stderr


def test_call_function(tmp_path: Path) -> None:
    async def called(functions: Functions) -> None:
        process = await asyncio.create_subprocess_exec(
            AWS, EXAMPLES / "call_function.py", ENDPOINT, stdout=subprocess.PIPE
        )
        output, _ = await process.communicate()
        assert output == b"world\n"
        assert functions.names() == []

    if not AWS.exists():
        pytest.skip(".venv/aws is missing: make setup")
    with_functions(tmp_path, called)
